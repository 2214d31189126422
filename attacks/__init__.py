"""Attacks on the availability of certified classifiers, and the susceptibility that they prove.

Imported as `defended.attacks`.
"""

if __name__ != "defended.attacks":
    raise ImportError(
        f"Import `defended.attacks`, not `{__name__}`: setup.py maps the repository's folder there. "
        f"Install the package with `pip install -e .` and write `from defended import attacks`."
    )

from defended.attacks.attack import Attack
from defended.attacks.boundary_search import Boundary
from defended.attacks.carlini_wagner import CarliniWagner
from defended.attacks.certificate_descent import CertificateDescent
from defended.attacks.checks import CertificateViolation
from defended.attacks.comparison import Comparison, compare
from defended.attacks.decision import DecisionAttack
from defended.attacks.degradation_attack import DegradationAttack
from defended.attacks.degradation_monitor import DegradationMonitor
from defended.attacks.ensemble import Ensemble
from defended.attacks.evasive_descent import EvasiveDescent
from defended.attacks.figures import Susceptibility
from defended.attacks.foolbox_adapter import FoolboxAttack, from_foolbox
from defended.attacks.intervals import Rate, clopper_pearson
from defended.attacks.measure import susceptibility
from defended.attacks.pgd import APGD, PGD, EpsilonPGD
from defended.attacks.plots import plot_fpr, plot_pairs, plot_vra
from defended.attacks.projections import project_l2, project_l2_box, project_linf, project_linf_box
from defended.attacks.records import DegradedInputs, Records
from defended.attacks.score_descent import ScoreDescent
from defended.attacks.smoothed_pgd import SmoothedPGD
from defended.attacks.square import SquareAttack

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
