"""Attacks of foolbox, as attacks of this package."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from defended.attacks.core import arguments
from defended.attacks.core.arguments import meant
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.batches import HeldModel, labels_of, of_model
from defended.attacks.core.checks import Array

_NORMS: dict[Any, str] = {2: "l2", np.inf: "linf"}


def _attack_of_foolbox(name: str, value: Any) -> Any:
    if not isinstance(value, _foolbox().attacks.Attack):
        raise TypeError(
            f"`{name}` must be an attack of foolbox, such as foolbox.attacks.L2PGD(). Received: {name}={value!r}"
        )
    return value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FoolboxAttack(Attack):
    """Returns what foolbox finds on the undefended network within the radius, checked as every attack's result.

    The attack sees `model.network` and labels, never ⊥: foolbox's criterion counts any other class as success, and the
    rejected class would be one. For rejections, make it the base of a `DegradationAttack`. The result is what foolbox
    calls clipped: brought into the ball.

    Random numbers come from `seed` and the input's index, and other programs' are left as they were. Foolbox draws them
    for a batch as a whole, and some of its attacks go on until all inputs of a batch are done; so the default is one
    input at a time, which gives an input the same result whatever the others are. Larger batches are faster and do not
    promise that.

    In a call, `y` holds the labels to leave, None for the network's own predictions; if `targeted`, the labels to
    reach, None for the network's second choice.
    """

    wrapped: Any = field(
        kw_only=False, metadata=meant("a foolbox attack for l2 or l∞, configured.", _attack_of_foolbox)
    )
    clip: tuple[float, float] | None = arguments.clip(
        meaning="box `(low, high)` for perturbed inputs, foolbox's `bounds`. None gives foolbox bounds that hold the "
        "whole ball, and so exclude nothing."
    )
    targeted: bool = arguments.targeted(
        meaning="move towards the given labels instead of away from them; not every foolbox attack can."
    )
    epsilon: float | None = arguments.epsilon()
    seed: int = arguments.seed()
    batch_size: int = arguments.batch_size(1)
    norm: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._derive(norm=_norm(self.wrapped))

    def config(self) -> dict[str, Any]:
        return super().config() | {"wrapped": _configuration(self.wrapped)}

    def __repr__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in _configuration(self.wrapped).items() if name != "attack"]
        return f"FoolboxAttack({type(self.wrapped).__name__}({', '.join(parts)}))"

    def _perturb(self, task: Task) -> Array:
        labels = labels_of(task, 256, self.targeted)
        network = of_model(task.model, (FoolboxAttack, task.x.shape[1:]), _network)
        attacked = np.empty_like(task.x)
        for first in range(0, len(task.x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            stream = np.random.default_rng((self.seed, int(task.index[first])))
            attacked[rows] = self._attack(network, task.x[rows], labels[rows], task.radius, stream)
        return attacked

    def _attack(self, network: Any, x: Array, labels: Array, radius: float, stream: np.random.Generator) -> Array:
        foolbox = _foolbox()
        # Every point of the ball lies inside these bounds.
        bounds = self.clip or (float(x.min()) - 2 * radius, float(x.max()) + 2 * radius)
        device = "/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0"
        model = foolbox.TensorFlowModel(network, bounds=bounds, device=device)
        tensor = _tensors_drawing_from(stream)
        points, classes = tensor(tf.constant(x)), tensor(tf.constant(labels))
        criterion = foolbox.criteria.TargetedMisclassification if self.targeted else foolbox.criteria.Misclassification
        with _own_numpy_random_numbers(stream):
            try:
                _, clipped, _ = self.wrapped(model, points, criterion(classes), epsilons=radius)
            except (ValueError, AssertionError, TypeError) as error:
                raise ValueError(f"foolbox's {type(self.wrapped).__name__} gave up: {error}") from error
        return np.asarray(clipped.raw)


def from_foolbox(attack: Any, **options: Any) -> FoolboxAttack:
    """Return a foolbox attack on a `DefendedModel`'s network: `from_foolbox(foolbox.attacks.L2PGD(steps=50))`.

    Args:
        attack: a foolbox attack for l2 or l∞, configured.
        options: the keywords of `FoolboxAttack`.

    Raises:
        ImportError: without foolbox; `pip install "keras-defended[attacks]"` brings it.
        TypeError: when `attack` is not one of foolbox's.
        ValueError: when it uses a distance other than l2 or l∞.
    """
    return FoolboxAttack(attack, **options)


def _foolbox() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # Foolbox 3.3.4 imports a filter of SciPy by its old name.
            warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
            import foolbox
    except ImportError as error:
        raise ImportError(
            f'Attacks of foolbox need foolbox ({error}). Install it: pip install "keras-defended[attacks]"'
        ) from error
    return foolbox


def _network(model: HeldModel) -> Any:
    """Return the network's logits as a graph that holds its model weakly."""
    signature = [tf.TensorSpec([None, *model().input_shape[1:]], tf.float32)]
    return tf.function(lambda x: model().network(x, training=False), input_signature=signature, autograph=False)


def _norm(wrapped: Any) -> str:
    try:
        distance = wrapped.distance
    except (AttributeError, ValueError):
        distance = None
    norm = _NORMS.get(getattr(distance, "p", None))
    if norm is None:
        raise ValueError(
            f"`wrapped` must measure perturbations by l2 or linf, as certificates do. Received: "
            f"{type(wrapped).__name__}, {distance or 'no distance'}"
        )
    return norm


def _configuration(wrapped: Any) -> dict[str, Any]:
    """Return the class's name and public attributes, ready for JSON."""
    public = {name: value for name, value in sorted(vars(wrapped).items()) if not name.startswith("_")}
    return {"attack": type(wrapped).__name__} | {name: _plain(value) for name, value in public.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, _foolbox().attacks.Attack):
        return _configuration(value)
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _tensors_drawing_from(stream: np.random.Generator) -> type:
    """Return a tensor class that draws from the stream; what is computed from such a tensor is one too."""
    import eagerpy

    class SeededTensor(eagerpy.TensorFlowTensor):
        def uniform(self, shape: Any, low: float = 0.0, high: float = 1.0) -> Any:
            return type(self)(tf.constant(stream.uniform(low, high, shape), self.raw.dtype))

        def normal(self, shape: Any, mean: float = 0.0, stddev: float = 1.0) -> Any:
            return type(self)(tf.constant(stream.normal(mean, stddev, shape), self.raw.dtype))

    return SeededTensor


@contextlib.contextmanager
def _own_numpy_random_numbers(stream: np.random.Generator) -> Iterator[None]:
    """Seed NumPy's global random numbers from the stream, and restore their state afterwards."""
    state = np.random.get_state()  # noqa: NPY002  (it is what foolbox uses)
    np.random.seed(int(stream.integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
