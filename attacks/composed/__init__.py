"""Attacks made of attacks: the paper's two stages, ensembles, those of Foolbox."""
