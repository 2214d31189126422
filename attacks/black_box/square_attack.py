"""The score-based attack by random squares, which needs no gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from defended.arguments import number_in, one_of
from defended.attacks.black_box.square_windows import Window, start_l2, start_linf, window_of
from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument
from defended.attacks.core.attack import Attack, Task
from defended.attacks.core.balls import project_l2
from defended.attacks.core.batches import HeldModel, for_each_batch, labels_of, of_model, uses_xla
from defended.attacks.core.checks import Array
from defended.attacks.gradient.objectives import margins
from defended.defended_model import DefendedModel

# For 10,000 queries: after each of these, the share of pixels in a window is halved once more.
_HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)

# Random numbers drawn at a time: enough to keep the compiled loop busy, few enough to hold for a batch.
_QUERIES_AT_A_TIME = 256


def margin_of_label(model: DefendedModel, x: Any, labels: Any) -> Any:
    """Return the margin of the label over its strongest rival, `[batch]`: negative where another class is answered."""
    return margins(model.network(x, training=False), labels)


def lead_over_bottom(model: DefendedModel, x: Any, labels: Any) -> Any:
    """Return `top score - score of ⊥`, `[batch]`: negative exactly where the model rejects. Labels are ignored."""
    scores = model(x, training=False)
    return tf.reduce_max(scores[:, :-1], axis=-1) - scores[:, -1]


_OBJECTIVES = {"margin": margin_of_label, "certificate": lead_over_bottom}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SquareAttack(Attack):
    """Searches at random with square-shaped changes, by scores alone (Andriushchenko et al. 2020, algorithms 1 to 3).

    Starts from stripes (l∞) or tiles (l2) on the sphere, then proposes for each query a change within one random
    window (l2: moved there from a second window), keeps it if the score falls, and makes the windows smaller as the
    queries are used up. It uses no gradients: it needs only what a client of the scores sees. An input whose score is
    negative is finished, and asks no more.

    Images are `[h, w, c]`; inputs `[d]` count as one row of d pixels, `[d, c]` as one row with c channels. A window
    that would be higher than the image is made wider instead, to the wanted area.

    In a call, `y` holds the labels to leave, None for the network's own predictions; for `"certificate"` it is ignored.
    Inputs of other ranks are refused with a ValueError.
    """

    norm: str | None = arguments.norm()
    queries: int = arguments.queries()
    p_init: float = argument(0.8, "share of the pixels in the first windows, in (0, 1].", number_in, interval="(0, 1]")
    objective: str = argument(
        "margin",
        "what is lowered. `\"margin\"`: the network's margin of the label, for a change of the network's answer (at 2 "
        'eps within `DegradationAttack`). `"certificate"`: the lead of the top score over the score of ⊥, for a '
        "rejection within the radius itself: it needs `scores_with_bottom` of a deployed model's `audit` signature.",
        one_of,
        known=_OBJECTIVES,
    )
    clip: tuple[float, float] | None = arguments.clip()
    epsilon: float | None = arguments.epsilon()
    seed: int = arguments.seed()
    batch_size: int = arguments.batch_size()
    jit_compile: bool | None = arguments.jit_compile()

    def _perturb(self, task: Task) -> Array:
        image = _image_shape(task.x.shape[1:])
        labels = labels_of(task, self.batch_size)
        # The sampling of a smoothed model has shapes that XLA cannot know.
        jit = uses_xla(self.jit_compile) and (self.objective == "margin" or not task.model.sampling)
        plan = _Plan(self.objective, task.norm, self.clip is not None, jit, task.x.shape[1:], image)
        evaluate, search = of_model(task.model, plan, lambda model: _build(model, plan))
        start = start_l2 if task.norm == "l2" else start_linf
        constants = [tf.constant(value, tf.float32) for value in (task.radius, *(self.clip or (0.0, 0.0)))]
        attacked = np.empty_like(task.x)

        def attack_batch(rows: Array, used: int) -> None:
            x, answers = tf.constant(task.x[rows].reshape(-1, *image)), tf.constant(labels[rows], tf.int32)
            streams = [np.random.default_rng((self.seed, int(i))) for i in task.index[rows]]
            first = task.radius * np.stack([start(stream, image) for stream in streams])
            delta, value = evaluate(x, tf.constant(first, tf.float32), answers, *constants)
            for window, count in self._stages(image):
                if not (value.numpy() >= 0).any():
                    break
                draws = np.stack([stream.random((count, 5 + image[2]), np.float32) for stream in streams], axis=1)
                delta, value = search(
                    x, delta, value, answers, *constants, tf.constant(draws), *map(tf.constant, window)
                )
            attacked[rows[:used]] = (x + delta).numpy().reshape(-1, *task.x.shape[1:])[:used]

        for_each_batch(len(task.x), self.batch_size, attack_batch)
        return attacked

    def _stages(self, image: tuple[int, int, int]) -> Iterator[tuple[Window, int]]:
        """Yield windows, each with its number of queries; the start was the first query."""
        halvings = [max(1, round(at * self.queries / 10_000)) for at in _HALVINGS]
        bounds = sorted({1, self.queries, *halvings})
        for first, end in itertools.pairwise(bounds):
            share = self.p_init / 2 ** sum(at <= first for at in halvings)
            for at in range(first, end, _QUERIES_AT_A_TIME):
                yield window_of(share, image), min(_QUERIES_AT_A_TIME, end - at)


class _Plan(NamedTuple):
    """What is compiled; everything else is an argument."""

    objective: str
    norm: str
    boxed: bool
    jit_compile: bool
    shape: tuple[int, ...]
    """The shape of the model's inputs."""
    image: tuple[int, int, int]


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return height, width and channels."""
    if not 1 <= len(shape) <= 3:
        raise ValueError(
            f"SquareAttack changes squares of images [h, w, c], rows [d, c] or vectors [d]. Received inputs of shape "
            f"{list(shape)}."
        )
    height, width, channels = {1: (1, *shape, 1), 2: (1, *shape), 3: shape}[len(shape)]
    return height, width, channels


def _build(model: HeldModel, plan: _Plan) -> tuple[Any, Any]:
    objective = _OBJECTIVES[plan.objective]
    height, width, channels = plan.image
    across, down = np.arange(width, dtype=np.int32), np.arange(height, dtype=np.int32)[:, None]

    def judge(x: Any, delta: Any, labels: Any) -> Any:
        value = objective(model(), tf.reshape(x + delta, [-1, *plan.shape]), labels)
        # A score that is not a number is no progress.
        return tf.where(tf.math.is_nan(value), tf.constant(np.inf, value.dtype), value)

    def boxed(x: Any, delta: Any, low: Any, high: Any) -> Any:
        return tf.clip_by_value(delta, low - x, high - x) if plan.boxed else delta

    def place(draw: Any, free: Any) -> Any:
        """Return a whole number from 0 to `free`, uniformly, `[batch, 1, 1]`."""
        return tf.reshape(tf.minimum(tf.cast(draw * tf.cast(free + 1, tf.float32), tf.int32), free), [-1, 1, 1])

    def inside(draws: Any, window: Window) -> tuple[Any, Any, Any]:
        """Return a mask `[batch, h, w, 1]`, True in a random window, and the coordinates within it `[batch, h, w]`."""
        i, j = down - place(draws[:, 0], height - window.height), across - place(draws[:, 1], width - window.width)
        mask = (i >= 0) & (i < window.height) & (j >= 0) & (j < window.width)
        return mask[..., None], i, j

    def proposal_linf(delta: Any, radius: Any, draws: Any, window: Window) -> Any:
        mask, _, _ = inside(draws, window)
        # Adding ±2 radius and projecting, as printed, ends at ±radius whatever was there.
        return tf.where(mask, radius * _signs(draws, channels), delta)

    def proposal_l2(delta: Any, radius: Any, draws: Any, window: Window) -> Any:
        to, i, j = inside(draws, window)
        source, _, _ = inside(draws[:, 2:4], window)
        turned = tf.cast(draws[:, 4] < 0.5, tf.int32)[:, None, None]
        inner = tf.clip_by_value(i * width + j, 0, height * width - 1)
        pattern = tf.gather(tf.reshape(window.pattern, [-1]), turned * height * width + inner)[..., None]
        kept = tf.where(to, delta, 0.0)
        change = tf.where(to, _signs(draws, channels) * pattern, 0.0)
        mixed = change + _unit(kept, _length(kept))
        # In small windows the change may be the opposite of what is there: then it replaces it.
        mixed = tf.where(_length(mixed) > 1e-5, mixed, change)
        # What both windows held, and what the radius leaves unused, goes into the first.
        unused = tf.maximum(radius**2 - tf.reduce_sum(delta**2, axis=[1, 2, 3], keepdims=True), 0.0)
        available = tf.sqrt(_length(tf.where(to | source, delta, 0.0)) ** 2 + unused / channels)
        proposed = tf.where(to, _unit(mixed, _length(mixed)) * available, tf.where(source, 0.0, delta))
        return project_l2(proposed, radius)

    proposal = proposal_l2 if plan.norm == "l2" else proposal_linf

    @tf.function(jit_compile=plan.jit_compile, autograph=False)
    def query(
        x: Any, delta: Any, value: Any, labels: Any, radius: Any, low: Any, high: Any, draws: Any, window: Window
    ) -> tuple[Any, Any]:
        proposed = boxed(x, proposal(delta, radius, draws, window), low, high)
        found = judge(x, proposed, labels)
        better = (found < value) & (value >= 0)
        return tf.where(better[:, None, None, None], proposed, delta), tf.where(better, found, value)

    points, vector, scalar = (tf.TensorSpec(size, tf.float32) for size in ([None, *plan.image], [None], []))
    labels_spec, count = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
    draws_spec = tf.TensorSpec([None, None, 5 + channels], tf.float32)
    window_spec = Window(tf.TensorSpec([2, height, width], tf.float32), count, count)

    @tf.function(input_signature=[points, points, labels_spec, scalar, scalar, scalar], autograph=False)
    def evaluate(x: Any, delta: Any, labels: Any, radius: Any, low: Any, high: Any) -> tuple[Any, Any]:
        delta = boxed(x, delta, low, high)
        return delta, judge(x, delta, labels)

    @tf.function(
        input_signature=[points, points, vector, labels_spec, scalar, scalar, scalar, draws_spec, *window_spec],
        autograph=False,
    )
    def search(
        x: Any, delta: Any, value: Any, labels: Any, radius: Any, low: Any, high: Any, draws: Any, *window: Any
    ) -> tuple[Any, Any]:
        def body(number: Any, delta: Any, value: Any) -> tuple[Any, ...]:
            return number + 1, *query(x, delta, value, labels, radius, low, high, draws[number], Window(*window))

        def unfinished(number: Any, delta: Any, value: Any) -> Any:
            return (number < tf.shape(draws)[0]) & tf.reduce_any(value >= 0)

        return tf.while_loop(unfinished, body, (tf.constant(0), delta, value), parallel_iterations=1)[1:]

    # Traced here and now, in one thread; afterwards any thread may call them.
    return evaluate.get_concrete_function(), search.get_concrete_function()


def _signs(draws: Any, channels: int) -> Any:
    """Return +1 or -1 for each channel, `[batch, 1, 1, c]`."""
    return tf.where(draws[:, None, None, 5 : 5 + channels] < 0.5, 1.0, -1.0)


def _length(values: Any) -> Any:
    """Return the Euclidean norm of each channel, `[batch, 1, 1, c]`."""
    return tf.sqrt(tf.reduce_sum(tf.square(values), axis=[1, 2], keepdims=True))


def _unit(values: Any, length: Any) -> Any:
    return values / tf.where(length > 0, length, tf.ones_like(length))
