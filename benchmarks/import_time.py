"""Measures what `import defended` costs over `import keras`.

Command: python benchmarks/import_time.py

Each import runs in a fresh interpreter, the two in turn, after one unmeasured round that fills the file cache.
"""

import argparse
import statistics
import subprocess
import sys

SNIPPET = "import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Return how long one fresh interpreter takes to import ``module``."""
    run = subprocess.run(
        [sys.executable, "-c", SNIPPET.format(module=module)], capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print the median of each import, and of their differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds("keras"), seconds("defended")
    pairs = [(seconds("keras"), seconds("defended")) for _ in range(rounds)]
    keras_time, defended_time = (statistics.median(column) for column in zip(*pairs, strict=True))
    extra = statistics.median(b - a for a, b in pairs)
    print(f"import keras     {keras_time:6.2f} s (median of {rounds})")
    print(f"import defended  {defended_time:6.2f} s")
    print(f"difference       {extra:6.2f} s (median of the pairs; target: at most 0.30 s)")


if __name__ == "__main__":
    main()
