"""Attacks that descend gradients: one loop, with rules and objectives kept apart."""
