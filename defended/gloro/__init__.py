"""GloRo Nets: certification by a global Lipschitz bound (Leino, Wang, Fredrikson 2021)."""

from defended.gloro.bounds import bound_conv2d_norm, bound_matrix_norm
from defended.gloro.gloro_net import GloroNet
from defended.gloro.rules import LipschitzRule, known_layers, lipschitz_rule

__all__ = ["GloroNet", "LipschitzRule", "bound_conv2d_norm", "bound_matrix_norm", "known_layers", "lipschitz_rule"]
