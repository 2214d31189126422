"""The loop of every gradient attack, compiled once per model: projected descent that keeps the best point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from defended.attacks.core.balls import BALLS, column
from defended.attacks.core.batches import HeldModel, of_model
from defended.attacks.gradient.rules import Rule
from defended.defended_model import DefendedModel


class Descent(NamedTuple):
    """What is compiled into a loop; everything else (radius, step sizes, labels) is an argument of the loop."""

    evaluate: Callable[[DefendedModel, Any, Any, Any], tuple[Any, Any, Any]]
    """`(model, x, labels, number) -> (descended, judged, gradient)`, as `objectives.Differentiated`."""
    rule: Rule
    boxed: bool
    keep_best: bool
    """Whether the best point seen counts, rather than the last one."""
    jit_compile: bool


def compiled(model: DefendedModel, descent: Descent, input_shape: tuple[int, ...]) -> Any:
    """Return the loop for this model, made at the first call.

    The loop is a function of tensors,
    `(x, labels, control, numbers, radius, low, high, delta, best, best_value, *state) -> (delta, best, best_value,
    *state)`, with `x` and the perturbations `[batch, *input_shape]` float32, `labels` `[batch]` int32, `control`
    `[steps, batch, columns]` and `state` as the rule has them, `numbers` `[steps]` int32, scalars `radius`, `low`,
    `high`, and `best_value` `[batch]`, the judged value of the best perturbation seen. Each step judges a point and
    then moves it.

    Raises:
        RuntimeError: when Keras runs on a backend other than TensorFlow.
    """
    return of_model(model, (descent, input_shape), lambda reference: _build(reference, descent, input_shape))


def _build(model: HeldModel, descent: Descent, input_shape: tuple[int, ...]) -> Any:
    rule = descent.rule
    ball = BALLS[rule.norm]

    # XLA compiles the step and not the loop around it: convolutions inside an XLA loop miss the CPU's fast kernels,
    # which was measured to make the whole attack four times slower.
    @tf.function(jit_compile=descent.jit_compile, autograph=False)
    def step(
        x: Any, labels: Any, control: Any, number: Any, radius: Any, low: Any, high: Any,
        delta: Any, best: Any, best_value: Any, *state: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        def place(moved: Any) -> Any:
            if descent.boxed:
                return ball.project_into_box(moved, radius, low - x, high - x)
            return ball.project(moved, radius)

        value, judged, gradient = descent.evaluate(model(), x + delta, labels, number)
        better = judged < best_value if descent.keep_best else tf.ones_like(judged, tf.bool)
        best = tf.where(column(better, delta), delta, best)
        best_value = tf.where(better, judged, best_value)
        gradient = tf.where(tf.math.is_finite(gradient), gradient, tf.zeros_like(gradient))
        delta, moved = rule.move(delta, gradient, value, list(state), control, place)
        return delta, best, best_value, *moved

    def spec(shape: tuple[int | None, ...], dtype: Any = tf.float32) -> tf.TensorSpec:
        return tf.TensorSpec(shape, dtype)

    points, scalar = spec((None, *input_shape)), spec(())
    inner = [spec((None, *array.shape[1:])) for array in rule.start(np.zeros((1, *input_shape), np.float32))]
    given = [points, spec((None,), tf.int32), spec((None, None, None)), spec((None,), tf.int32), scalar, scalar, scalar]

    @tf.function(input_signature=[*given, points, points, spec((None,)), *inner], autograph=False)
    def descend(
        x: Any, labels: Any, control: Any, numbers: Any, radius: Any, low: Any, high: Any, *state: Any
    ) -> tuple[Any, ...]:
        def body(number: Any, *state: Any) -> tuple[Any, ...]:
            return number + 1, *step(x, labels, control[number], numbers[number], radius, low, high, *state)

        rounds = tf.size(numbers)
        _, *state = tf.while_loop(
            lambda number, *_: number < rounds, body, (tf.constant(0), *state), parallel_iterations=1
        )
        return tuple(state)

    # Traced here and now, in one thread; afterwards any thread may call it.
    return descend.get_concrete_function()
