"""The whole path on scikit-learn's digits, offline: train twice, compare, export the better net, audit the artefact."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from keras.callbacks import LambdaCallback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from defended._io import atomic_write_text, canonical_json
from defended.attacks.gradient.certificate_descent import CertificateDescent
from defended.attacks.measurement.susceptibility import susceptibility
from defended.progress import shown
from defended.serving.auditing.audit import audit
from defended.serving.exporting.export import export, next_version
from defended.training.training_run import MODEL, TrainingRun, train
from defended_settings.training import TrainingSettings

if TYPE_CHECKING:
    from defended.attacks.measurement.result import Susceptibility
    from defended.serving.auditing.report import AuditReport
    from defended.statistics.intervals import Rate

EPSILON = 0.25
SETTINGS = {"plain": False, "doubled": True}

_TITLES = {"plain": "trained at ε", "doubled": "trained at 2ε"}
_ROWS = (
    ("clean_accuracy", "clean accuracy"),
    ("vra", "VRA at ε"),
    ("vra_2eps", "VRA at 2ε"),
    ("rejection_rate", "rejection rate"),
    ("fpr_lower", "FPR, at least"),
    ("fpr_upper", "FPR, at most"),
)
_LEGEND = """\
  VRA at ε        answered, rightly; no change within ε gets another answer
  VRA at 2ε       answered, rightly, at twice the radius too
  rejection rate  rejected without any attack
  FPR, at least   of the answers, those that the attack forced into rejections (false positive rate)
  FPR, at most    of the answers, those that no certificate protects from that
"""


class Demonstration(NamedTuple):
    """What the demo made: the figures of both nets, the name of the better one, its artefact and its audit."""

    figures: dict[str, Susceptibility]
    better: str
    artefact: Path
    report: AuditReport


def demonstrate(
    directory: str | os.PathLike[str] = "defended-demo",
    *,
    seed: int = 0,
    epochs: int = 60,
    console: Console | None = None,
) -> Demonstration:
    """Train a net at eps and one at 2 eps, attack both, export the one with the higher VRA at 2 eps, and audit it.

    VRA at 2 eps decides since, rounding aside, neither a wrong answer nor a forced rejection takes it away. A second
    run in the same folder finds the trained nets, and exports the next version; nothing is overwritten.

    Args:
        directory: where everything goes.
        seed: seed of the initial weights, the batches and the attack.
        epochs: epochs of each training.
        console: where to print.

    Raises:
        ValueError: the folder holds runs with another seed or number of epochs.
    """
    console = console or Console(highlight=False)
    folder, began = Path(directory), time.perf_counter()
    console.print(f"[bold]Digits, 8 × 8 pixels in 0…1; ε = {EPSILON} (l2)[/bold]. Everything goes to {folder}/")
    runs = {name: _train(folder / name, doubling, seed, epochs, console) for name, doubling in SETTINGS.items()}
    dataset = runs["plain"].dataset
    attack = CertificateDescent(steps=50, seed=seed)
    figures: dict[str, Susceptibility] = {}
    for name, run in runs.items():
        with console.status(f"attacking the net {_TITLES[name]}"):
            figures[name] = susceptibility(run.model, dataset.x_test, dataset.y_test, attack, progress=False)
    console.print(_comparison(figures, len(dataset.x_test)))
    console.print(_LEGEND)

    better = max(figures, key=lambda name: float(figures[name].vra_2eps))
    with console.status("exporting and auditing"), shown("exporting and auditing", wanted=False):
        artefact = export(
            runs[better].model, folder / "models", name="digits", version=next_version(folder / "models", "digits"),
            sample=dataset.x_test[:64], susceptibility=figures[better],
        )  # fmt: skip
        report = audit(
            artefact, dataset.x_test, dataset.y_test, model=runs[better].model, attack=attack, data_name="digits"
        )
    files = report.write(folder / "audit" / artefact.name)
    nets = {name: result.summary() for name, result in figures.items()}
    comparison = canonical_json({"epsilon": EPSILON, "better": better, "nets": nets})
    atomic_write_text(folder / "comparison.json", comparison)
    console.print(f"Exported and audited: the net [bold]{_TITLES[better]}[/bold], which has the higher VRA at 2ε.")
    for what, path in (
        ("artefact", artefact),
        ("audit report", files["report.html"]),
        ("the same as JSON", files["audit.json"]),
        ("the comparison", folder / "comparison.json"),
        ("the Keras models", folder / "*" / MODEL),
    ):
        console.print(f"  {what:17} {path}", soft_wrap=True)
    console.print(
        f"{time.perf_counter() - began:.0f} s. Next: the tutorial (docs/tutorial.md), and defended train --help"
    )
    return Demonstration(figures, better, artefact, report)


def _train(directory: Path, doubling: bool, seed: int, epochs: int, console: Console) -> TrainingRun:
    settings = TrainingSettings(
        data="digits",
        net="dense",
        epsilon=EPSILON,
        doubling=doubling,
        epochs=epochs,
        batch_size=128,
        learning_rate=3e-3,
        sharpen=True,
        seed=seed,
    )
    title = f"training the net {_TITLES[directory.name]}"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, shown("training", wanted=False):
        task = progress.add_task(title, total=epochs)
        watch = LambdaCallback(on_epoch_end=lambda epoch, logs: progress.update(task, completed=epoch + 1))
        run = train(settings, directory, extra_callbacks=[watch], verbose=0)
        progress.update(task, completed=epochs)
    if run.was_finished:
        console.print(f"  (found it trained in {directory}; delete that folder to train again)", soft_wrap=True)
    return run


def _comparison(figures: dict[str, Susceptibility], points: int) -> Table:
    table = Table(title=f"{points} test digits, with 95 % intervals", title_justify="left")
    table.add_column("")
    for name in figures:
        table.add_column(_TITLES[name], justify="right")
    for key, title in _ROWS:
        table.add_row(title, *(_percent(getattr(result, key)) for result in figures.values()))
    return table


def _percent(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * rate:.1f} % \\[{100 * low:.1f}, {100 * high:.1f}]"
