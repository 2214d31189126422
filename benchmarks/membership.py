"""What a membership guard changes under attackers who know it, on MNIST and Fashion-MNIST: the tables in its results.

    DEFENDED_DATA=path/to/data python benchmarks/membership.py [--points 400] [--stored 10000] [--data mnist]
    DEFENDED_DATA=path/to/data python benchmarks/membership.py --evasion [--points 200] [--data mnist]

Two nets at l2 eps 0.3: the committed MNIST net (`results/mnist_2c2f/eps_0.3.keras`) and that of `membership_net.py`
on Fashion-MNIST. The inputs are the first test images that the net answers or rejects alike, `--points` of them.
For each guard a row says, of the same inputs:

- `fpr_lower`, `fpr_upper`: the share of answered inputs that an attack forces into a rejection, and the share that
  could be by the guard's own radii. `CertificateDescent` (50 steps, early stop) descends the guard's radius, through
  the oracle's distances; so this is the adaptive attack.
- `wrong_clean`, `wrong_attacked`: shares of all inputs that are answered with a class that is not theirs, as they are,
  and after an attack for just that: PGD on the margin of the true class, and descent towards the nearest stored point
  of another class, whichever succeeds.
- `flagged_clean`: of rejected clean inputs, those called adversarial: false accusations.
- `flagged_attacked`, `flagged_evading`: the same of rejected attacked inputs, when the attack runs to its end, and when
  it stops as soon as the input is rejected, as an attacker does who wants to go unnoticed.
- `ms_per_point`: one verdict in batches of 256, all inputs, on whatever machine this ran.

Worlds: `closed`: the inputs are stored themselves; `open`: training images are.

`--evasion` asks of the scores alone whether they betray an attacker, into `evasion_NAME.csv`. An input is *outside*
when its score is above the calibrated threshold. Attacks: `unaware` of the score, `CertificateDescent` to its end;
`stopping` as soon as an input is rejected; `evading`, `EvasiveDescent`, which descends through the score too.

- `outside_clean`: of all inputs, the share outside: false alarms.
- `forced_X`: of answered inputs, the share that attack X forces into a rejection; `outside_X`: the share of these
  rejections that lie outside.
- `unnoticed`: of answered inputs, the share that one of the attacks forces into a rejection that is neither outside nor
  called adversarial: what remains of the attack against an operator who looks at both.
- `wrong`, `wrong_inside`: of all inputs, the share that PGD turns into a wrong answer or that is answered wrongly as it
  is; and the share that `EvasiveDescent(goal="wrong answer")` brings to a wrong answer inside.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent / "results"
NETS = {
    "mnist": ROOT / "mnist_2c2f" / "eps_0.3.keras",
    "fashion_mnist": ROOT / "membership" / "fashion_mnist_eps_0.3.keras",
}
TRAINED, CALIBRATION, FEATURES = 57_000, 2000, 2000
FIELDS = (
    "data", "guard", "world", "points", "answered", "vra", "vra_attacked", "fpr_lower", "fpr_upper", "wrong_clean",
    "wrong_attacked", "flagged_clean", "flagged_attacked", "flagged_evading", "ms_per_point",
)  # fmt: skip

EVASION = (
    "data", "guard", "points", "outside_clean", "forced_unaware", "outside_unaware", "forced_stopping",
    "outside_stopping", "forced_evading", "outside_evading", "unnoticed", "wrong", "wrong_inside",
)  # fmt: skip


def guards(model: Any, data: Any, x: Any, y: Any, stored: int) -> Any:
    """Each guard with its name and world, final; None for the model alone."""
    from defended import MembershipGuard
    from defended.membership import MahalanobisScore, NearestNeighbourScore, StoredPoints

    known, classes = data.x_train[:stored], data.y_train[:stored]
    held_out = data.x_train[TRAINED : TRAINED + CALIBRATION]
    features = data.x_train[:FEATURES], data.y_train[:FEATURES]
    yield "none", "", model
    yield "StoredPoints, strict", "open", MembershipGuard(model, StoredPoints(known))
    yield "StoredPoints, strict", "closed", MembershipGuard(model, StoredPoints(x))
    yield "MahalanobisScore, strict", "open", MembershipGuard(model, MahalanobisScore(*features, held_out))
    yield "NearestNeighbourScore, strict", "open", MembershipGuard(model, NearestNeighbourScore(features[0], held_out))
    for separation in (None, 1.0, 2.0):
        name = f"StoredPoints, separated {separation or '2 eps'}"
        for world, points in (("open", (known, classes)), ("closed", (x, y))):
            guard = MembershipGuard(model, StoredPoints(*points), accept="separated", separation=separation)
            yield name, world, guard


def measure(model: Any, x: Any, y: Any, towards: Any) -> dict[str, float]:
    """The row of one guard, or of the model alone."""
    import numpy as np

    from defended.attacks import PGD, CertificateDescent, susceptibility

    found = susceptibility(model, x, y, CertificateDescent(early_stop=True), progress=False)
    start = time.perf_counter()
    clean = model.verdicts(x)
    seconds = time.perf_counter() - start
    pushed = [PGD(steps=50, loss="margin", seed=0)(model, x, y), towards]
    wrong = np.zeros(len(x), bool)
    for attacked in pushed:
        verdicts = model.verdicts(attacked)
        wrong |= ~verdicts.rejected & (verdicts.label != y)
    row = {
        "answered": 1 - float(found.rejection_rate),
        "vra": float(found.vra),
        "vra_attacked": float(found.vra_under_attack),
        "fpr_lower": float(found.fpr_lower),
        "fpr_upper": float(found.fpr_upper),
        "wrong_clean": float((~clean.rejected & (clean.label != y)).mean()),
        "wrong_attacked": float(wrong.mean()),
        "ms_per_point": 1e3 * seconds / len(x),
    }
    if hasattr(model, "reasons"):
        contested = ~clean.rejected & (clean.radius <= 2 * float(model.epsilon))
        row["flagged_clean"] = flagged(model, x)
        if contested.any():
            row["flagged_attacked"] = flagged(model, CertificateDescent()(model, x[contested]))
            row["flagged_evading"] = flagged(model, CertificateDescent(early_stop=True)(model, x[contested]))
    return row


def measure_evasion(guard: Any, x: Any, y: Any) -> dict[str, float]:
    """The row of a guard by a score: what an attacker can do who does not want to be noticed."""
    import numpy as np

    from defended.attacks import PGD, CertificateDescent, EvasiveDescent

    def outside(points: Any) -> Any:
        parts = [points[first : first + 256] for first in range(0, len(points), 256)]
        return np.concatenate([np.asarray(guard.oracle.excess(part)) for part in parts]) > 0

    def wrong(points: Any) -> Any:
        verdicts = guard.verdicts(points)
        return ~verdicts.rejected & (verdicts.label != y)

    answered = x[~guard.verdicts(x).rejected]
    unnoticed = np.zeros(len(answered), bool)
    row = {"outside_clean": float(outside(x).mean())}
    attacks = {
        "unaware": CertificateDescent(), "stopping": CertificateDescent(early_stop=True), "evading": EvasiveDescent(),
    }  # fmt: skip
    for name, attack in attacks.items():
        attacked = attack(guard, answered)
        reasons, out = guard.reasons(attacked), outside(attacked)
        forced = reasons != "answered"
        row[f"forced_{name}"] = float(forced.mean())
        row[f"outside_{name}"] = float(out[forced].mean()) if forced.any() else np.nan
        unnoticed |= (reasons == "not certified") & ~out
    quietly = EvasiveDescent(goal="wrong answer")(guard, x, y)
    row["unnoticed"] = float(unnoticed.mean())
    row["wrong"] = float((wrong(x) | wrong(PGD(steps=50, loss="margin", seed=0)(guard, x, y))).mean())
    row["wrong_inside"] = float(((wrong(x) & ~outside(x)) | (wrong(quietly) & ~outside(quietly))).mean())
    return row


def flagged(model: Any, x: Any) -> float:
    """Of the rejected among these, the share that is called adversarial; NaN where none is rejected."""
    import numpy as np

    reasons = model.reasons(x)
    rejected = reasons != "answered"
    return float((reasons[rejected] == "adversarial").mean()) if rejected.any() else np.nan


def towards_others(x: Any, y: Any, known: Any, classes: Any, epsilon: float) -> Any:
    """Each input moved by epsilon towards the nearest stored point of another class."""
    import numpy as np

    from defended.attacks.core.balls import place_inside

    flat, points = x.reshape(len(x), -1).astype(np.float64), known.reshape(len(known), -1).astype(np.float64)
    distances = np.square(flat).sum(1)[:, None] + np.square(points).sum(1)[None] - 2 * flat @ points.T
    distances[y[:, None] == classes[None]] = np.inf
    delta = points[distances.argmin(axis=1)] - flat
    delta *= epsilon / np.maximum(np.linalg.norm(delta, axis=1, keepdims=True), epsilon)
    return place_inside(x, (flat + delta).reshape(x.shape), epsilon, "l2", (0.0, 1.0))


def write_evasion(name: str, model: Any, data: Any, points: int, out: Path) -> None:
    """The rows of one data set."""
    x, y = data.x_test[:points], data.y_test[:points]
    with (out / f"evasion_{name}.csv").open("w", newline="") as stream:
        rows = csv.DictWriter(stream, EVASION, lineterminator="\n")
        rows.writeheader()
        for guard, _, guarded in guards(model, data, x, y, 1):
            if not hasattr(getattr(guarded, "oracle", None), "excess"):
                continue
            guarded.finalize()
            row: dict[str, Any] = {"data": name, "guard": guard.split(",")[0], "points": len(x)}
            row |= {key: f"{value:.4f}" for key, value in measure_evasion(guarded, x, y).items()}
            print(row, flush=True)
            rows.writerow(row)
            stream.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, help="400; 200 with --evasion")
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--data", choices=[*NETS], action="append")
    parser.add_argument("--evasion", action="store_true", help="measure whether scores betray who evades them")
    parser.add_argument("--out", type=Path, default=ROOT / "membership")
    arguments = parser.parse_args()

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    import defended

    for name in arguments.data or NETS:
        data = defended.datasets.load(name)
        model = keras.models.load_model(NETS[name], compile=False)
        if arguments.evasion:
            write_evasion(name, model, data, arguments.points or 200, arguments.out)
            continue
        points = arguments.points or 400
        x, y = data.x_test[:points], data.y_test[:points]
        known = data.x_train[: arguments.stored], data.y_train[: arguments.stored]
        towards = towards_others(x, y, *known, float(model.epsilon))
        with (arguments.out / f"{name}.csv").open("w", newline="") as stream:
            rows = csv.DictWriter(stream, FIELDS, lineterminator="\n")
            rows.writeheader()
            for guard, world, guarded in guards(model, data, x, y, arguments.stored):
                row: dict[str, Any] = {"data": name, "guard": guard, "world": world, "points": len(x)}
                try:
                    guarded.finalize()
                except ValueError as error:  # the separation does not hold
                    print(f"{name} {guard} {world}: {error}", flush=True)
                    continue
                row |= {key: f"{value:.4f}" for key, value in measure(guarded, x, y, towards).items()}
                print(row, flush=True)
                rows.writerow(row)
                stream.flush()


if __name__ == "__main__":
    main()
