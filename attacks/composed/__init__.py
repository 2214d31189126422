"""Attacks made of attacks: the paper's two stages, ensembles, and those of foolbox."""
