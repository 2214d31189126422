"""Attacks on the availability of certified classifiers, and the susceptibility that they prove.

Imported as `defended.attacks`.
"""

if __name__ != "defended.attacks":
    raise ImportError(
        f"Import `defended.attacks`, not `{__name__}`: setup.py maps the repository's folder there. "
        f"Install the package with `pip install -e .` and write `from defended import attacks`."
    )

from defended.attacks.attack import Attack
from defended.attacks.certificate_descent import CertificateDescent
from defended.attacks.checks import CertificateViolation
from defended.attacks.comparison import Comparison, compare
from defended.attacks.degradation_attack import DegradationAttack
from defended.attacks.degradation_monitor import DegradationMonitor
from defended.attacks.ensemble import Ensemble
from defended.attacks.figures import Susceptibility
from defended.attacks.intervals import Rate, clopper_pearson
from defended.attacks.measure import susceptibility
from defended.attacks.pgd import APGD, PGD, EpsilonPGD
from defended.attacks.plots import plot_fpr, plot_pairs, plot_vra
from defended.attacks.projections import project_l2, project_l2_box, project_linf, project_linf_box
from defended.attacks.records import DegradedInputs, Records
from defended.attacks.smoothed_pgd import SmoothedPGD

__all__ = [
    "APGD",
    "Attack",
    "CertificateDescent",
    "CertificateViolation",
    "Comparison",
    "DegradationAttack",
    "DegradationMonitor",
    "DegradedInputs",
    "Ensemble",
    "EpsilonPGD",
    "PGD",
    "Rate",
    "Records",
    "SmoothedPGD",
    "Susceptibility",
    "clopper_pearson",
    "compare",
    "plot_fpr",
    "plot_pairs",
    "plot_vra",
    "project_l2",
    "project_l2_box",
    "project_linf",
    "project_linf_box",
    "susceptibility",
]
