"""What an oracle of valid inputs must provide: the protocol between oracles and `MembershipGuard`."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import ArrayLike

from defended.defended_model import DefendedModel

Array = np.ndarray[Any, np.dtype[Any]]


class Nearest(NamedTuple):
    """How near an oracle found valid inputs, in the model's norm; tensors `[batch]` float32, infinite where none is."""

    own: Any
    """An upper bound on the distance to the nearest valid input of the predicted class."""
    other: Any
    """Distance to the nearest valid input of another class: for a complete search a lower bound, so that a larger value
    proves that there is none nearer; otherwise the distance to one that was found."""


class MembershipOracle(keras.layers.Layer):
    """A source of valid inputs, as section 4.2 of Leino et al. (2022) asks for.

    It knows either *points* that are valid (`StoredPoints`), and then searches them all, or a *score* that is high
    where an input is not valid (`MahalanobisScore`, `NearestNeighbourScore`), and then looks for a valid
    input by descent.

    Attributes:
        is_complete: whether a search misses nothing. Only then can `MembershipGuard` answer more than its model does.
        in_graph: whether the search is part of the graph, so that it can be exported.
    """

    is_complete = False
    in_graph = True

    def __init__(self, name: str | None = None, **kwargs: Any):
        super().__init__(name=name, trainable=False, **kwargs)

    def _fixed_weight(
        self, name: str, shape: tuple[int, ...], dtype: str | None = None, initializer: Any = "zeros"
    ) -> keras.Variable:
        """Return a new variable that only `prove` and files set."""
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, dtype=dtype, trainable=False, autocast=False
        )

    @abstractmethod
    def bind(self, model: DefendedModel) -> None:
        """Raise a ValueError unless the oracle fits the model: its input shape, norm and classes."""

    @abstractmethod
    def prove(self, model: DefendedModel) -> None:
        """Compute what depends on the model's weights as they are now: labels, statistics, a threshold."""

    def blur(self, model: Any, inputs: Any, reach: Any) -> Any:
        """Return how far a complete search may be off for inputs `[batch, ...]` and all points within `reach` of them.

        Distances d are reported from `sqrt(d^2 - blur^2)` to `sqrt(d^2 + blur^2)`, roundings of 2^-19 apart; `[batch]`,
        or 0 for a search that has no such error.
        """
        return 0.0

    @abstractmethod
    def nearest(
        self, model: DefendedModel, inputs: Any, predicted: Any, radius: Any, reach: Any, budget: int
    ) -> Nearest:
        """Search around inputs `[batch, *input shape]`, in the graph.

        Args:
            model: the one whose labels count.
            inputs: finite or not; what is returned for inputs that are not finite is never used.
            predicted: `[batch]` int32, the class that the model gives each input.
            radius: scalar, the ball that a valid input of another class is looked for in.
            reach: scalar, at least `radius`: the distance up to which distances matter.
            budget: steps of a descent; a search of points is one step.
        """

    def describe(self) -> str:
        """Return what the oracle knows, in words for a manifest."""
        return type(self).__name__


def finite_points(name: str, x: ArrayLike, domain: tuple[float, float] | None = None) -> Array:
    """Return `x` as a float32 array `[n, ...]` of one or more finite points in the domain, or raise a ValueError."""
    x = np.asarray(x)
    if x.ndim < 2 or not len(x):
        raise ValueError(
            f"`{name}` must hold at least one point, [n, *input shape]: an oracle without points knows nothing. "
            f"Received: shape {x.shape}"
        )
    if x.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must hold real numbers. Received: dtype {x.dtype}")
    x = np.ascontiguousarray(x, np.float32)
    finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite: {int((~finite).sum())} of {len(x)} points hold NaN or infinity, the first at "
            f"index {int(np.argmin(finite))}. Leave them out."
        )
    if domain is not None and (x.min() < np.float32(domain[0]) or x.max() > np.float32(domain[1])):
        raise ValueError(
            f"`{name}` must lie in the domain {domain}, as valid inputs do. Received: values from {x.min():g} to "
            f"{x.max():g}. Scale them as in training, or say `domain=None` or another one."
        )
    return x


def class_numbers(name: str, y: ArrayLike, n: int) -> Array:
    """Return `y` as `[n]` int32 class numbers, or raise a ValueError."""
    y = np.asarray(y)
    if y.shape != (n,) or y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(
            f"`{name}` must hold {n} class numbers of at least 0, one for each point. Received: shape {y.shape}, "
            f"dtype {y.dtype}{f', smallest {y.min()}' if y.size and y.dtype.kind in 'iu' else ''}"
        )
    return y.astype(np.int32)


def same_shape(name: str, shape: tuple[int, ...], model: DefendedModel) -> None:
    """Raise a ValueError unless points of `shape` are inputs of the model."""
    expected = tuple(model.input_shape[1:])
    if tuple(shape) != expected:
        raise ValueError(
            f"`{name}` must hold inputs of the model, of shape {list(expected)}. Received: points of shape "
            f"{list(shape)}"
        )
