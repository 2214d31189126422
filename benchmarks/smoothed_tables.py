"""What the committed smoothed nets hold, and how far they can be degraded: their logs, table and figure.

    DEFENDED_DATA=path/to/data python benchmarks/smoothed_tables.py [--out FOLDER] [--points 300] [--samples 5000]

For each net of `smoothed_nets.py`, on every (10,000 / points)-th test image, with n samples and alpha = 0.001:

1. `susceptibility` at each eps: CERTIFY on every point, with noise of its own; the points that are answered and not
   certified at 2 eps are attacked by `CertificateDescent` and judged anew. Radii at the first eps -> `NAME.tsv`, in the
   format of Cohen et al.'s code.
2. The same points are attacked by `DegradationAttack(SmoothedPGD())`, the paper's Algorithm 3.2.

Either attack's finds, of the answered points, bound the false positive rate from below. `spontaneous` is the share of
the attacked points that another draw rejects without an attack. The noise is fresh in every run, so that a second run
differs by a little.

Writes `tables.json` (rates with counts and 95 % intervals), `tables.md` and `tables.png`. A net whose log and figures
are there already, for the same settings, is not measured again; `--net NAME` measures one net and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import smoothed_nets
import tensorflow as tf

import defended
from defended._io import atomic_write_bytes, atomic_write_text
from defended.attacks import CertificateDescent, DegradationAttack, Rate, SmoothedPGD, Susceptibility, susceptibility
from defended.figure_style import to_png
from defended.smoothing import CertificationLog, NoisyTrainer, SmoothedNet, read_log, write_log
from defended.smoothing.figures import Panel, draw_certification

RADII = {0.25: (0.25,), 0.5: (0.25, 0.5)}
ALPHA = 0.001
BOX = (0.0, 1.0)
DESCENT = CertificateDescent(steps=50, clip=BOX)
PAPER = DegradationAttack(SmoothedPGD(samples=32, steps=30, clip=BOX))
COLUMNS = {
    "clean_accuracy": "accuracy", "vra": "VRA", "vra_2eps": "VRA at 2 eps", "rejection_rate": "rejected",
    "fpr_lower_paper": "FPR lower (SmoothedPGD)", "fpr_lower": "FPR lower (CertificateDescent)",
    "fpr_upper": "FPR upper", "spontaneous": "spontaneous",
}  # fmt: skip


def measure(name: str, data_name: str, sigma: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one net, kept in `.work/NAME_figures.json`; and its log."""
    kept, path = arguments.out / ".work" / f"{name}_figures.json", arguments.out / f"{name}.tsv"
    settings = {"sigma": sigma, "samples": arguments.samples, "alpha": ALPHA, "points": arguments.points}
    if kept.exists() and path.exists():
        figures = json.loads(kept.read_text())
        if {key: figures[key] for key in settings} == settings:
            return figures
    network = keras.models.load_model(arguments.out / f"{name}.keras", compile=False)
    data = defended.datasets.load(data_name)
    index = np.arange(0, len(data.x_test), max(1, len(data.x_test) // arguments.points))[: arguments.points]
    x, y = data.x_test[index], data.y_test[index]
    figures = {**settings, **accuracies(network, sigma, data), "eps": {}}
    start = time.perf_counter()
    for epsilon in RADII[sigma]:
        model = SmoothedNet(network, epsilon, sigma, samples=arguments.samples, alpha=ALPHA, mode="fixed")
        result = susceptibility(model, x, y, DESCENT)
        if epsilon == RADII[sigma][0]:
            log = certification_log(result, index, (time.perf_counter() - start) / len(x))
            write_log(path, log)
            figures["average_certified_radius"] = log.average_certified_radius
            figures["ceiling"] = model.radius_ceiling
        figures["eps"][f"{epsilon:g}"] = {
            **result.summary(), "fpr_lower_paper": paper(model, x, result).to_dict(), "paper": PAPER.config(),
        }  # fmt: skip
    figures["minutes"] = round((time.perf_counter() - start) / 60, 1)
    kept.parent.mkdir(exist_ok=True)
    atomic_write_text(kept, json.dumps(figures, indent=1))
    return figures


def certification_log(result: Susceptibility, index: Any, seconds: float) -> CertificationLog:
    """The radii of a measurement; seconds a point include the attack."""
    records = result.records
    predicted = np.where(records.radius > 0, records.predicted, -1)
    return CertificationLog(index, records.label, predicted, records.radius, np.full(len(index), seconds))


def paper(model: SmoothedNet, x: Any, result: Susceptibility) -> Rate:
    """The lower bound that the paper's attack proves; points that are rejected unattacked this time are not counted."""
    rows = np.flatnonzero(result.records.contested)
    found = susceptibility(model, x[rows], result.records.predicted[rows], PAPER).test_A if len(rows) else 0
    return Rate(found, result.test_R)


def accuracies(network: Any, sigma: float, data: Any) -> dict[str, float]:
    """On all test images: the bare network's accuracy, clean and under one draw of noise each."""
    keras.utils.set_random_seed(0)
    trainer = NoisyTrainer(network, sigma=sigma)
    trainer.compile(metrics=["accuracy"], jit_compile=False)
    noisy = trainer.evaluate(data.x_test, data.y_test, batch_size=500, verbose=0, return_dict=True)["accuracy"]
    clean = np.mean(trainer.predict(data.x_test, batch_size=500, verbose=0).argmax(axis=1) == data.y_test)
    return {"network_accuracy": float(clean), "accuracy_under_noise": noisy}


def panel(name: str, figures: dict[str, Any], out: Path) -> Panel:
    """A net's log with the values that are written into its part of the figure."""
    found = {
        float(epsilon): max(row["fpr_lower"]["value"], row["fpr_lower_paper"]["value"])
        for epsilon, row in figures["eps"].items()
    }
    return Panel(read_log(out / f"{name}.tsv"), figures["ceiling"], tuple(found), found)


def table(results: dict[str, Any]) -> str:
    """The rates in percent, as Markdown."""
    lines = [f"| net | under noise | eps | {' | '.join(COLUMNS.values())} |", f"|---|---|---|{'---|' * len(COLUMNS)}"]
    for name, figures in results.items():
        for epsilon, row in figures["eps"].items():
            cells = [f"{100 * row[column]['value']:.1f}" for column in COLUMNS]
            noisy = f"{100 * figures['accuracy_under_noise']:.2f}"
            lines.append(f"| {name.replace('_', ' ')} | {noisy} | {epsilon} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smoothed")
    parser.add_argument("--points", type=int, default=300)
    parser.add_argument("--samples", type=int, default=5_000)
    parser.add_argument("--net", help="measure this net only, and make no table")
    arguments = parser.parse_args()
    results, panels = {}, {}
    for data_name, sigma in smoothed_nets.NETS:
        name = smoothed_nets.net_name(data_name, sigma)
        if arguments.net not in (None, name):
            continue
        results[name] = measure(name, data_name, sigma, arguments)
        title = f"{'Fashion-MNIST' if data_name == 'fashion_mnist' else 'MNIST'}, σ = {sigma:g}"
        panels[title] = panel(name, results[name], arguments.out)
    if arguments.net is not None:
        print(table(results))
        return
    atomic_write_text(arguments.out / "tables.json", json.dumps(results, indent=1) + "\n")
    atomic_write_text(arguments.out / "tables.md", table(results))
    atomic_write_bytes(arguments.out / "tables.png", to_png(draw_certification(panels)))
    print(table(results))


if __name__ == "__main__":
    tf.config.threading.set_inter_op_parallelism_threads(1)
    main()
