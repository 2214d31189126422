"""GloRo Nets: certification by a global Lipschitz bound (Leino, Wang, Fredrikson 2021)."""

from defended._moved import earlier_modules
from defended.gloro.certificate import CertificateReport
from defended.gloro.gloro_net import GloroNet
from defended.gloro.graph import LayerBound
from defended.gloro.legacy.gloronet import load_gloronet
from defended.gloro.rules import LipschitzRule, known_layers, lipschitz_rule
from defended.numerics.convolution_norms import bound_conv2d_norm
from defended.numerics.matrix_norms import bound_matrix_norm

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

__getattr__ = earlier_modules("defended.gloro")
