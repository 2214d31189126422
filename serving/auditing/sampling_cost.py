"""What sampling costs, and how far an attacker can drive the cost."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from defended.progress import Forecast

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel
    from defended.serving.auditing.targets import Target

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Draws:
    """Noise draws, each an evaluation of the network, that inputs took.

    Attributes:
        quantiles: by probability.
        mean: their mean.
        at_the_cap: share of the inputs that took as many as are ever made; None where that number is not known.
    """

    quantiles: dict[float, int]
    mean: float
    at_the_cap: float | None


def draws(used: np.ndarray | None, cap: int | None) -> Draws | None:
    """Summarize draws `[n]`; None where they are not reported, or there are no inputs."""
    if used is None or not len(used):
        return None
    return Draws(
        {p: int(value) for p, value in quantiles(used).items()},
        float(used.mean()),
        None if cap is None else float((used >= cap).mean()),
    )


def quantiles(values: np.ndarray) -> dict[float, float]:
    """Return the `QUANTILES` of values, each one of them, by probability."""
    return {p: float(np.quantile(values, p, method="inverted_cdf")) for p in QUANTILES}


def cost_ratio(clean: Draws | None, attacked: Draws | None) -> float | None:
    """Return how many times the clean inputs' mean cost the attacked ones take; None where either is not known."""
    return None if clean is None or attacked is None else attacked.mean / max(clean.mean, 1.0)


def expected(target: Target, model: DefendedModel | None, x: np.ndarray) -> Forecast | None:
    """Return how long an audit on inputs `[n, ...]` is likely to take; None where answers are cheap or nothing tells.

    Measured on the Keras model, or by asking an artefact for two inputs. With a model, its answers are compared, and
    attacked inputs are judged twice.
    """
    if target.subject.sampling is None:
        return None
    if model is not None:
        return model.forecast(x, 3 * len(x))
    if target.subject.kind != "artefact":
        return None
    start = time.perf_counter()
    target.endpoint.predict(x[:2], target.richest)
    seconds = (time.perf_counter() - start) / len(x[:2]) * len(x)
    return Forecast(seconds, f"About {seconds:.2g} s are to be expected for {len(x):,} inputs, as the first two took.")
