"""Every benchmark that takes minutes, one after the other: one table of their figures, and what each printed.

    DEFENDED_DATA=… DEFENDED_REFERENCE=… python benchmarks/run_all.py [--quick] [--out FILE.md] [NAME ...]

The page begins with the machine, the versions of the packages and the table: quantity, ours, the peer's, the ratio ours
over theirs, and what is required of the ratio (without a peer, of the figure). FILE.json beside it holds the same. Then
comes each command with what it printed. A benchmark whose data are not here is named with the reason, and so is a peer
that is not installed. Let nothing else run meanwhile; `--quick` takes small settings, to see that everything works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import peers

from defended._io import atomic_write_text

FOLDER = Path(__file__).resolve().parent
PACKAGES = (
    "keras-defended", "tensorflow", "keras", "numpy", "scipy", "onnxruntime", "jax", "torch", "foolbox",
)  # fmt: skip
PEERS = {
    "gloro": "gloro",
    "art": "adversarial-robustness-toolbox",
    "convex_adversarial": "convex_adversarial",
}


class Benchmark(NamedTuple):
    """A script of this folder with its arguments, small ones instead for `--quick`, and what it needs."""

    script: str
    arguments: str = ""
    quick: str = ""
    data: bool = False
    reference: bool = False
    peers: tuple[str, ...] = ()


GATE = "--model benchmarks/results/smoothed/mnist_sigma_0.25.keras --points"
BENCHMARKS = {
    "import_time": Benchmark("import_time", quick="--rounds 1"),
    "training_step": Benchmark("training_step", quick="--steps 3 --rounds 1"),
    "inference": Benchmark("inference", "--seconds 5", "--seconds 0.2"),
    "attack_speed": Benchmark("attack_speed", quick="--points 64 --steps 5 --rounds 1 --batch-size 32"),
    "attack_suite": Benchmark("attack_suite", "--alone", "--alone --points 40", data=True, reference=True),
    "pgd_vs_foolbox": Benchmark(
        "pgd_vs_foolbox", quick="--points 32 --steps 5 --rounds 1", data=True, reference=True, peers=("foolbox",)
    ),
    "smoothing": Benchmark("smoothing", quick="--rounds 1 --samples 1000", peers=("torch",)),
    "smoothing_gate": Benchmark("smoothing", f"{GATE} 100", f"{GATE} 1", data=True),
    "smoothing_cost": Benchmark("smoothing_cost", quick="--epochs 1"),
    "kw_speed": Benchmark("kw_speed", quick="--points 8 --rounds 1", data=True, reference=True, peers=("torch",)),
    "export": Benchmark("export", quick="--points 100", data=True),
    "serving": Benchmark("serving", quick="--rounds 1 --seconds 1"),
    "audit_endpoint": Benchmark("audit_endpoint", quick="--points 200", data=True),
    "monitor_delay": Benchmark("monitor_delay", quick="--runs 5"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small settings: the figures mean little")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "benchmarks.md")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}")
    head, rows, pages, failed = header(arguments.quick), [], [], []
    for name in arguments.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        page, figures, fine = run(BENCHMARKS[name], arguments.quick)
        failed += [] if fine else [name]
        rows += [{"benchmark": name, **figure} for figure in figures]
        pages += [f"## {name}", "", *page, ""]
        # After each, so that what was measured stays if a later one is interrupted.
        atomic_write_text(arguments.out, "\n".join(["# Benchmarks", "", *head, "", *table(rows), "", *pages]))
        content = {"machine": head, "figures": rows}
        atomic_write_text(arguments.out.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"Written: {arguments.out}, {arguments.out.with_suffix('.json')}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def header(quick: bool) -> list[str]:
    """Date, machine and versions, those of the peers in their own environments too."""
    found = [f"{package} {version(package) if installed(package) else 'not installed'}" for package in PACKAGES]
    found += [peers.version(name, package) for name, package in PEERS.items()]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {processor()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} "
        f"cores, {platform.system()}, Python {platform.python_version()}. {'; '.join(found)}."
    ]
    return [*lines, "Small settings (`--quick`): the figures show that it runs, no more."] if quick else lines


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> bool:
    """Whether a package is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def run(benchmark: Benchmark, quick: bool) -> tuple[list[str], list[dict[str, Any]], bool]:
    """What a benchmark printed, as Markdown, its figures, and whether it went well, as one without its data does."""
    for wanted, variable in ((benchmark.data, "DEFENDED_DATA"), (benchmark.reference, "DEFENDED_REFERENCE")):
        if wanted and not os.environ.get(variable):
            return [f"Not run: it reads files from the folder that `{variable}` names."], [], True
    missing = [peer for peer in benchmark.peers if not installed(peer)]
    command = [f"benchmarks/{benchmark.script}.py", *shlex.split(benchmark.quick if quick else benchmark.arguments)]
    start = time.perf_counter()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        done = subprocess.run(
            [sys.executable, *command, "--json", path], capture_output=True, text=True, cwd=FOLDER.parent,
            env=environment,
        )  # fmt: skip
        figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    seconds = time.perf_counter() - start
    said = done.stdout if done.returncode == 0 else f"{done.stdout}\n{done.stderr[-2000:]}"
    failure = f", exit code {done.returncode}" if done.returncode else ""
    lines = [f"`python {shlex.join(command)}`, {seconds:.0f} s{failure}"]
    if missing:
        lines += ["", f"Without {', '.join(missing)}, which is not installed."]
    return [*lines, "", "```", said.strip(), "```"], figures, done.returncode == 0


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The figures, a row each; a requirement that is not kept stands in bold."""
    lines = ["| benchmark | quantity | ours | peer | theirs | ratio | required |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        required = row["required"] or ""
        if row["met"] is False:
            required = f"**{required}: not met**"
        theirs = "" if row["theirs"] is None else short(row["theirs"], row["unit"])
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.{2 if row['ratio'] >= 0.1 else 4}f}"
        ours = short(row["ours"], row["unit"])
        cells = (row["benchmark"], row["quantity"], ours, row["peer"] or "", theirs, ratio, required)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def short(value: float, unit: str) -> str:
    """A figure with its unit, to three digits or all before the point."""
    if unit.startswith("of the"):
        return f"{value:.2%} {unit}"
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"


if __name__ == "__main__":
    main()
