"""Measures what `import defended` costs over `import keras`.

Command: python benchmarks/import_time.py

Each round is a fresh interpreter that imports keras first and defended then, so that both are timed under the same load
and what they share is counted once. A first, unmeasured round fills the file cache.
"""

import argparse
import statistics
import subprocess
import sys

import figures

SNIPPET = """
import time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import defended
print(middle - start, time.perf_counter() - middle)
"""


def seconds() -> tuple[float, float]:
    """Return how long a fresh interpreter takes to import keras, and then defended."""
    run = subprocess.run([sys.executable, "-c", SNIPPET], capture_output=True, text=True, check=True)
    keras_time, defended_time = map(float, run.stdout.split()[-2:])
    return keras_time, defended_time


def main() -> None:
    """Print the median of each import."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    figures.add_option(parser)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    seconds()
    keras_time, defended_time = (
        statistics.median(column) for column in zip(*(seconds() for _ in range(rounds)), strict=True)
    )
    print(f"import keras          {keras_time:6.2f} s (median of {rounds})")
    print(f"import defended then  {defended_time:6.2f} s ({defended_time / keras_time:.1%}; target: at most 0.30 s)")
    found = figures.Figures()
    found.add("import defended, over import keras", defended_time, "s", at_most=0.3)
    found.write(arguments.json)


if __name__ == "__main__":
    main()
