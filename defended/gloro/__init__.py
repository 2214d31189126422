"""GloRo Nets: certification by a global Lipschitz bound (Leino, Wang, Fredrikson 2021)."""

from defended.gloro.bounds import bound_matrix_norm
from defended.gloro.certificate import CertificateReport
from defended.gloro.convolutions import bound_conv2d_norm
from defended.gloro.gloro_net import GloroNet
from defended.gloro.graph import LayerBound
from defended.gloro.legacy.gloronet import load_gloronet
from defended.gloro.rules import LipschitzRule, known_layers, lipschitz_rule

__all__ = [
    "CertificateReport",
    "GloroNet",
    "LayerBound",
    "LipschitzRule",
    "bound_conv2d_norm",
    "bound_matrix_norm",
    "known_layers",
    "lipschitz_rule",
    "load_gloronet",
]
