"""Limits on an audit's figures, read from TOML, and the verdict that they give."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from defended.exceptions import ConditionsError
from defended.serving.auditing.record import DecisionRecord, Number
from defended.statistics.intervals import Rate

Sense = Literal["proven", "measured", "refuted"]
Status = Literal["PASS", "WARN", "FAIL"]
Verdict = Literal["PASS", "WARN", "FAIL", "NOT JUDGED"]

# Figures that a condition may name, and what they are; the first group are shares.
SHARES = {
    "rejection_rate": "clean inputs rejected",
    "worst_class_rejection_rate": "clean inputs rejected, of the class that is rejected most",
    "worst_confidence_rejection_rate": "clean inputs rejected, of the confidence stratum that is rejected most",
    "clean_accuracy": "inputs whose largest score is the right class",
    "accuracy_on_answered": "answers that are right",
    "vra": "inputs answered rightly",
    "vra_2eps": "inputs answered rightly, and certified at twice epsilon",
    "always_answered": "inputs that cannot be forced into a rejection",
    "fpr_lower": "answers that the replayed attack forced into rejections",
    "fpr_upper": "answers not proven to hold out",
    "fpr_lower_correct": "right answers that the replayed attack forced into rejections",
    "fpr_upper_correct": "right answers not proven to hold out",
    "vra_under_attack": "inputs still answered rightly after the replayed attack",
    "utility_reduction": "right answers lost to the replayed attack",
    "black_box_fpr": "answers that the attack on the endpoint forced into rejections",
}
NUMBERS = {
    "epsilon": "the radius defended, in input units",
    "draws_ratio": "mean draws under attack, relative to clean inputs'",
    "draws_mean": "mean draws of a clean input",
}
METRICS = SHARES | NUMBERS


class Condition(BaseModel):
    """A limit on one figure.

    Attributes:
        max: the figure must not be above it.
        min: the figure must not be below it.
        warn: a stricter limit, on the same side, whose breach is a warning.
        sense: which end of the interval is compared. `"proven"`: the worse one, so that a pass means that the data show
            the limit to hold. `"measured"`: the figure itself. `"refuted"`: the better one, so that a failure means
            that the data show the limit to be broken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max: Number | None = None
    min: Number | None = None
    warn: Number | None = None
    sense: Sense = "proven"

    @model_validator(mode="after")
    def _one_side(self) -> Condition:
        if (self.max is None) == (self.min is None):
            raise ValueError("give one of `max` and `min`, such as { max = 0.05, warn = 0.03 }")
        for side, limit, sign, how in (("max", self.max, 1, "most"), ("min", self.min, -1, "least")):
            if self.warn is not None and limit is not None and sign * (self.warn - limit) > 0:
                raise ValueError(
                    f"`warn` must be stricter than `{side}` = {limit:g}, so at {how} that; it is {self.warn:g}"
                )
        return self


def read_conditions(path: str | os.PathLike[str]) -> dict[str, Condition]:
    """Read the table `[conditions]` of a TOML file: figures by name, each a `Condition`.

    ```toml
    [conditions]
    rejection_rate = { max = 0.05, warn = 0.03 }
    fpr_upper = { max = 0.30, sense = "measured" }
    vra = { min = 0.90 }
    ```

    Raises:
        ConditionsError: the file cannot be read, is not TOML, has unknown keys, or holds a limit that is not one.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConditionsError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConditionsError(f"{path} is not TOML: {error}.") from error
    unknown = sorted(set(content) - {"conditions"})
    table = content.get("conditions")
    if unknown or not isinstance(table, dict) or not table:
        problem = f"has unknown keys: {', '.join(unknown)}" if unknown else "has no table [conditions] with a limit"
        raise ConditionsError(
            f"{path} {problem}. Write [conditions], and below it limits such as vra = {{ min = 0.9 }}."
        )
    return parse_conditions(table, str(path))


def parse_conditions(table: Mapping[str, Any], where: str = "`conditions`") -> dict[str, Condition]:
    """Return the conditions by figure, from dicts such as `{"vra": {"min": 0.9}}` or from `Condition` objects.

    Raises:
        ConditionsError: naming every fault.
    """
    found, faults = {}, []
    for metric, value in table.items():
        if metric not in METRICS:
            faults.append(f"{metric}: no such figure. Known: {', '.join(METRICS)}")
            continue
        try:
            condition = Condition.model_validate(value)
        except ValidationError as error:
            faults += [_fault(metric, detail) for detail in error.errors()]
            continue
        limits = [limit for limit in (condition.max, condition.min, condition.warn) if limit is not None]
        if metric in SHARES and not all(0 <= limit <= 1 for limit in limits):
            faults.append(
                f"{metric}: a share lies between 0 and 1 (5 % is 0.05). Received: {', '.join(map(str, limits))}"
            )
            continue
        found[metric] = condition
    if faults:
        raise ConditionsError(f"{where} cannot be used: {'; '.join(faults)}.")
    return found


def suggest(figures: Mapping[str, float | None]) -> str:
    """Return a table `[conditions]`, as TOML, of limits to begin with: those that rates keep now, in whole percent.

    Args:
        figures: by name; where none is a rate that leaves room for a limit, the table holds an example.
    """
    lines = []
    for metric, side in (("rejection_rate", "max"), ("vra", "min"), ("fpr_upper", "max")):
        rate = figures.get(metric)
        if isinstance(rate, Rate) and rate.total:
            low, high = rate.interval
            limit = math.ceil(100 * high) / 100 if side == "max" else math.floor(100 * low) / 100
            lines += [f"{metric} = {{ {side} = {limit:g} }}"] if 0 < limit < 1 else []
    return "\n".join(["[conditions]", *(lines or ["rejection_rate = { max = 0.1 }"])])


def decide(conditions: Mapping[str, Condition], figures: Mapping[str, float | None]) -> tuple[DecisionRecord, ...]:
    """Compare figures with their conditions; a figure that is not known fails (fail closed).

    Args:
        conditions: by figure.
        figures: by name; for a `Rate`, the interval counts; for any other number, the number itself.
    """
    return tuple(_decide(metric, condition, figures.get(metric)) for metric, condition in conditions.items())


def _decide(metric: str, condition: Condition, value: float | None) -> DecisionRecord:
    upper = condition.max is not None
    limit = condition.max if upper else condition.min
    assert limit is not None  # noqa: S101  (validated: one of the two)
    written = f"{'max' if upper else 'min'} {_number(metric, limit)}"
    decided = partial(DecisionRecord, metric=metric, limit=written, sense=condition.sense)
    if value is None or (isinstance(value, Rate) and value.total == 0):
        message = f"{METRICS[metric]}: not known from this audit, so the limit cannot be shown to hold."
        return decided(value=None, compared=None, status="FAIL", message=message)
    compared = _compared(value, condition.sense, upper)
    sign = 1 if upper else -1
    if sign * (compared - limit) > 0:
        status: Status = "FAIL"
    elif condition.warn is not None and sign * (compared - condition.warn) > 0:
        status = "WARN"
    else:
        status = "PASS"
    end = {"proven": "worse end", "refuted": "better end"}.get(condition.sense)
    detail = f", {end} of the interval {_number(metric, compared)}" if end and isinstance(value, Rate) else ""
    against = f" (warning at {_number(metric, condition.warn)})" if condition.warn is not None else ""
    message = f"{METRICS[metric]}: {_number(metric, value)}{detail}; limit {written}{against}."
    return decided(value=float(value), compared=float(compared), status=status, message=message)


def _compared(value: float, sense: Sense, upper: bool) -> float:
    if not isinstance(value, Rate) or sense == "measured":
        return float(value)
    low, high = value.interval
    return high if upper == (sense == "proven") else low


def _number(metric: str, value: float) -> str:
    return f"{100 * value:.2f} %" if metric in SHARES else f"{value:.4g}"


def _fault(metric: str, detail: Any) -> str:
    place = ".".join([metric, *map(str, detail["loc"])])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "literal_error":
        message = f"must be one of {', '.join(get_args(Sense))}"
    received = "" if detail["type"] == "value_error" else f". Received: {detail['input']!r}"
    return f"{place}: {message}{received}"
