"""Attacks that descend gradients: one loop, rules and objectives apart."""
