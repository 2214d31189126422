"""Attacks of foolbox, as attacks of this package."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from defended.attacks.core import checks
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.batches import of_model
from defended.attacks.core.checks import Array
from defended.attacks.gradient.gradient_attack import two_largest

_NORMS: dict[Any, str] = {2: "l2", np.inf: "linf"}


def from_foolbox(
    attack: Any,
    *,
    clip: tuple[float, float] | None = None,
    targeted: bool = False,
    epsilon: float | None = None,
    seed: int = 0,
    batch_size: int = 1,
) -> FoolboxAttack:
    """A foolbox attack on the network of a `DefendedModel`: `from_foolbox(foolbox.attacks.L2PGD(steps=50))`.

    Args: as for `FoolboxAttack`.

    Raises:
        ImportError: without foolbox; `pip install "keras-defended[attacks]"` brings it.
        TypeError: when `attack` is none of foolbox's.
        ValueError: when it keeps to another distance than l2 or l∞.
    """
    return FoolboxAttack(
        attack, clip=clip, targeted=targeted, epsilon=epsilon, seed=seed, batch_size=batch_size
    )  # fmt: skip


class FoolboxAttack(Attack):
    """What foolbox finds on the undefended network, within the radius, checked as every attack's result.

    The attack sees `model.network` and labels, never ⊥: foolbox's criterion counts any other class as success, and the
    rejected class would be one. For rejections, make it the base of a `DegradationAttack`. What is returned is what
    foolbox calls clipped: brought into the ball.

    Random numbers come from `seed` and the input's index, and other programs' are left as they were. Foolbox draws them
    for a batch as a whole, and some of its attacks go on until all of a batch are done: so one input at a time is the
    default, and gives an input the same result in any company. Larger batches are faster and do not promise that.

    Args:
        wrapped: a foolbox attack for l2 or l∞, configured.
        clip: box `(low, high)` for perturbed inputs, foolbox's `bounds`. None gives foolbox bounds that hold the whole
            ball, and so exclude nothing.
        targeted: go towards the labels given; not every foolbox attack can.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of the random numbers.
        batch_size: inputs that foolbox attacks at a time.

    In a call, `y` are the labels to leave, None for the network's own predictions; if `targeted`, the labels to reach,
    None for the network's second choice.
    """

    def __init__(
        self,
        wrapped: Any,
        *,
        clip: tuple[float, float] | None = None,
        targeted: bool = False,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 1,
    ):
        if not isinstance(wrapped, _foolbox().attacks.Attack):
            raise TypeError(
                f"`wrapped` must be an attack of foolbox, such as foolbox.attacks.L2PGD(). Received: {wrapped!r}"
            )
        self.wrapped = wrapped
        self.norm = _norm(wrapped)
        self.clip = checks.box(clip)
        self.targeted = bool(targeted)
        self.epsilon = None if epsilon is None else checks.positive("epsilon", epsilon)
        self.seed = checks.whole_number("seed", seed, 0)
        self.batch_size = checks.whole_number("batch_size", batch_size, 1)

    def config(self) -> dict[str, Any]:
        return super().config() | {"wrapped": _configuration(self.wrapped)}

    def __repr__(self) -> str:
        parts = [f"{name}={value!r}" for name, value in _configuration(self.wrapped).items() if name != "attack"]
        return f"FoolboxAttack({type(self.wrapped).__name__}({', '.join(parts)}))"

    def _perturb(self, task: Task) -> Array:
        labels = task.labels
        if labels is None:
            labels = two_largest(task.model, task.x, 256)[int(self.targeted)]
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


def _network(model: Any) -> Any:
    """The network's logits as a graph that holds its model weakly."""
    shape = model().input_shape[1:]
    return tf.function(
        lambda x: model().network(x, training=False),
        input_signature=[tf.TensorSpec([None, *shape], tf.float32)],
        autograph=False,
    )


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
    """The class's name and public attributes, ready for JSON."""
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
    """A tensor class whose random numbers come from the stream; what is computed from such a tensor is one too."""
    import eagerpy

    class SeededTensor(eagerpy.TensorFlowTensor):
        def uniform(self, shape: Any, low: float = 0.0, high: float = 1.0) -> Any:
            return type(self)(tf.constant(stream.uniform(low, high, shape), self.raw.dtype))

        def normal(self, shape: Any, mean: float = 0.0, stddev: float = 1.0) -> Any:
            return type(self)(tf.constant(stream.normal(mean, stddev, shape), self.raw.dtype))

    return SeededTensor


@contextlib.contextmanager
def _own_numpy_random_numbers(stream: np.random.Generator) -> Iterator[None]:
    """NumPy's global random numbers seeded from the stream, and afterwards as they were."""
    state = np.random.get_state()  # noqa: NPY002  (it is what foolbox uses)
    np.random.seed(int(stream.integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
