"""A server's request log as a target: what was answered to real traffic, which has no labels."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from defended.serving.auditing.answers import AUDIT, DEFAULT, Answers, checked
from defended.serving.auditing.strata import Stratum, stratum
from defended.serving.auditing.subject import Subject
from defended.serving.clients.logged_answers import LoggedAnswer, read_request_log
from defended.statistics.rates import InputFacts

_PATTERN = "*.tfrecord"

# At most this many files are strata of their own; where there are more, runs of files are taken together.
_PERIODS = 12

_OUTPUTS = ("label", "rejected", "scores", "reason", "samples_used")


def is_request_log(target: object) -> bool:
    """Return whether a path is a file or a folder of logged requests, judged by its names."""
    if not isinstance(target, str | os.PathLike) or str(target).partition("://")[1]:
        return False
    path = Path(target)
    return (path.is_file() and path.match(_PATTERN)) or (path.is_dir() and any(path.glob(_PATTERN)))


def read_log(
    path: str | os.PathLike[str], name: str | None, confidence: float
) -> tuple[Subject, Answers, dict[str, tuple[Stratum, ...]]]:
    """Read what a log holds about one model.

    Args:
        path: path of a file or a folder.
        name: name of the model; None where the log has only one.
        confidence: confidence level of the strata's intervals.

    Returns:
        The log as a subject, the answers, and strata by version and by time (one per file, as they were rotated).

    Raises:
        ValueError: the log is empty, or holds several models and `name` does not say which.
        RequestLogError: a record is damaged.
    """
    parts: list[dict[str, np.ndarray]] = []
    found: set[str] = set()
    files = sorted(Path(path).glob(_PATTERN)) if Path(path).is_dir() else [Path(path)]
    for number, file in enumerate(files):
        for answer in read_request_log(file):
            found.add(answer.model)
            if name in (None, answer.model):
                outputs, of_each = verdicts_of(answer), {"version": answer.version, "period": number}
                parts.append(outputs | {key: np.full(len(outputs["label"]), value) for key, value in of_each.items()})
    if len(found) > 1 and name is None:
        raise ValueError(f"{path} holds several models: {', '.join(sorted(found))}. Say which by `name`.")
    if not parts or not sum(len(part["label"]) for part in parts):
        whose = "" if name is None else f" of {name!r}; it has: {', '.join(sorted(found)) or 'none'}"
        raise ValueError(f"{path} holds no answers{whose}.")
    columns = {
        column: np.concatenate([part[column] for part in parts])
        for column in (*_OUTPUTS, "version", "period")
        if all(column in part for part in parts) and len({part[column].shape[1:] for part in parts}) == 1
    }
    version, period = columns.pop("version"), columns.pop("period")
    seen = np.unique(version)
    subject = Subject(
        kind="log",
        location=os.fspath(path),
        name=name or next(iter(found)),
        version=int(seen[0]) if len(seen) == 1 else None,
        num_classes=columns["scores"].shape[1] if "scores" in columns else None,
    )
    answers = Answers.of(columns)
    facts = InputFacts(answers.rejected)
    strata = {"version": tuple(stratum(f"version {v}", facts.of(version == v), confidence) for v in seen)}
    if len(files) > 1:
        groups = np.array_split(np.arange(len(files)), min(len(files), _PERIODS))
        strata["time"] = tuple(
            stratum(f"from {_when(files[group[0]])}", facts.of(np.isin(period, group)), confidence) for group in groups
        )
    return subject, answers, strata


def verdicts_of(answer: LoggedAnswer) -> dict[str, np.ndarray]:
    """Return the outputs of a logged answer that are about verdicts, checked as an endpoint's are."""
    signature = answer.signature or DEFAULT
    if "label" not in answer.outputs:
        what = "" if signature in (DEFAULT, AUDIT) else f" (signature {signature!r})"
        raise ValueError(
            f"The log holds an answer of {answer.model!r} without `label`{what}: not a rejecting classifier's."
        )
    outputs = checked(answer.outputs, len(answer.outputs["label"]), signature)
    return {name: outputs[name] for name in _OUTPUTS if name in outputs}


def _when(file: Path) -> str:
    """Return the time in a log file's name, or the name."""
    stamp = re.search(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", file.name)
    return "{}-{}-{} {}:{}:{} UTC".format(*stamp.groups()) if stamp else file.name
