"""Randomized smoothing: the vote of a network under Gaussian noise, certified (Cohen et al. 2019)."""

from defended.smoothing.bounds import (
    binomial_p_value,
    lower_confidence_bound,
    radius_ceiling,
    smallest_samples,
)
from defended.smoothing.gate import Gate, fixed_gate
from defended.smoothing.sequential import sequential_gate
from defended.smoothing.smoothed_net import SmoothedNet

__all__ = [
    "Gate",
    "SmoothedNet",
    "binomial_p_value",
    "fixed_gate",
    "lower_confidence_bound",
    "radius_ceiling",
    "sequential_gate",
    "smallest_samples",
]
