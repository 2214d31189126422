"""Carlini and Wagner's search for the smallest adversarial perturbation in the Euclidean norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from defended.arguments import number_not_negative, positive_number, whole_number
from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import column, features, l2_norm, project_l2
from defended.attacks.core.batches import HeldModel, for_each_batch, labels_of, network_logits, of_model, uses_xla
from defended.attacks.core.checks import Array
from defended.attacks.gradient.objectives import margins

# Starting points are drawn in to this share of the box's width, where tanh can still be inverted.
_INSIDE = 1 - 1e-6

# Adam's constants (Kingma and Ba 2015), as published.
_DECAY, _SQUARE_DECAY, _STABILISER = 0.9, 0.999, 1e-8

# The weight c grows tenfold until a search succeeds, up to this value.
_LARGEST_WEIGHT = 1e10


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CarliniWagner(Attack):
    """Finds the smallest Euclidean perturbation that changes the network's answer (Carlini and Wagner 2017, section V).

    Adam minimises `‖δ‖₂² + c · max(g(x + δ), -confidence)`, with g the margin of the label over its strongest rival
    (targeted: of the strongest rival over the label). The weight c of each input is found by bisection: smaller after
    a success, ten times larger until the first one. With `clip`, the optimised variable is `w` in
    `x + δ = low + (high - low) (tanh(w) + 1) / 2`; without, δ itself.

    Returns, for each input, the successful iterate nearest to x; if it lies farther away than the radius, it is brought
    onto the sphere along δ. Where none succeeded, returns the iterate of smallest margin within the ball.

    As the base of a `DegradationAttack`, the search runs within 2 eps; a δ that is shorter than eps stays as it is.

    In a call, `y` holds the labels to leave, None for the network's own predictions; for a targeted attack, the labels
    to reach, None for the network's second choice. The attack uses no random numbers. Models with a norm other than
    `"l2"` are refused with a ValueError.
    """

    steps: int = arguments.steps(200, "number of Adam's steps for each weight c.")
    binary_search_steps: int = argument(9, "number of weights c that are tried.", whole_number, least=1)
    learning_rate: float = argument(
        0.01, "Adam's learning rate; in units of w with `clip`, in input units without.", positive_number
    )
    confidence: float = argument(
        0.0, "margin by which the answer must change; 0 accepts every change.", number_not_negative
    )
    initial_const: float = argument(1e-3, "the first weight c.", positive_number)
    targets: int = arguments.targets(
        meaning="1 descends the margin over the strongest rival at each point, which may not be the nearest. A larger "
        "number takes each of that many rivals of largest logit at x in turn, as the paper does, and the nearest "
        "success counts."
    )
    clip: tuple[float, float] | None = arguments.clip()
    targeted: bool = arguments.targeted()
    epsilon: float | None = arguments.epsilon()
    batch_size: int = arguments.batch_size()
    jit_compile: bool | None = arguments.jit_compile()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targeted and self.targets > 1:
            raise ValueError(
                f"`targets` is for untargeted attacks: a targeted one has one. Received: targets={self.targets}"
            )

    def _perturb(self, task: Task) -> Array:
        if task.norm != "l2":
            raise ValueError(
                f"CarliniWagner minimises the Euclidean norm, and this model's is {task.norm!r}. Use PGD or "
                f"SquareAttack, which know both."
            )
        goals, jit = self._goals(task), uses_xla(self.jit_compile)
        boxed, toward, shape = self.clip is not None, self.targeted or self.targets > 1, task.x.shape[1:]
        key = (CarliniWagner, boxed, toward, jit, shape)
        search = of_model(task.model, key, lambda model: _build(model, boxed, toward, jit, shape))
        numbers = (task.radius, *(self.clip or (0.0, 0.0)), self.learning_rate, self.confidence)
        constants = [tf.constant(value, tf.float32) for value in numbers]
        attacked = np.empty_like(task.x)

        def attack_batch(rows: Array, used: int) -> None:
            x = tf.constant(task.x[rows])
            far = tf.fill([len(rows)], np.float32(np.inf))
            best = _Best(tf.zeros_like(x), far, tf.zeros_like(x), far)
            for labels in goals:
                best = self._bisect(search, x, tf.constant(labels[rows], tf.int32), constants, best)
            found = np.isfinite(best.size.numpy())
            nearest = project_l2(best.delta, constants[0]).numpy()
            delta = np.where(column(found, nearest), nearest, best.fallback.numpy())
            attacked[rows[:used]] = (task.x[rows] + delta)[:used]

        for_each_batch(len(task.x), self.batch_size, attack_batch)
        return attacked

    def _goals(self, task: Task) -> list[Array]:
        """Return, for each search, the labels `[n]` to leave or to reach."""
        if self.targets == 1:
            return [labels_of(task, self.batch_size, self.targeted)]
        if self.targets >= task.model.num_classes:
            raise ValueError(
                f"`targets` must be less than the number of classes, {task.model.num_classes}: the label is not "
                f"its own rival. Received: {self.targets}"
            )
        logits = network_logits(task.model, task.x, self.batch_size)
        own = logits.argmax(axis=1) if task.labels is None else task.labels
        logits[np.arange(len(own)), own] = -np.inf
        return list(np.argsort(-logits, axis=1, kind="stable")[:, : self.targets].T)

    def _bisect(self, search: Any, x: Any, labels: Any, constants: list[Any], best: _Best) -> _Best:
        """Search for the weight c of each input of a batch, and return the best of all iterates so far."""
        weight = np.full(x.shape[0], self.initial_const)
        lower, upper = np.zeros_like(weight), np.full_like(weight, np.inf)
        steps = tf.constant(self.steps)
        for _ in range(self.binary_search_steps):
            best, succeeded = search(x, labels, tf.constant(weight, tf.float32), steps, *constants, best)
            done = succeeded.numpy()
            lower, upper = np.where(done, lower, weight), np.where(done, weight, upper)
            grown = np.minimum(10 * weight, _LARGEST_WEIGHT)
            weight = np.where(upper < np.inf, lower / 2 + np.where(upper < np.inf, upper, 0.0) / 2, grown)
        return best


class _Best(NamedTuple):
    """The best of all iterates so far."""

    delta: Any
    """`[batch, ...]`, the shortest successful perturbation."""
    size: Any
    """`[batch]`, its norm; infinite where there is none."""
    fallback: Any
    """`[batch, ...]`, the perturbation of smallest margin within the radius."""
    margin: Any
    """`[batch]`, that margin."""


def _build(model: HeldModel, boxed: bool, toward: bool, jit_compile: bool, shape: tuple[int, ...]) -> Any:
    sign = -1.0 if toward else 1.0

    def point_at(w: Any, x: Any, low: Any, high: Any) -> Any:
        return low + (high - low) * (tf.tanh(w) + 1) / 2 if boxed else x + w

    def start(x: Any, low: Any, high: Any) -> Any:
        return tf.atanh(_INSIDE * (2 * (x - low) / (high - low) - 1)) if boxed else tf.zeros_like(x)

    # XLA compiles the step and not the loop around it, as in `loop`.
    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(
        x: Any, labels: Any, weight: Any, radius: Any, low: Any, high: Any, learning_rate: Any, confidence: Any,
        number: Any, w: Any, mean: Any, square: Any, succeeded: Any, best: _Best,
    ) -> tuple[Any, Any, Any, Any, _Best]:  # fmt: skip
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(w)
            point = point_at(w, x, low, high)
            delta = point - x
            margin = sign * margins(model().network(point, training=False), labels)
            loss = tf.reduce_sum(tf.square(delta), features(delta)) + weight * tf.maximum(margin, -confidence)
        gradient = tape.gradient(loss, w)
        size = tf.reshape(l2_norm(delta), [-1])
        success = (margin < 0) & (margin <= -confidence)
        nearer, lower = success & (size < best.size), (size <= radius) & (margin < best.margin)
        best = _Best(
            tf.where(column(nearer, delta), delta, best.delta),
            tf.where(nearer, size, best.size),
            tf.where(column(lower, delta), delta, best.fallback),
            tf.where(lower, margin, best.margin),
        )
        gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
        mean = _DECAY * mean + (1 - _DECAY) * gradient
        square = _SQUARE_DECAY * square + (1 - _SQUARE_DECAY) * tf.square(gradient)
        count = tf.cast(number + 1, tf.float32)
        unbiased = mean / (1 - _DECAY**count)
        scale = tf.sqrt(square / (1 - _SQUARE_DECAY**count)) + _STABILISER
        return w - learning_rate * unbiased / scale, mean, square, succeeded | success, best

    points, vector, scalar = (tf.TensorSpec(size, tf.float32) for size in ([None, *shape], [None], []))
    labels_spec, count_spec = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
    best_spec = _Best(points, vector, points, vector)

    @tf.function(input_signature=[points, labels_spec, vector, count_spec, *[scalar] * 5, best_spec], autograph=False)
    def search(
        x: Any, labels: Any, weight: Any, steps: Any, radius: Any, low: Any, high: Any, learning_rate: Any,
        confidence: Any, best: _Best,
    ) -> tuple[_Best, Any]:  # fmt: skip
        def body(number: Any, *state: Any) -> tuple[Any, ...]:
            return number + 1, *step(x, labels, weight, radius, low, high, learning_rate, confidence, number, *state)

        w = start(x, low, high)
        state = (tf.constant(0), w, tf.zeros_like(w), tf.zeros_like(w), tf.zeros_like(labels, tf.bool), best)
        # The round after the last step judges where that step led.
        *_, succeeded, best = tf.while_loop(lambda number, *_: number <= steps, body, state, parallel_iterations=1)
        return best, succeeded

    # Traced here and now, in one thread; afterwards any thread may call it.
    search.get_concrete_function()
    return search
