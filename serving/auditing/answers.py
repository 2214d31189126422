"""What an endpoint says of each input: verdicts, scores and radii, as checked arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from defended.exceptions import EndpointError

DEFAULT, AUDIT = "serving_default", "audit"

RADII = ("certified_radius", "neighbour_radius", "availability_radius")


class Answers(NamedTuple):
    """What an endpoint said of each input; None for what it does not report."""

    label: np.ndarray
    """`[n]` int64, -1 where rejected."""
    rejected: np.ndarray
    """`[n]` bool."""
    scores: np.ndarray | None
    """`[n, m]` float32."""
    radius: np.ndarray | None = None
    """`[n]` float64, certified radius."""
    neighbours: np.ndarray | None = None
    """`[n]` float64, for a guard: radius within which stored neighbours answer, above epsilon where they do; else 0."""
    availability: np.ndarray | None = None
    """`[n]` float64, availability radius: what is left above epsilon."""
    samples: np.ndarray | None = None
    """`[n]` int64, draws used."""
    reason: np.ndarray | None = None
    """`[n]` int32: 0 answered, 1 not certified, 2 not finite, 3 adversarial."""
    raw: Mapping[str, np.ndarray] = {}

    @classmethod
    def of(cls, raw: Mapping[str, np.ndarray]) -> Answers:
        """Return the answers that outputs by name hold, which `checked` has accepted."""
        label, rejected = raw["label"].astype(np.int64), raw["rejected"].astype(bool)
        radius, neighbours, left = (raw[name].astype(np.float64) if name in raw else None for name in RADII)
        further = raw.get("samples_used"), raw.get("reason"), raw
        return cls(label, rejected, raw.get("scores"), radius, neighbours, left, *further)

    @property
    def reach(self) -> np.ndarray | None:
        """The radius, above epsilon exactly where answered, by the certificate or by neighbours, `[n]` float64."""
        if self.radius is None or self.neighbours is None:
            return self.radius
        return np.maximum(self.radius, self.neighbours)

    @property
    def epsilon(self) -> float | None:
        """The radius defended, as the endpoint states it; None where it does not."""
        named = self.raw.get("epsilon")
        return None if named is None or not len(named) else float(named[0])

    @property
    def predicted(self) -> np.ndarray | None:
        """The class of the largest score, `[n]` int64; -1 where a score is not finite; None without scores."""
        if self.scores is None:
            return None
        return np.where(np.isfinite(self.scores).all(axis=1), self.scores.argmax(axis=1), -1)


def checked(answer: Mapping[str, ArrayLike], n: int, signature: str) -> dict[str, np.ndarray]:
    """Return the arrays of an answer; raise where no rejecting classifier would give them."""
    arrays = {name: np.asarray(value) for name, value in answer.items()}
    if "label" not in arrays:
        raise EndpointError(
            f"The signature {signature!r} must give `label` (-1 where rejected). It gives: {', '.join(sorted(arrays))}."
            " Is this a model that `defended export` made?"
        )
    label = arrays["label"]
    if label.shape != (n,) or label.dtype.kind not in "iu":
        raise EndpointError(
            f"`label` must hold {n} whole numbers. Received: {label.dtype} of shape {list(label.shape)}."
        )
    rejected = arrays.setdefault("rejected", label < 0)
    if rejected.shape != (n,) or (rejected.astype(bool) != (label < 0)).any():
        raise EndpointError("`rejected` must be true exactly where `label` is -1: the endpoint contradicts itself.")
    scores = arrays.get("scores")
    if scores is not None and (scores.ndim != 2 or len(scores) != n or scores.shape[1] < 2):
        raise EndpointError(f"`scores` must have the shape [{n}, m], m >= 2. Received: {list(scores.shape)}.")
    if scores is not None and n and int(label.max()) >= scores.shape[1]:
        raise EndpointError(f"`label` names class {int(label.max())}, and there are {scores.shape[1]} scores.")
    for name in (*RADII, "samples_used", "reason"):
        value = arrays.get(name)
        if value is not None and (value.shape != (n,) or not np.isfinite(value).all() or (n and value.min() < 0)):
            raise EndpointError(f"`{name}` must hold {n} finite numbers of at least 0. Received: {value!r}.")
    epsilon = arrays.get("epsilon")
    if epsilon is not None and (epsilon.shape != (n,) or (n and not 0 < epsilon.min() == epsilon.max() < np.inf)):
        raise EndpointError(f"`epsilon` must hold one positive number {n} times. Received: {epsilon!r}.")
    return arrays


def infer_epsilon(answers: Answers) -> float | None:
    """Return the epsilon behind two radii of an earlier version, `r - max(r - epsilon, 0)`, up to rounding.

    None where there is none.
    """
    if answers.radius is None or answers.reach is None or answers.availability is None:
        return None
    above = answers.availability > 0
    if not above.any():
        return None
    # The median: what rounding does to single differences does not move it.
    difference = (answers.reach - answers.availability)[above]
    found = float(np.median(difference))
    spread = np.abs(difference - found).max()
    return found if found > 0 and spread <= 1e-4 * max(found, float(answers.radius.max()) * 1e-2) else None
