"""The loop of every gradient attack, compiled once per model: projected steepest descent that keeps the best point."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from defended.attacks.objectives import Objective
from defended.attacks.projections import BALLS


class Descent(NamedTuple):
    """What is compiled into a loop; everything else (radius, step sizes, labels) is an argument of it."""

    objective: Objective
    norm: str
    boxed: bool
    gradient_floor: float
    """Norms of gradients below it count as this; see `projections.steepest_l2`."""
    jit_compile: bool


# Weak keys, and loops that hold their model weakly: an attack never keeps a model alive.
_LOOPS: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def compiled(model: Any, descent: Descent, input_shape: tuple[int, ...]) -> Any:
    """The loop for this model, made at the first call.

    It is a function of tensors,
    `(x, delta, labels, step_sizes, momentum, radius, low, high) -> (delta, judged)`,
    with `x` and the start `delta` `[batch, *input_shape]` float32, `labels` `[batch]` int32, `step_sizes` `[steps]`,
    scalars `momentum` and `radius`, and the box `low`, `high` as scalars. It returns the best perturbation seen,
    start and end included, and its judged value `[batch]`.

    The model's variables are read at every call, so a model in training is attacked as it is now.

    Raises:
        RuntimeError: when Keras runs on another backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Attacks differentiate with TensorFlow, and Keras runs on {keras.backend.backend()!r}. Set the variable "
            f"KERAS_BACKEND=tensorflow before Keras is imported; a saved model can be loaded there."
        )
    loops = _LOOPS.setdefault(model, {})
    key = (descent, input_shape)
    if key not in loops:
        loops[key] = _build(weakref.ref(model), descent, input_shape)
    return loops[key]


def default_jit_compile() -> bool:
    """Whether steps go through XLA: on CPUs, where it makes them two to three times as fast as op by op."""
    return not tf.config.list_logical_devices("GPU")


def _build(model: Any, descent: Descent, input_shape: tuple[int, ...]) -> Any:
    ball = BALLS[descent.norm]

    # XLA compiles the step and not the loop around it: convolutions inside an XLA loop miss the CPU's fast kernels,
    # which was measured to make the whole attack four times slower.
    @tf.function(jit_compile=descent.jit_compile, autograph=False)
    def step(
        x: Any, low: Any, high: Any, labels: Any, radius: Any, size: Any, momentum: Any,
        delta: Any, velocity: Any, best: Any, best_value: Any,
    ) -> tuple[Any, Any, Any, Any]:  # fmt: skip
        point = x + delta
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(point)
            descended, judged = descent.objective(model(), point, labels)
        gradient = tape.gradient(descended, point)
        if gradient is None:
            raise ValueError(
                f"{descent.objective.__name__} has no gradient with respect to the input of {model().name!r}. A "
                f"gradient attack needs a network that is differentiable from its input to its logits."
            )
        better = judged < best_value
        best = tf.where(tf.reshape(better, [-1, *[1] * len(input_shape)]), delta, best)
        best_value = tf.where(better, judged, best_value)
        gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
        velocity = momentum * velocity + ball.steepest(gradient, descent.gradient_floor)
        moved = delta - size * velocity
        if descent.boxed:
            delta = ball.project_into_box(moved, radius, low - x, high - x)
        else:
            delta = ball.project(moved, radius)
        return delta, velocity, best, best_value

    points = tf.TensorSpec([None, *input_shape], tf.float32)
    scalar = tf.TensorSpec([], tf.float32)
    labels = tf.TensorSpec([None], tf.int32)
    sizes = tf.TensorSpec([None], tf.float32)

    @tf.function(input_signature=[points, points, labels, sizes, scalar, scalar, scalar, scalar], autograph=False)
    def descend(
        x: Any, delta: Any, labels: Any, step_sizes: Any, momentum: Any, radius: Any, low: Any, high: Any
    ) -> tuple[Any, Any]:
        # The last round moves nowhere: it judges the point that the last step led to.
        step_sizes = tf.concat([step_sizes, [0.0]], axis=0)

        def body(number: Any, *state: Any) -> tuple[Any, ...]:
            return number + 1, *step(x, low, high, labels, radius, step_sizes[number], momentum, *state)

        worst = tf.fill([tf.shape(x)[0]], tf.float32.max)
        state = (tf.constant(0), delta, tf.zeros_like(x), delta, worst)
        rounds = tf.size(step_sizes)
        _, _, _, best, best_value = tf.while_loop(
            lambda number, *_: number < rounds, body, state, parallel_iterations=1
        )
        return best, best_value

    # Traced here and now, in one thread; afterwards any thread may call it.
    return descend.get_concrete_function()
