"""Randomized smoothing: the vote of a network under Gaussian noise, certified (Cohen et al. 2019)."""

from defended.smoothing.bounds import binomial_p_value, lower_confidence_bound, radius_ceiling, smallest_samples
from defended.smoothing.consistency import Consistency
from defended.smoothing.cost import Cost
from defended.smoothing.figures import draw_certification
from defended.smoothing.gate import Gate, fixed_gate
from defended.smoothing.logs import CertificationLog, certify, read_log, write_log
from defended.smoothing.noise_training import NoisyTrainer, train_noisy
from defended.smoothing.sequential import sequential_gate
from defended.smoothing.smooth_adv import SmoothAdv
from defended.smoothing.smoothed_net import SmoothedNet

__all__ = [
    "CertificationLog",
    "Consistency",
    "Cost",
    "Gate",
    "NoisyTrainer",
    "SmoothAdv",
    "SmoothedNet",
    "binomial_p_value",
    "certify",
    "draw_certification",
    "fixed_gate",
    "lower_confidence_bound",
    "radius_ceiling",
    "read_log",
    "sequential_gate",
    "smallest_samples",
    "train_noisy",
    "write_log",
]
