"""What each attack finds on the MNIST net of the paper's authors, in how much time, and with how much memory.

    DEFENDED_REFERENCE=... DEFENDED_DATA=... python benchmarks/attack_suite.py [--points 2000] [--slow] [--out DIR]

For the first test points, at eps 0.3, in one run: the false positive rate's lower bound among the certified and correct
(the denominator of the authors' code) with its interval, and milliseconds for each attacked point, compiled before the
clock starts. `--slow` adds attacks that take seconds a point. Then the peak memory of a measurement of the first half
and of all points, and PGD against foolbox's on several networks (`pgd_vs_foolbox.py`), if foolbox is installed and not
`--alone`. `--out` keeps the table as CSV.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import numpy as np

import defended
from defended import attacks
from defended._io import atomic_write_text
from defended.attacks import compare, susceptibility

HERE = Path(__file__).parent
EPSILON, BATCH = 0.3, 512
# What each must find of the answers at 2,000 points, and in how much time.
LIMITS = {
    "CertificateDescent": {"found": 0.19, "milliseconds": 5},
    "Ensemble": {"found": 0.192},
}
# Not run twice, so their compilation counts.
SLOW = (
    "Ensemble",
    "Algorithm 3.1, Carlini-Wagner",
    "Square, 1000 queries of the ⊥ score",
    "DecisionAttack, 1000 queries",
)


def reference() -> tuple[Any, Any]:
    model = defended.load_gloronet(str(Path(os.environ["DEFENDED_REFERENCE"]) / "gloro" / "mnist_0.3_N.gloronet"))
    model.epsilon = EPSILON
    return model, defended.datasets.load("mnist")


def suite(slow: bool) -> dict[str, Any]:
    degradation, pgd = attacks.DegradationAttack, attacks.PGD
    found = {
        "authors' script": degradation.published(EPSILON),
        "Appendix B, PGD at eps": attacks.EpsilonPGD(),
        "Algorithm 3.1, PGD": degradation(pgd()),
        "Algorithm 3.1, PGD, margin, cosine steps": degradation(pgd(loss="margin", schedule="cosine", step_size=0.2)),
        "Algorithm 3.1, APGD, DLR": degradation(attacks.APGD(steps=50)),
        "CertificateDescent, to the end": attacks.CertificateDescent(),
        "CertificateDescent": attacks.CertificateDescent(early_stop=True),
        "Ensemble": attacks.Ensemble(),
    }
    if slow:
        found |= {
            "Algorithm 3.1, Carlini-Wagner": degradation(attacks.CarliniWagner()),
            "Square, 1000 queries of the ⊥ score": attacks.SquareAttack(queries=1000, objective="certificate"),
            "DecisionAttack, 1000 queries": attacks.DecisionAttack(queries=1000),
            "CertificateDescent, 100 steps, 3 targets, 2 starts": attacks.CertificateDescent(
                steps=100, targets=3, restarts=2, early_stop=True
            ),
        }
    return found


def peak_memory(points: int) -> float:
    """MiB at the most in a process of its own that measures so many points, read from a mapped file."""
    code = (
        "import resource, sys, tempfile, numpy as np; sys.path.insert(0, sys.argv[1]); import attack_suite as a\n"
        "model, data = a.reference()\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    n = int(sys.argv[2]); np.save(folder + '/x.npy', data.x_test[:n]); y = data.y_test[:n]; del data\n"
        "    x = np.load(folder + '/x.npy', mmap_mode='r')\n"
        "    a.susceptibility(model, x, y, a.attacks.CertificateDescent(early_stop=True), resume=folder + '/run')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(HERE), str(points)], capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--alone", action="store_true", help="without foolbox")
    figures.add_option(parser)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    model, data = reference()
    x, y = data.x_test[: arguments.points], data.y_test[: arguments.points]
    verdicts = model.verdicts(x)
    contested = x[~verdicts.rejected & (verdicts.radius <= np.float32(2 * EPSILON))]

    results, found = {}, figures.Figures()
    print(f"mnist_0.3_N at eps {EPSILON}, the first {len(x)} test points, {os.cpu_count()} cores")
    print(f"{'attack':52s} {'found':>7s}  {'95 % interval':16s} {'ms a point':>10s}")
    for name, attack in suite(arguments.slow).items():
        # What the measurement will use is compiled first, on the same batches.
        for first in range(0, len(contested), BATCH):
            part = contested[first : first + BATCH]
            model.verdicts(attack(model, part) if name not in SLOW else part)
        result = results[name] = susceptibility(model, x, y, attack, batch_size=BATCH)
        low, high = result.fpr_lower_correct.interval
        interval = f"[{100 * low:5.2f}, {100 * high:5.2f}]"
        print(
            f"{name:52s} {result.fpr_lower_correct:7.2%}  {interval:16s} {1000 * result.seconds_per_point:10.2f}",
            flush=True,
        )
        limits = LIMITS.get(name, {})
        found.add(f"{name}, degraded", result.fpr_lower_correct, "of the answers", at_least=limits.get("found"))
        spent = 1000 * result.seconds_per_point
        found.add(f"{name}, {len(x)} points", spent, "ms a point", at_most=limits.get("milliseconds"))
    print(f"{'certificate at 2 eps, upper bound':52s} {result.fpr_upper_correct:7.2%}")
    if arguments.out:
        atomic_write_text(arguments.out / "attack_suite.csv", compare(results).to_table("figures", "csv"))

    sizes = arguments.points // 2, arguments.points
    peaks = [peak_memory(points) for points in sizes]
    print(f"peak memory: {peaks[0]:.0f} MiB for {sizes[0]} points and {peaks[1]:.0f} MiB for {sizes[1]} points")
    half = {"peer": f"itself on {sizes[0]}", "theirs": peaks[0]}
    found.add(f"peak memory, {sizes[1]} points", peaks[1], "MiB", **half, at_most=1.05)
    found.write(arguments.json)
    if not arguments.alone and importlib.util.find_spec("foolbox"):
        subprocess.run([sys.executable, HERE / "pgd_vs_foolbox.py"], check=True)


if __name__ == "__main__":
    main()
