"""Tables 4 and 5 (Appendix C): Wong and Kolter's dual bounds, l∞."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from defended import zoo
from defended.attacks.composed.degradation_attack import DegradationAttack
from defended.attacks.gradient.certificate_descent import CertificateDescent
from defended.attacks.paper.reproduction import Finding, Reproduction, measured, noted
from defended.attacks.paper.settings import Settings
from defended.polytope.polytope_net import PolytopeNet

EPSILON = 0.1
POINTS = 500
# The paper attacks a larger net of Wong et al. 2018 (`mnist_large_0_1`), which is not the one that is measured here.
PRINTED = {"vra": 0.989, "fpr_lower_correct": 0.92, "fpr_upper_correct": 1.0}
NOTE = "the paper's net is larger"


def table4(settings: Settings) -> Reproduction:
    """Measure lower bounds on the false positive rate, by the authors' attack and by descent of the certificate."""
    attacks = {
        "the paper's attack": DegradationAttack.published(EPSILON, "linf"),
        "CertificateDescent": CertificateDescent(steps=20, early_stop=True),
    }
    title = "Wong and Kolter's nets under degradation attacks (l∞)"
    return _measure("table4", title, settings, attacks, ("vra", "fpr_lower_correct", "utility_reduction"))


def table5(settings: Settings) -> Reproduction:
    """Measure upper bounds on the false positive rate: what is not proven to stay answered within the radius."""
    title = "Wong and Kolter's nets, certified at eps and at 2 eps (l∞)"
    # No attack: the upper bound needs none.
    stay = {"": lambda model, x, y: x}
    return _measure("table5", title, settings, stay, ("vra", "vra_2eps", "fpr_upper_correct"))


def _measure(
    name: str, title: str, settings: Settings, attacks: dict[str, Any], rates: tuple[str, ...]
) -> Reproduction:
    findings: list[Finding] = []
    left_out: list[str] = []
    nets: dict[str, Any] = {}
    with noted(left_out, "mnist"):
        x, y = settings.test_points("mnist", POINTS)
        nets = _nets(settings, left_out)
    for net, model in nets.items():
        for attack_name, attack in attacks.items():
            result = settings.measure(f"{net}, {attack_name}", model, x, y, attack, batch_size=100)
            findings += measured(net, result, rates, PRINTED, attack_name, NOTE)
    return Reproduction(name, title, tuple(dict.fromkeys(findings)), tuple(left_out))


def _nets(settings: Settings, left_out: list[str]) -> dict[str, Any]:
    nets: dict[str, Any] = {}
    with noted(left_out):
        file = settings.reference_file("kw", "mnist_2c2f_linf_0.1.npz")
        nets["Wong and Kolter's small net, their slope"] = published_net(file, slope="wong-kolter")
        nets["Wong and Kolter's small net, our bounds"] = published_net(file)
    for case in ("mnist-2c2f-linf-0.1", "mnist-2c2f-linf-0.2"):
        with noted(left_out):
            nets[case] = settings.net(case, case, EPSILON)
    for model in nets.values():
        if isinstance(model, PolytopeNet):
            model.radius_steps = 1  # whether r > 2 eps is all that the tables need
    return nets


def published_net(path: Path, **options: Any) -> PolytopeNet:
    """Return Wong and Kolter's small MNIST net, from an `.npz` of its weights in Keras's layout."""
    network = zoo.cnn_2c2f(activation="relu")
    with np.load(path, allow_pickle=False) as arrays:
        layers = ("conv1", "conv2", "dense1", "dense2")
        network.set_weights([arrays[f"{layer}_{part}"] for layer in layers for part in ("kernel", "bias")])
    model = PolytopeNet(network, epsilon=EPSILON, norm="linf", **options)
    model.finalize()
    return model
