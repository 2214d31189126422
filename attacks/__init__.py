"""Attacks on the availability of certified classifiers, and the susceptibility that they prove.

Imported as `defended.attacks`.
"""

if __name__ != "defended.attacks":
    raise ImportError(
        f"Import `defended.attacks`, not `{__name__}`: setup.py maps the repository's folder there. "
        f"Install the package with `pip install -e .` and write `from defended import attacks`."
    )

from typing import Any

from defended._moved import moved_attribute
from defended.attacks.black_box.boundary_search import Boundary
from defended.attacks.black_box.decision_attack import DecisionAttack
from defended.attacks.black_box.score_descent import ScoreDescent
from defended.attacks.black_box.square_attack import SquareAttack
from defended.attacks.composed.degradation_attack import DegradationAttack
from defended.attacks.composed.ensemble import Ensemble
from defended.attacks.composed.foolbox_adapter import FoolboxAttack, from_foolbox
from defended.attacks.core.attack import Attack
from defended.attacks.core.balls import project_l2, project_l2_box, project_linf, project_linf_box
from defended.attacks.gradient.carlini_wagner import CarliniWagner
from defended.attacks.gradient.certificate_descent import CertificateDescent
from defended.attacks.gradient.evasive_descent import EvasiveDescent
from defended.attacks.gradient.pgd import APGD, PGD, EpsilonPGD
from defended.attacks.gradient.smoothed_pgd import SmoothedPGD
from defended.attacks.measurement.callback import DegradationMonitor
from defended.attacks.measurement.plots import plot_fpr, plot_pairs, plot_vra
from defended.attacks.measurement.records import DegradedInputs, Records
from defended.attacks.measurement.result import Susceptibility
from defended.attacks.measurement.susceptibility import susceptibility
from defended.attacks.measurement.tables import Comparison, compare
from defended.exceptions import CertificateViolation
from defended.statistics.intervals import Rate, clopper_pearson

__all__ = [
    "APGD",
    "Attack",
    "Boundary",
    "CarliniWagner",
    "CertificateDescent",
    "CertificateViolation",
    "Comparison",
    "DecisionAttack",
    "DegradationAttack",
    "DegradationMonitor",
    "DegradedInputs",
    "Ensemble",
    "EpsilonPGD",
    "EvasiveDescent",
    "FoolboxAttack",
    "PGD",
    "Rate",
    "Records",
    "ScoreDescent",
    "SmoothedPGD",
    "SquareAttack",
    "Susceptibility",
    "clopper_pearson",
    "compare",
    "from_foolbox",
    "plot_fpr",
    "plot_pairs",
    "plot_vra",
    "project_l2",
    "project_l2_box",
    "project_linf",
    "project_linf_box",
    "susceptibility",
]


def __getattr__(name: str) -> Any:
    """Give modules by the names that they had."""
    return moved_attribute("defended.attacks", name)
