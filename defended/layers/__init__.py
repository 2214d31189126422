"""Keras layers for networks with a known Lipschitz constant, and the head that appends ⊥."""

from defended.layers.gaussian_noise_augmentation import GaussianNoiseAugmentation
from defended.layers.invertible_downsampling import InvertibleDownsampling
from defended.layers.liresnet_block import LiResNetBlock
from defended.layers.minmax import MinMax
from defended.rejection_head import RejectionHead

__all__ = ["GaussianNoiseAugmentation", "InvertibleDownsampling", "LiResNetBlock", "MinMax", "RejectionHead"]
