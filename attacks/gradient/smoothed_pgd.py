"""Projected gradient descent on a network under Gaussian noise: Algorithm 3.2 of Leino et al. 2022."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from defended.attacks.core import checks
from defended.attacks.core.attack import Task
from defended.attacks.core.balls import BALLS
from defended.attacks.core.checks import Array
from defended.attacks.gradient.objectives import loss_of_logits, no_gradient
from defended.attacks.gradient.pgd import SCHEDULES, NetworkAttack, known
from defended.attacks.gradient.rules import Rule, Steepest

AVERAGES = ("logits", "losses", "directions")


class SmoothedPGD(NetworkAttack):
    """Projected gradient descent on the network under noise (Algorithm 3.2 of Leino et al. 2022).

    Maximises, in the ball `‖δ‖ <= radius`, the loss that the network has on `x + δ + sigma * N`, averaged over samples
    of the Gaussian noise N, by the steps of `PGD`. For smoothed models under `DegradationAttack`, and for any other
    network at a sigma of your choice. Returns, for each input, the iterate with the smallest margin of the mean logits.

    Args:
        sigma: standard deviation of the noise, in input units; None for `model.sigma`.
        samples: noise samples of each step, n.
        average: `"logits"`, the loss of the mean logits, as the algorithm is printed; `"losses"`, the mean of the
            samples' losses, whose gradient is the mean of their gradients, as the authors' code has it by default; or
            `"directions"`, the mean of the samples' steepest directions, where no sample counts for more than another.
        common_noise: the same samples in every step, so that steps descend one function; otherwise fresh ones.
        norm: `"l2"` or `"linf"`; None for the model's.
        steps: gradient steps of each restart.
        step_size: length of the first step, in input units and in the attack's norm; None for `2.5 * radius / steps`.
        schedule: how steps shrink, see `PGD`.
        raw_gradient: step along the gradient itself, times the step size, and not along the steepest direction.
        random_start: start uniformly in the ball; otherwise the first restart starts at `x` itself.
        restarts: number of starts.
        loss: `"crossentropy"`, `"margin"` or `"dlr"`, see `PGD`.
        targeted: go towards the labels given, and not away from them.
        momentum: share of the last direction that is kept, in [0, 1).
        keep: `"best"` or `"last"`, see `PGD`.
        clip: box `(low, high)` for perturbed inputs, or None.
        epsilon: radius in input units; None for `model.epsilon`.
        seed: of the noise and of the random starts.
        batch_size: inputs attacked at a time; they share their noise.
        max_rows: noisy inputs evaluated at a time; memory grows with it, and not with `samples`.
        jit_compile: compile steps with XLA; None for not, which is faster on CPUs for batches this large.

    In a call, `y` are the labels to leave, None for the network's predictions without noise.
    """

    def __init__(
        self,
        *,
        sigma: float | None = None,
        samples: int = 100,
        average: str = "logits",
        common_noise: bool = True,
        norm: str | None = None,
        steps: int = 50,
        step_size: float | None = None,
        schedule: str = "constant",
        raw_gradient: bool = False,
        random_start: bool = False,
        restarts: int = 1,
        loss: str = "crossentropy",
        targeted: bool = False,
        momentum: float = 0.0,
        keep: str = "best",
        clip: tuple[float, float] | None = None,
        epsilon: float | None = None,
        seed: int = 0,
        batch_size: int = 32,
        max_rows: int = 2048,
        jit_compile: bool | None = None,
    ):
        super().__init__(
            norm=norm,
            random_start=random_start,
            loss=loss,
            targeted=targeted,
            early_stop=False,
            steps=steps,
            restarts=restarts,
            clip=clip,
            epsilon=epsilon,
            seed=seed,
            batch_size=batch_size,
            jit_compile=jit_compile or False,
        )
        self.sigma = None if sigma is None else checks.positive("sigma", sigma)
        self.samples = checks.whole_number("samples", samples, 1)
        self.average = known("average", average, AVERAGES)
        self.common_noise = bool(common_noise)
        self.step_size = None if step_size is None else checks.positive("step_size", step_size)
        self.schedule = known("schedule", schedule, SCHEDULES)
        self.raw_gradient = bool(raw_gradient)
        self.momentum = checks.share("momentum", momentum)
        self.keep = known("keep", keep, ("best", "last"))
        self.max_rows = checks.whole_number("max_rows", max_rows, 1)
        if self.max_rows < self.batch_size:
            raise ValueError(
                f"`max_rows` must hold one sample of a batch, {self.batch_size} rows. Received: {max_rows}. "
                f"Raise it, or lower `batch_size`."
            )

    def _evaluation(self, task: Task) -> Callable[..., Any]:
        sigma = self.sigma or getattr(task.model, "sigma", None)
        if sigma is None:
            raise ValueError(
                f"`sigma` must be given for {type(task.model).__name__} {task.model.name!r}, which has no noise of "
                f"its own."
            )
        chunk = min(self.samples, self.max_rows // self.batch_size)
        return _NoisyLoss(
            self.loss, self.targeted, float(sigma), self.samples, self.average, self.common_noise, chunk, task.norm,
            self.seed,
        )  # fmt: skip

    def _rule(self, task: Task) -> tuple[Rule, Array]:
        first = self.step_size or 2.5 * task.radius / self.steps
        sizes = first * SCHEDULES[self.schedule](np.arange(self.steps) / self.steps)
        return Steepest(task.norm, raw=self.raw_gradient), Steepest.control(sizes, self.momentum)

    def _keeps_best(self) -> bool:
        return self.keep == "best"


@dataclass(frozen=True)
class _NoisyLoss:
    """A loss of the network under noise, with its gradient, as `Descent.evaluate`."""

    loss: str
    targeted: bool
    sigma: float
    samples: int
    average: str
    common_noise: bool
    chunk: int
    """Samples evaluated at a time."""
    norm: str
    seed: int

    def __call__(self, model: Any, x: Any, labels: Any, number: Any) -> tuple[Any, Any, Any]:
        noise = _Noise(self, model, tf.stack([self.seed, 0 if self.common_noise else number]))
        return (_loss_of_mean if self.average == "logits" else _mean_of_losses)(noise, x, labels)

    def of(self, logits: Any, labels: Any) -> tuple[Any, Any]:
        """`(descended, judged)` of logits `[rows, m]`."""
        return loss_of_logits(self.loss, self.targeted, logits, labels)


class _Noise:
    """The network under noise, a chunk of samples at a time."""

    def __init__(self, loss: _NoisyLoss, model: Any, stream: Any):
        self.loss, self.model, self.stream = loss, model, stream
        self.chunks = -(-loss.samples // loss.chunk)

    def logits(self, points: Any, part: Any) -> Any:
        """`[chunk, batch, m]` at points `[1 or chunk, batch, ...]`; the batch shares the noise."""
        shape = (self.loss.chunk, 1, *points.shape[2:])
        seed = tf.random.experimental.stateless_fold_in(self.stream, part)
        noisy = points + self.loss.sigma * tf.random.stateless_normal(shape, seed)
        logits = self.model.network(tf.reshape(noisy, (-1, *points.shape[2:])), training=False)
        return tf.reshape(logits, (self.loss.chunk, -1, logits.shape[-1]))

    def shares(self, part: Any) -> Any:
        """`[chunk, 1]`: the weight of each sample in the mean, 0 behind the last one."""
        drawn = part * self.loss.chunk + tf.range(self.loss.chunk) < self.loss.samples
        return tf.cast(drawn, tf.float32)[:, None] / self.loss.samples

    def mean_logits(self, x: Any, part: Any) -> Any:
        """`[batch, m]`: the chunk's part of the mean logits at `[batch, ...]`."""
        return tf.reduce_sum(self.shares(part)[:, :, None] * self.logits(x[None], part), axis=0)

    def total(self, terms: Callable[[Any], list[Any]]) -> list[Any]:
        """The sums of the terms over all chunks."""
        sums = terms(tf.constant(0))
        if self.chunks == 1:
            return sums
        return list(
            tf.while_loop(
                lambda part, *_: part < self.chunks,
                lambda part, *sums: (part + 1, *(a + b for a, b in zip(sums, terms(part), strict=True))),
                (tf.constant(1), *sums),
                parallel_iterations=1,
            )[1:]
        )

    def checked(self, gradient: Any) -> Any:
        if gradient is None:
            raise no_gradient(f"the loss {self.loss.loss!r}", self.model)
        return gradient


def _loss_of_mean(noise: _Noise, x: Any, labels: Any) -> tuple[Any, Any, Any]:
    """The loss of the mean logits; the chain rule takes two passes over the chunks."""
    (mean,) = noise.total(lambda part: [noise.mean_logits(x, part)])
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(mean)
        value, judged = noise.loss.of(mean, labels)
    upstream = tape.gradient(value, mean)

    def pulled_back(part: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = noise.mean_logits(x, part)
        return [noise.checked(tape.gradient(logits, x, output_gradients=upstream))]

    return value, judged, noise.total(pulled_back)[0]


def _mean_of_losses(noise: _Noise, x: Any, labels: Any) -> tuple[Any, Any, Any]:
    """The mean of the samples' losses, with the mean of their gradients or of their steepest directions."""
    loss = noise.loss
    apart = loss.average == "directions"

    def terms(part: Any) -> list[Any]:
        shares = noise.shares(part)
        # For directions each sample has a copy of the input, and so a gradient of its own.
        points = tf.repeat(x[None], loss.chunk, axis=0) if apart else x
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(points)
            logits = noise.logits(points if apart else points[None], part)
            values = loss.of(tf.reshape(logits, (-1, logits.shape[-1])), tf.tile(labels, [loss.chunk]))[0]
            value = tf.reduce_sum(shares * tf.reshape(values, (loss.chunk, -1)), axis=0)
        gradient = noise.checked(tape.gradient(value, points))
        if apart:
            directions = BALLS[loss.norm].steepest(tf.reshape(gradient, (-1, *x.shape[1:])))
            weights = tf.reshape(shares, (-1, *[1] * len(x.shape)))
            gradient = tf.reduce_sum(weights * tf.reshape(directions, tf.shape(points)), axis=0)
        return [value, tf.reduce_sum(shares[:, :, None] * logits, axis=0), gradient]

    value, mean, gradient = noise.total(terms)
    return value, loss.of(mean, labels)[1], gradient
