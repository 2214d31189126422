"""Every benchmark, one after the other, and one page of what they printed.

    DEFENDED_DATA=… DEFENDED_REFERENCE=… python benchmarks/run_all.py [--out FILE.md] [NAME ...]

Writes the machine, the versions of the packages, and each command with what it printed. A benchmark whose data or peers
are not here is named with the reason. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from defended._io import atomic_write_text

FOLDER = Path(__file__).parent
PACKAGES = (
    "keras-defended", "tensorflow", "keras", "numpy", "onnxruntime", "jax",
    "torch", "foolbox", "adversarial-robustness-toolbox", "gloro",
)  # fmt: skip


class Benchmark(NamedTuple):
    """A script of this folder with its arguments, and what it needs."""

    arguments: tuple[str, ...] = ()
    data: bool = False
    reference: bool = False
    peers: tuple[str, ...] = ()


BENCHMARKS = {
    "import_time": Benchmark(),
    "training_step": Benchmark(),
    "inference": Benchmark(),
    "attack_speed": Benchmark(),
    "smoothing": Benchmark(peers=("torch",)),
    "pgd_vs_foolbox": Benchmark(data=True, reference=True, peers=("foolbox",)),
    "attack_suite": Benchmark(data=True, reference=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "benchmarks.md")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    page, failed = [*header(), ""], []
    for name in arguments.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        lines, fine = run(name, BENCHMARKS[name])
        failed += [] if fine else [name]
        page += [f"## {name}", "", *lines, ""]
        atomic_write_text(arguments.out, "\n".join(page))
    print(f"Written: {arguments.out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def header() -> list[str]:
    """Date, machine and versions."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    return [
        "# Benchmarks",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}. {'; '.join(found)}.",
    ]


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def run(name: str, benchmark: Benchmark) -> tuple[list[str], bool]:
    """What a benchmark printed, as Markdown, and whether it went well; one that cannot run here did not fail."""
    for wanted, variable in ((benchmark.data, "DEFENDED_DATA"), (benchmark.reference, "DEFENDED_REFERENCE")):
        if wanted and not os.environ.get(variable):
            return [f"Not run: it reads files from the folder that `{variable}` names."], True
    missing = [peer for peer in benchmark.peers if not installed(peer)]
    command = [f"benchmarks/{name}.py", *benchmark.arguments]
    start = time.perf_counter()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=FOLDER.parent, env=environment
    )
    seconds = time.perf_counter() - start
    said = done.stdout if done.returncode == 0 else f"{done.stdout}\n{done.stderr[-2000:]}"
    lines = [
        f"`python {' '.join(command)}`, {seconds:.0f} s" + (f", exit code {done.returncode}" * (done.returncode != 0))
    ]
    if missing:
        lines.append(f"Without {', '.join(missing)}, which is not installed.")
    return [*lines, "", "```", said.strip(), "```"], done.returncode == 0


def installed(package: str) -> bool:
    """Whether a package is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
