"""Results of CERTIFY, input by input, in the file format of Cohen et al.'s code: read, written, and summed up."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from defended._io import atomic_write_text
from defended.arguments import positive_number
from defended.smoothing.smoothed_net import SmoothedNet
from defended.statistics.rates import Array, InputFacts, exceeds

ABSTAIN = -1
"""What CERTIFY predicts where it can prove nothing."""

_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
_TIME = re.compile(r"(?:(\d+) days?, )?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)|(\d+(?:\.\d+)?)")


@dataclass(frozen=True, eq=False)
class CertificationLog:
    """Certified radii of `n` test inputs, l2, in input units; the arrays are read-only.

    Where a rate asks for "certified at eps", the ball is closed, as everywhere in this library: `radius > eps`, both in
    float32. Published figures count `radius >= eps`, and so does `strict=False`. The two differ where a radius is
    exactly eps, which happens in files with three digits.

    Args:
        index: `[n]`, each input's number in its data set.
        label: `[n]`, the true class, not negative.
        predicted: `[n]`, the class that was certified, or -1 where CERTIFY abstained.
        radius: `[n]` float64, finite and not negative; 0 where it abstained.
        seconds: `[n]` float64, time taken; 0 if left out.

    Raises:
        ValueError: when lengths differ, or a value is out of its range, naming the row.
    """

    index: Array
    label: Array
    predicted: Array
    radius: Array
    seconds: Array = field(default=None)  # type: ignore[arg-type]  # an array from `__post_init__` on

    def __post_init__(self) -> None:
        for name in ("index", "label", "predicted", "radius", "seconds"):
            values = getattr(self, name)
            if values is None:
                values = np.zeros(len(self.radius))
            whole = name not in ("radius", "seconds")
            object.__setattr__(self, name, _column(name, values, whole, len(self.index)))
        for name, wrong, what in (
            ("index", self.index < 0, "must not be negative"),
            ("label", self.label < 0, "must not be negative"),
            ("predicted", self.predicted < ABSTAIN, "must be a class, or -1 for an abstention"),
            ("radius", ~(np.isfinite(self.radius) & (self.radius >= 0)), "must be finite and not negative"),
            ("radius", (self.radius > 0) & (self.predicted == ABSTAIN), "must be 0 where `predicted` is -1"),
            ("seconds", ~(np.isfinite(self.seconds) & (self.seconds >= 0)), "must be finite and not negative"),
        ):
            if wrong.any():
                row = int(np.argmax(wrong))
                raise ValueError(f"`{name}` {what}. Received: {getattr(self, name)[row]} in row {row}, counted from 0")

    def __len__(self) -> int:
        return len(self.index)

    @property
    def correct(self) -> Array:
        """`[n]` bool, whether the certified class is the label."""
        return np.equal(self.predicted, self.label)

    @property
    def accuracy(self) -> float:
        """Share of inputs that are certified, at any radius, and correct."""
        return _mean(self.correct)

    @property
    def average_certified_radius(self) -> float:
        """Mean of the radii, 0 where wrong (Zhai et al. 2020)."""
        return _mean(np.where(self.correct, self.radius, 0.0))

    def certified(self, epsilon: float, strict: bool = True) -> Array:
        """Return whether the radius exceeds epsilon (`strict=False`: reaches it), `[n]` bool."""
        positive_number("epsilon", epsilon)
        return exceeds(self.radius, epsilon, strict)

    def vra(self, epsilon: float, strict: bool = True) -> float:
        """Return the verified-robust accuracy: the share of inputs that are correct and certified at epsilon."""
        return self._share("vra", epsilon, strict)

    def vra_2eps(self, epsilon: float, strict: bool = True) -> float:
        """Return the share of inputs that are correct and certified at 2 epsilon."""
        return self._share("vra_2eps", epsilon, strict)

    def rejection_rate(self, epsilon: float, strict: bool = True) -> float:
        """Return the share of inputs that a classifier defended at epsilon rejects."""
        return self._share("rejection_rate", epsilon, strict)

    def fpr_upper(self, epsilon: float, strict: bool = True) -> float:
        """Return the upper bound on the false positive rate, `1 - |r > 2 eps| / |r > eps|`, over all inputs.

        It is the share of the inputs answered at epsilon that a perturbation within epsilon might turn into a rejection
        (Leino et al. 2022, section 3); NaN where none is answered. It holds up to the probability that a certificate is
        wrong, alpha for each input.
        """
        return self._share("fpr_upper", epsilon, strict)

    def fpr_upper_correct(self, epsilon: float, strict: bool = True) -> float:
        """Return `fpr_upper` over the inputs that are certified and correct: the denominator of the paper's code."""
        return self._share("fpr_upper_correct", epsilon, strict)

    def _share(self, name: str, epsilon: float, strict: bool) -> float:
        """Return a rate of `defended.statistics.rates`; NaN where it is taken over no inputs."""
        positive_number("epsilon", epsilon)
        rate = InputFacts.at(self.radius, self.correct, epsilon, strict).rate(name)
        return float(rate) if rate.total else math.nan


def certify(model: SmoothedNet, x: ArrayLike, y: Any, *, index: Any = None, batch_size: int = 64) -> CertificationLog:
    """Run CERTIFY on labelled inputs and keep every class and radius, even those at or below the model's epsilon.

    Args:
        model: a `SmoothedNet` in mode `"fixed"`; its samples, alpha, sigma and seed are used.
        x: `[n, *input shape]`.
        y: `[n]`, class numbers.
        index: `[n]`, the inputs' numbers in their data set; 0, 1, ... if left out.
        batch_size: inputs that are judged together.

    Raises:
        ValueError: for a sequential model, whose radii end where it stopped sampling.
    """
    if model.mode != "fixed":
        raise ValueError(
            f"`certify` needs a model in mode 'fixed': a sequential one stops as soon as its epsilon is decided. "
            f"Received: mode={model.mode!r}. Make another SmoothedNet of the same network."
        )
    x = model._checked_inputs(x)
    predicted, radius, seconds = [np.zeros(0, int)], [np.zeros(0)], [np.zeros(0)]
    for first in range(0, len(x), batch_size):
        start = perf_counter()
        judged = model._judgement(np.asarray(x[first : first + batch_size], np.float32), frozen=False)
        proven = np.asarray(judged.radius, np.float64)
        votes = np.asarray(judged.scores)[:, :-1]
        # With a bound above 1/2 on its share, the candidate leads the votes.
        predicted.append(np.where(proven > 0, votes.argmax(axis=1), ABSTAIN))
        radius.append(proven)
        seconds.append(np.full(len(proven), (perf_counter() - start) / len(proven)))
    index = np.arange(len(x)) if index is None else index
    return CertificationLog(index, y, *map(np.concatenate, (predicted, radius, seconds)))


def read_log(path: str | os.PathLike[str]) -> CertificationLog:
    """Read a file of CERTIFY's results.

    It is tab-separated, one line per input, under the header `idx label predict radius correct time`; `time` is in
    seconds or as `h:mm:ss.ssssss`, `correct` is 0 or 1.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not such a file or was cut off, naming the line, the column and what was found.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a log of CERTIFY: it is not text in UTF-8 ({error.reason})") from None
    if not lines or tuple(lines[0].split("\t")) != _COLUMNS:
        found = repr(lines[0][:80]) if lines else "an empty file"
        raise ValueError(
            f"{path} is not a log of CERTIFY: its first line must be {' '.join(_COLUMNS)}, tab-separated. "
            f"Found: {found}"
        )
    rows = [_row(f"{path}, line {number}", line) for number, line in enumerate(lines[1:], start=2) if line]
    index, label, predicted, radius, seconds = zip(*rows, strict=True) if rows else ((),) * 5
    try:
        return CertificationLog(*map(np.array, (index, label, predicted, radius, seconds)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_log(path: str | os.PathLike[str], log: CertificationLog) -> Path:
    """Write a file that `read_log` and Cohen et al.'s analysis code read, whole or not at all, and return its path.

    Radii are written with all their digits: reading the file gives the same float64 numbers.
    """
    lines = ["\t".join(_COLUMNS)]
    for index, label, predicted, radius, correct, seconds in zip(
        log.index, log.label, log.predicted, log.radius, log.correct, log.seconds, strict=True
    ):
        time = timedelta(seconds=float(seconds))
        lines.append(f"{index}\t{label}\t{predicted}\t{float(radius)!r}\t{int(correct)}\t{time}")
    return atomic_write_text(path, "\n".join(lines) + "\n")


def _row(place: str, line: str) -> tuple[int, int, int, float, float]:
    cells = line.split("\t")
    if len(cells) != len(_COLUMNS):
        raise ValueError(
            f"{place}: expected {len(_COLUMNS)} tab-separated columns ({' '.join(_COLUMNS)}). Found {len(cells)}: "
            f"{line[:80]!r}. A file that was cut off ends like this: drop its last line."
        )
    values = dict(zip(_COLUMNS, cells, strict=True))
    index, label, predicted = (_number(place, name, values[name], int) for name in ("idx", "label", "predict"))
    radius = _number(place, "radius", values["radius"], float)
    if values["correct"] != str(int(label == predicted)):
        raise ValueError(
            f"{place}: `correct` must be 1 where label and predict agree and otherwise 0. Found: label {label}, "
            f"predict {predicted}, correct {values['correct']!r}"
        )
    return index, label, predicted, radius, _seconds(place, values["time"])


def _number(place: str, name: str, text: str, kind: Any) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{place}: `{name}` must be {what}. Found: {text!r}") from None


def _seconds(place: str, text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{place}: `time` must be seconds, or h:mm:ss as in 0:00:13.736080. Found: {text!r}")
    days, hours, minutes, seconds, alone = match.groups()
    if alone is not None:
        return float(alone)
    return 86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _column(name: str, values: Any, whole: bool, length: int) -> Array:
    array = np.array(values, dtype=None if np.size(values) else float)
    if array.shape != (length,):
        raise ValueError(f"`{name}` must have shape [{length}], as `index` has. Received: shape {array.shape}")
    if whole and not (np.all(np.isfinite(array)) and np.all(array == np.floor(array))):
        raise ValueError(f"`{name}` must hold whole numbers. Received: dtype {array.dtype}")
    array = array.astype(np.int64 if whole else np.float64)
    array.setflags(write=False)
    return array


def _mean(values: Array) -> float:
    return float(np.mean(values)) if len(values) else math.nan
