"""Which road signs can be silenced: the zoo's two nets for GTSRB, attacked on all test pictures, sign by sign.

    DEFENDED_DATA=path/to/data python benchmarks/road_signs.py [--points N]

Writes to `benchmarks/results/road_signs` for each net the figures (`NAME.json`), those of each sign
(`NAME-by-class.csv`) and, of both, `figures.md`; and the README's picture, `docs/assets/road-signs.png`. Both attacks
are measured: the paper's (Algorithm 3.1 as published) and the descent of the certificate. A run that was killed goes
on where it was.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from defended import datasets, zoo
from defended._io import atomic_write_bytes, atomic_write_text, canonical_json
from defended.attacks import CertificateDescent, DegradationAttack, Susceptibility, compare, susceptibility
from defended.figure_style import FPR, INK, MUTED, STYLE, to_png

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "road_signs"
NETS = ("gtsrb-6c2f-0.141", "gtsrb-6c2f-0.282")
SHOWN = (14, 17, 13, 12, 2, 28, 33)
"""Stop, no entry, yield, priority road, speed limit 50, children, turn right ahead."""


def picture(data: datasets.Dataset, result: Susceptibility) -> Figure:
    """Of each sign shown, the degraded picture with the most contrast, and the same silenced."""
    names, records = data.class_names, result.records
    assert names is not None
    index, inputs = result.adversarial.index, result.adversarial.inputs
    right = records.predicted[index] == records.label[index]
    columns = []
    for sign in SHOWN:
        found = np.flatnonzero((records.label[index] == sign) & right)
        if len(found):
            columns.append(max(found, key=lambda place: data.x_test[index[place]].std()))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.5 * len(columns) + 0.3, 3.9), layout="constrained")
        grid = figure.subplots(2, len(columns), squeeze=False)
        for column, place in enumerate(columns):
            row = index[place]
            pairs = ((data.x_test[row], names[records.predicted[row]], INK), (inputs[place], "⊥", FPR))
            for axes, (image, answer, colour) in zip(grid[:, column], pairs, strict=True):
                axes.imshow(image, interpolation="bicubic")
                axes.set_title(answer, color=colour, fontsize=11 if colour == INK else 15, fontweight="bold")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            grid[1, column].set_xlabel(f"‖δ‖₂ = {records.distance[row]:.2f}", color=MUTED, fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="test pictures, the first ones; all by default")
    points = parser.parse_args().points
    data = datasets.load("gtsrb")
    x, y = data.x_test[:points], data.y_test[:points]
    results = {}
    for net in NETS:
        model = zoo.load(net)
        attacks = {
            "CertificateDescent": CertificateDescent(steps=50, clip=(0.0, 1.0), early_stop=True),
            "Algorithm 3.1": DegradationAttack.published(model.epsilon),
        }
        for name, attack in attacks.items():
            kept = OUT / "unfinished" / f"{net}, {name}, {len(x)}"
            result = susceptibility(model, x, y, attack, batch_size=512, resume=kept)
            results[f"{net}, {name}"] = result
            print(result.to_table(), flush=True)
        descent = results[f"{net}, CertificateDescent"]
        classes = descent.by_class(data.class_names)
        print(f"\n{classes.sorted()}\n", flush=True)
        atomic_write_text(OUT / f"{net}-by-class.csv", classes.to_csv())
        atomic_write_text(OUT / f"{net}.json", canonical_json(descent.summary()))
    table = compare(results).to_table("paper", "markdown")
    atomic_write_text(OUT / "figures.md", table + "\n")
    print(table)
    drawn = picture(data._replace(x_test=x, y_test=y), results[f"{NETS[0]}, CertificateDescent"])
    atomic_write_bytes(ROOT / "docs" / "assets" / "road-signs.png", to_png(drawn))
    shutil.rmtree(OUT / "unfinished")


if __name__ == "__main__":
    main()
