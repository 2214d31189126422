"""Oracles of valid inputs, and a guard that asks them (Leino et al. 2022, section 4.2)."""

from defended.membership.calibration import conformal_threshold
from defended.membership.guard import REASONS, MembershipGuard
from defended.membership.mahalanobis import MahalanobisScore
from defended.membership.neighbour_score import NearestNeighbourScore
from defended.membership.oracle import MembershipOracle, Nearest
from defended.membership.scores import ScoreOracle
from defended.membership.separation import Separation, close_pairs
from defended.membership.stored_points import IN_GRAPH, StoredPoints

__all__ = [
    "IN_GRAPH",
    "MahalanobisScore",
    "MembershipGuard",
    "MembershipOracle",
    "Nearest",
    "NearestNeighbourScore",
    "REASONS",
    "ScoreOracle",
    "Separation",
    "StoredPoints",
    "close_pairs",
    "conformal_threshold",
]
