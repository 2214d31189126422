"""Certified run-time defences for Keras: classifiers that prove their answers and reject what they cannot prove."""

import importlib
from typing import Any

from defended import _moved, datasets, exceptions, gloro, layers, membership, polytope, smoothing, zoo
from defended._version import __version__
from defended.adapting import adapt, diagnose
from defended.answering import Verdicts
from defended.calibration import calibrate_epsilon
from defended.defended_model import DefendedModel
from defended.gloro import GloroNet, load_gloronet
from defended.loading import load_model
from defended.membership import MembershipGuard
from defended.polytope import PolytopeNet
from defended.smoothing import SmoothedNet
from defended.training import callbacks, losses, metrics

__all__ = [
    "DefendedModel",
    "GloroNet",
    "MembershipGuard",
    "PolytopeNet",
    "SmoothedNet",
    "Verdicts",
    "__version__",
    "adapt",
    "calibrate_epsilon",
    "callbacks",
    "datasets",
    "diagnose",
    "exceptions",
    "gloro",
    "layers",
    "load_gloronet",
    "load_model",
    "losses",
    "membership",
    "metrics",
    "polytope",
    "smoothing",
    "zoo",
]

_moved.register()


def __getattr__(name: str) -> Any:
    """Return `defended.attacks` or `defended.serving`, imported on first use, or a module by its earlier name."""
    if name in ("attacks", "serving"):
        return importlib.import_module(f"defended.{name}")
    return _moved.earlier_modules("defended")(name)
