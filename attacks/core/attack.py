"""The interface of every attack: configured once, called on a model and its inputs, with checked results."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import keras
from numpy.typing import ArrayLike

from defended.arguments import one_of, positive_number
from defended.attacks.core import checks
from defended.attacks.core.arguments import check_arguments, document_arguments
from defended.attacks.core.balls import BALLS
from defended.attacks.core.checks import Array
from defended.defended_model import DefendedModel


@dataclass(frozen=True)
class Task:
    """One call of an attack, with its arguments checked."""

    model: DefendedModel
    x: Array
    """`[n, *input shape]` float32."""
    labels: Array | None
    """`[n]` int64, or None."""
    radius: float
    norm: str
    index: Array
    """`[n]` int64, the number of each input in its data set."""


# Attacks are frozen dataclasses whose fields are their arguments, see `core.arguments`; they are compared by identity,
# and show what differs from the defaults. A subclass may have an `__init__` of its own instead.
class Attack(ABC):
    """A search for perturbations within a radius.

    An attack is configured with keywords and then called: `attack(model, x, y)` returns perturbed inputs, float32,
    the shape of `x`. Every returned point is finite, lies in the ball `‖x' - x‖ <= radius` exactly (as computed in
    float64 from the float32 numbers), and in the box if there is one. The attack does not change the model. The same
    configuration, seed and model give the same result; the random numbers of an input depend on the seed and on the
    input's `index`, not on the other inputs.

    Attributes:
        epsilon: the radius in input units; None stands for `model.epsilon`.
        norm: `"l2"`, `"linf"`, or None for `model.norm`.
        clip: the box `(low, high)` that perturbed inputs stay in, or None.
    """

    epsilon: float | None = None
    norm: str | None = None
    clip: tuple[float, float] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        document_arguments(cls)

    def __post_init__(self) -> None:
        check_arguments(self)

    def _derive(self, **values: Any) -> None:
        """Set attributes that follow from the arguments, while a frozen attack is made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __call__(
        self,
        model: DefendedModel,
        x: Any,
        y: ArrayLike | None = None,
        *,
        epsilon: float | None = None,
        index: ArrayLike | None = None,
    ) -> Any:
        """Perturb inputs.

        Args:
            model: a `DefendedModel`.
            x: `[n, *input shape]`, finite and inside `clip`: a NumPy array or a tensor, as the result will be.
            y: `[n]` class numbers, or one-hot rows; what they mean is up to the attack. None where the attack allows
                it.
            epsilon: radius for this call; None stands for the configured one.
            index: `[n]` whole numbers that name the inputs, so that random starts do not depend on how a data set is
                divided into calls; None stands for 0, 1, ...

        Returns:
            `[n, *input shape]` float32.

        Raises:
            ValueError: for an empty or wrongly shaped `x`, NaN or infinity in it, labels out of range, or a radius
                that is not positive.
        """
        points = checks.points(model, x, self.clip)
        n = len(points)
        radius = epsilon if epsilon is not None else self.epsilon
        task = Task(
            model=model,
            x=points,
            index=checks.row_numbers(index, n),
            labels=None if y is None else checks.class_numbers(y, n, model.num_classes),
            radius=model_radius(model) if radius is None else positive_number("epsilon", radius),
            norm=self.norm or one_of("norm", model.norm, BALLS),
        )
        attacked = checks.perturbed(points, self._perturb(task), task.radius, task.norm, repr(self), self.clip)
        return keras.ops.convert_to_tensor(attacked) if keras.ops.is_tensor(x) else attacked

    @abstractmethod
    def _perturb(self, task: Task) -> Array:
        """Return perturbed inputs, inside the ball up to rounding."""

    def config(self) -> dict[str, Any]:
        """Return the configuration, ready for JSON: the class's name under `"attack"`, and every argument."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {"attack": type(self).__name__} | {name: _plain(value) for name, value in values.items()}

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        given = (
            f"{name}={getattr(self, name)!r}" for name, p in parameters.items() if getattr(self, name) != p.default
        )
        return f"{type(self).__name__}({', '.join(given)})"


def model_radius(model: DefendedModel) -> float:
    """Return `model.epsilon` as a number, exactly as the model stores it."""
    return float(keras.ops.convert_to_numpy(model.epsilon))


def describe(attack: Any) -> dict[str, Any]:
    """Return the configuration of any attack, ready for JSON; for a bare function, only its name."""
    if hasattr(attack, "config"):
        return dict(attack.config())
    return {"attack": getattr(attack, "__qualname__", type(attack).__qualname__)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else describe(value)
