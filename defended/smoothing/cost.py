"""What an answer of a smoothed model costs: its rate measured, and its gate played on the shares of the votes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from defended.progress import Forecast
from defended.smoothing.bounds import Array
from defended.smoothing.gate import Gate

_DRAWS, _GAMES = 256, 200


class Cost(NamedTuple):
    """Draws, each an evaluation of the network, and seconds that one answer takes; `print` shows them in words.

    What is typical was estimated on a few inputs, and is likely for inputs like them; no answer takes more than `most`
    draws. Seconds are those of this machine as busy as it was.
    """

    draws: int
    """The median."""
    mean_draws: float
    """What many answers take each: inputs beside the threshold take thousands of times what others do."""
    most_draws: int
    """The cap, `samples + selection_samples`."""
    seconds: float
    mean_seconds: float
    most_seconds: float
    measured: int
    """On so many inputs."""

    def __str__(self) -> str:
        return (
            f"An answer typically takes {self.draws:,} draws in {self.seconds:.2g} s, on average "
            f"{self.mean_draws:,.0f} in {self.mean_seconds:.2g} s, at most {self.most_draws:,} in "
            f"{self.most_seconds:.2g} s (measured on {self.measured} inputs)."
        )

    def of(self, answers: int) -> Forecast:
        """Return how long so many answers are likely to take."""
        seconds = self.mean_seconds * answers
        words = f"About {seconds:.2g} s are to be expected for {answers:,} answers. {self}"
        return Forecast(seconds, words)


def cost(count: Callable[[Array, int], Array], gate: Gate, selection: int, inputs: Array) -> Cost:
    """Measure a rate, estimate the share of each input's leader, and play the gate with coins of that share.

    Args:
        count: returns votes `[n, m]` of so many draws for inputs `[n, ...]`.
        gate: decides when an answer stops.
        selection: draws that choose the candidate, before the gate looks.
        inputs: `[n, ...]`, n at least 1.
    """
    count(inputs, 2)  # the graph is made here
    start = time.perf_counter()
    votes = count(inputs, _DRAWS)
    rate = (time.perf_counter() - start) / (_DRAWS * len(inputs))
    draws = selection + np.concatenate([stops(gate, (row.max() + 0.5) / (_DRAWS + 1)) for row in votes])
    typical, mean, most = int(np.median(draws)), float(draws.mean()), selection + int(gate.checkpoints[-1])
    return Cost(typical, mean, most, rate * typical, rate * mean, rate * most, len(inputs))


def stops(gate: Gate, share: float, games: int = _GAMES) -> Array:
    """Return the draws `[games]` after which the gate decides on a candidate that each draw votes for with `share`."""
    steps = np.diff(gate.checkpoints, prepend=0)
    counts = np.random.default_rng(0).binomial(steps, share, size=(games, len(steps))).cumsum(axis=1)
    decided = (counts >= gate.answer) | (counts <= gate.futile)
    stop: Array = gate.checkpoints[decided.argmax(axis=1)]
    return stop
