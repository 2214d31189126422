"""Measure the nets of the zoo for their cards: `defended/pretrained/measured.json`.

    DEFENDED_DATA=path/to/data python benchmarks/cards.py [NAME ...]

Without names, every net whose file was not measured yet. GloRo Nets are measured on all test images, dual bounds and
smoothed nets, which take their time, on the first 500; a smoothed net draws 10,000 samples for each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from defended import datasets, zoo
from defended._io import atomic_write_text
from defended.pretrained import index
from defended.pretrained.cards import MEASURED, measured
from defended.statistics.intervals import Rate
from defended.statistics.rates import InputFacts

RATES = ("clean_accuracy", "vra", "vra_2eps", "rejection_rate", "fpr_upper")
FEW = 500


def measure(name: str) -> dict[str, Any]:
    """What the card of a net shows."""
    entry, data = index()[name], datasets.load(index()[name].data)
    few = entry.kind != "GloroNet"
    x, y = (data.x_test[:FEW], data.y_test[:FEW]) if few else (data.x_test, data.y_test)
    smoothed = entry.kind == "SmoothedNet"
    model = zoo.load(name, samples=10_000, seed=0) if smoothed else zoo.load(name)
    found = model.audit(x, batch_size=50 if few else 500)
    facts = InputFacts.at(
        found["certified_radius"],
        found["scores"].argmax(axis=-1) == y,
        float(model.epsilon),
        available=found["availability_radius"],
    )
    rates = {name: facts.rate(name) for name in RATES}
    number = "the first 500" if few else f"all {len(x):,}"
    return {
        "sha256": entry.sha256,
        "inputs": f"{number} test images" + (", 10,000 samples each" if smoothed else ""),
        "command": f"python benchmarks/cards.py {name}",
        "rates": {name: [rate.count, rate.total] for name, rate in rates.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(index())):
        parser.error(f"not in the zoo: {', '.join(unknown)}; there are {', '.join(sorted(index()))}")
    known = measured()
    stale = [name for name, entry in index().items() if known.get(name, {}).get("sha256") != entry.sha256]
    for name in names or stale:
        start = time.perf_counter()
        figures = measure(name)
        found = {**measured(), name: figures}
        atomic_write_text(MEASURED, json.dumps({name: found[name] for name in sorted(found)}, indent=1) + "\n")
        shares = ", ".join(f"{rate} {100 * float(Rate(*counts)):.2f}" for rate, counts in found[name]["rates"].items())
        print(f"{name}: {shares} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
