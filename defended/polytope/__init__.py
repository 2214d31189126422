"""Dual bounds of Wong and Kolter (2018): certificates in l∞ and l2 for networks of affine maps and ReLUs."""

from defended.polytope.layer_rules import known_layers
from defended.polytope.polytope_net import PolytopeNet

__all__ = ["PolytopeNet", "known_layers"]
