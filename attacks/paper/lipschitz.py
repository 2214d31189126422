"""Tables 1 and 3, figures 2 and 4: GloRo Nets."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from defended.attacks.composed.degradation_attack import DegradationAttack
from defended.attacks.gradient.certificate_descent import CertificateDescent
from defended.attacks.gradient.pgd import EpsilonPGD
from defended.attacks.measurement.plots import Pair, degraded_pairs, draw_pairs
from defended.attacks.paper.reproduction import Finding, Reproduction, measured, noted
from defended.attacks.paper.settings import Settings, open_net
from defended.class_names import CLASS_NAMES
from defended.figure_style import COLOURS, MUTED, draw_frame, to_png
from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts, fpr_upper_curve, vra_curve

POINTS = 2000


class Case(NamedTuple):
    """A row of Table 1: data set, radius, and what the paper prints for it."""

    name: str
    data: str
    epsilon: float
    zoo: tuple[str, ...]
    """Nets of the zoo for it."""
    reference: str | None
    """The authors' net, in their published files, as they call it; None where they have none."""
    printed: dict[str, float]


CASES = (
    Case("mnist-0.3", "mnist", 0.3, ("mnist-2c2f-0.3", "mnist-2c2f-0.6"), "mnist_0.3_N",
         {"vra": 0.950, "fpr_lower_correct": 0.060, "utility_reduction": 0.057}),
    Case("mnist-1.58", "mnist", 1.58, ("mnist-4c3f-1.58", "mnist-4c3f-3.16"), "mnist_1.58_N",
         {"vra": 0.618, "fpr_lower_correct": 0.561, "utility_reduction": 0.347}),
    Case("cifar10-0.141", "cifar10", 0.141, ("cifar10-6c2f-0.141", "cifar10-6c2f-0.282"), "cifar10_0.14_N",
         {"vra": 0.600, "fpr_lower_correct": 0.114, "utility_reduction": 0.066}),
    Case("fashion-mnist-0.3", "fashion_mnist", 0.3, ("fashion-mnist-2c2f-0.3", "fashion-mnist-2c2f-0.6"), None, {}),
    Case("gtsrb-0.141", "gtsrb", 0.141, ("gtsrb-6c2f-0.141", "gtsrb-6c2f-0.282"), None, {}),
)  # fmt: skip
DRAWN = ("mnist-0.3", "cifar10-0.141", "gtsrb-0.141")
"""The cases of figure 4."""
THE_AUTHORS = "the authors' net"
RATES = ("vra", "fpr_lower_correct", "utility_reduction")
TRAINED = (("N", "trained at eps"), ("Y", "at 2 eps"))
"""The two nets of a case: the suffix of the authors' files, and how figures call them."""


def table1(settings: Settings) -> Reproduction:
    """Measure lower bounds on the false positive rate of GloRo Nets, by the authors' attack and by radius descent.

    The denominators are those of the paper's code, the certified and correct. The printed values are those of the
    authors' net and attack; in the other rows they are there for comparison.
    """
    title = "GloRo Nets under degradation attacks (l2)"
    return _lower_bounds("table1", title, settings, "the paper's attack", DegradationAttack.published, printed=True)


def table3(settings: Settings) -> Reproduction:
    """Measure the same by eps-PGD: it seeks a point at eps whose own neighbourhood holds another label (Appendix B)."""
    title = "GloRo Nets under eps-PGD (l2)"
    return _lower_bounds("table3", title, settings, "eps-PGD", lambda epsilon: EpsilonPGD(), printed=False)


def _lower_bounds(
    name: str, title: str, settings: Settings, first: str, make: Callable[[float], Any], printed: bool
) -> Reproduction:
    findings: list[Finding] = []
    left_out: list[str] = []
    for case in CASES:
        nets: dict[str, Any] = {}
        with noted(left_out, case.name):
            x, y = settings.test_points(case.data, POINTS)
            nets = _nets(case, settings, left_out)
        for net, model in nets.items():
            attacks = {first: make(case.epsilon), "CertificateDescent": CertificateDescent(steps=50, early_stop=True)}
            for attack_name, attack in attacks.items():
                rates = RATES if attack_name == first else (*RATES, "fpr_upper_correct")
                result = settings.measure(f"{case.name}, {net}, {attack_name}", model, x, y, attack)
                # The paper prints no figures for these nets or for our attack: its own stand beside them.
                known = case.printed if printed else {}
                note = "" if net == THE_AUTHORS else "the paper's value is another net's"
                findings += measured(f"{case.name}, {net}", result, rates, known, attack_name, note)
    unique = dict.fromkeys(findings)  # VRA does not depend on the attack
    return Reproduction(name, title, tuple(unique), tuple(left_out))


def _nets(case: Case, settings: Settings, left_out: list[str]) -> dict[str, Any]:
    """Return the nets of a case that are here, by what to call them."""
    nets: dict[str, Any] = {}
    if case.name in settings.nets:
        return {"your net": settings.net(case.name, None, case.epsilon)}
    if case.reference is not None:
        with noted(left_out, f"{case.name}, {THE_AUTHORS}"):
            file = settings.reference_file("gloro", f"{case.reference}.gloronet")
            nets[THE_AUTHORS] = open_net(file, case.epsilon)
    for published in case.zoo:
        with noted(left_out, f"{case.name}, {published}"):
            nets[published] = settings.net(case.name, published, case.epsilon)
    return nets


def figure2(settings: Settings) -> Reproduction:
    """Plot VRA, and the upper bound on the false positive rate, over the radius: trained at eps, and at 2 eps.

    The authors' curves come from the radii that they published; ours from the zoo's nets on the same test set.
    """
    series: dict[str, tuple[float, Any, Any, Any]] = {}
    left_out: list[str] = []
    findings: list[Finding] = []
    for case in CASES:
        panel = " ".join(case.name.rsplit("-", 1))
        authors = (case.reference or "").removesuffix("_N")
        for suffix, trained in TRAINED if authors else ():
            with noted(left_out):
                path = settings.reference_file("gloro", "radii", f"{authors}_{suffix}.csv")
                series[f"{panel}, authors', {trained}"] = case.epsilon, *_published_radii(path), None
        for published, (_, trained) in zip(case.zoo, TRAINED, strict=bool(case.zoo)):
            name = f"{panel}, ours, {trained}"
            with noted(left_out, name):
                x, y = settings.test_points(case.data, None)
                model = settings.net(case.name, published, case.epsilon)
                found = model.audit(x, batch_size=1000)
                # A rejected input that is certified for less than eps still has its place in the curves.
                right = found["scores"].argmax(axis=-1) == y
                radius = np.concatenate([model.deployment_radius(x[i : i + 250]) for i in range(0, len(x), 250)])
                series[name] = case.epsilon, radius.astype(np.float64), right, found["availability_radius"]
    for name, values in series.items():
        theirs = series.get(name.replace("ours", "authors'")) if ", ours, " in name else None
        known = _at(*theirs) if theirs else {}
        findings += [Finding(name, figure, value, known.get(figure)) for figure, value in _at(*values).items()]
    picture, curves = _draw(series)
    return Reproduction(
        "figure2", "VRA and the FPR's upper bound over the radius, GloRo Nets", tuple(findings), tuple(left_out),
        picture, curves,
    )  # fmt: skip


def _published_radii(path: Path) -> tuple[Any, Any]:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return np.array([float(row["radius"]) for row in rows]), np.array([row["correct"] == "True" for row in rows])


def _at(epsilon: float, radius: Any, right: Any, available: Any) -> dict[str, Rate]:
    facts = InputFacts.at(radius, right, epsilon, available=available)
    names = {"vra": f"VRA at {epsilon:g}", "vra_2eps": f"VRA at {2 * epsilon:g}",
             "fpr_upper": f"FPR at {epsilon:g}, at most"}  # fmt: skip
    return {title: facts.rate(name) for name, title in names.items()}


def _draw(series: dict[str, tuple[float, Any, Any, Any]]) -> tuple[bytes | None, dict[str, tuple[float | None, ...]]]:
    if not series:
        return None, {}
    from matplotlib.figure import Figure

    panels = sorted({name.split(",")[0] for name in series})
    figure = Figure(figsize=(4.4 * len(panels), 6.2), layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False)
    curves: dict[str, tuple[float | None, ...]] = {}
    for column, panel in enumerate(panels):
        chosen = {name: values for name, values in series.items() if name.split(",")[0] == panel}
        epsilon = next(iter(chosen.values()))[0]
        radii = np.linspace(0, 3 * epsilon, 121)
        curves[f"{panel}: radius"] = tuple(radii.tolist())
        for name, (_, radius, right, _) in chosen.items():
            label = name.split(", ", 1)[1]
            style: dict[str, Any] = {
                "ls": "-" if "ours" in name else "--", "color": COLOURS[0] if "2 eps" in name else COLOURS[1],
            }  # fmt: skip
            vra, fpr = vra_curve(radius, right, radii), fpr_upper_curve(radius, radii)
            grid[0, column].plot(radii, 100 * vra, label=label, **style)
            grid[1, column].plot(radii, 100 * fpr, label=label, **style)
            curves[f"{name}: VRA"] = tuple(vra.tolist())
            curves[f"{name}: FPR, at most"] = tuple(None if np.isnan(value) else float(value) for value in fpr)
        grid[0, column].set_title(panel, loc="left", fontweight="bold", fontsize=10)
        for row, what in enumerate(("VRA, % of inputs", "FPR, % of answers, at most")):
            axes = grid[row, column]
            axes.axvline(epsilon, color=MUTED, lw=0.8, ls=":")
            axes.set(xlabel="radius ε (ℓ₂)", ylabel=what if column == 0 else "", xlim=(0, 3 * epsilon), ylim=(0, 102))
            draw_frame(axes)
    lines = {line.get_label(): line for axes in grid[0] for line in axes.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), frameon=False, loc="outside right upper")
    return to_png(figure), curves


def figure4(settings: Settings) -> Reproduction:
    """Plot inputs that were answered, and how they look once degraded: digits, photographs and road signs."""
    findings: list[Finding] = []
    left_out: list[str] = []
    pairs: list[Pair] = []
    attack = CertificateDescent(steps=50, clip=(0.0, 1.0), early_stop=True)
    for case in (case for case in CASES if case.name in DRAWN):
        published = case.zoo[0]
        with noted(left_out, case.name):
            x, y = settings.test_points(case.data, 1000)
            model = settings.net(case.name, published, case.epsilon)
            result = settings.measure(f"degraded inputs to draw, {published}", model, x, y, attack)
            findings.append(
                Finding(f"{case.name}, {published}", "FPR, at least (CertificateDescent)", result.fpr_lower)
            )
            pairs += degraded_pairs(x, result, 3, CLASS_NAMES[case.data])
            if not len(result.adversarial):
                left_out.append(f"{case.name}: nothing was degraded, so there is no pair to draw")
    title = "Degraded inputs (original, perturbed, difference)"
    picture = to_png(draw_pairs(pairs)) if pairs else None
    return Reproduction("figure4", title, tuple(findings), tuple(left_out), picture)
