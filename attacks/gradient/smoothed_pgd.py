"""Projected gradient descent on a network under Gaussian noise: Algorithm 3.2 of Leino et al. 2022."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import tensorflow as tf

from defended.arguments import one_of, positive_number, whole_number
from defended.attacks.core import arguments
from defended.attacks.core.arguments import argument, yes_or_no
from defended.attacks.core.attack import Task
from defended.attacks.core.balls import BALLS
from defended.attacks.gradient.gradient_attack import step_size
from defended.attacks.gradient.objectives import loss_of_logits, no_gradient
from defended.attacks.gradient.pgd import SteppedAttack, random_start
from defended.attacks.gradient.rules import Steepest
from defended.defended_model import DefendedModel


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SmoothedPGD(SteppedAttack):
    """Projected gradient descent on the network under noise (Algorithm 3.2 of Leino et al. 2022).

    Maximises, in the ball `‖δ‖ <= radius`, the loss that the network has on `x + δ + sigma * N`, averaged over samples
    of the Gaussian noise N, by the steps of `PGD`. It is for smoothed models under `DegradationAttack`, and for any
    other network at a sigma of your choice. Returns, for each input, the iterate with the smallest margin of the mean
    logits.

    In a call, `y` holds the labels to leave, None for the network's predictions without noise.
    """

    travel: ClassVar[float] = 2.5

    sigma: float | None = argument(
        None, "standard deviation of the noise, in input units; None for `model.sigma`.", positive_number
    )
    samples: int = argument(100, "number of noise samples in each step, n.", whole_number, least=1)
    average: str = argument(
        "logits",
        '`"logits"`, the loss of the mean logits, as the algorithm is printed; `"losses"`, the mean of the samples\' '
        "losses, whose gradient is the mean of their gradients, as the authors' code has it by default; or "
        '`"directions"`, the mean of the samples\' steepest directions, where no sample counts for more than another.',
        one_of,
        known=("logits", "losses", "directions"),
    )
    common_noise: bool = argument(
        True, "the same samples in every step, so that steps descend one function; otherwise fresh ones.", yes_or_no
    )
    step_size: float | None = step_size("`2.5 * radius / steps`")
    raw_gradient: bool = argument(
        False, "step along the gradient itself, times the step size, not along the steepest direction.", yes_or_no
    )
    random_start: bool = random_start(False)
    early_stop: bool = field(init=False, default=False)
    batch_size: int = arguments.batch_size(32, "inputs attacked at a time; they share their noise.")
    max_rows: int = argument(
        2048, "noisy inputs evaluated at a time; memory grows with it, not with `samples`.", whole_number, least=1
    )
    jit_compile: bool | None = argument(
        None, "whether to compile steps with XLA; None does not, which is faster on CPUs for batches this large."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._derive(jit_compile=bool(self.jit_compile))
        if self.max_rows < self.batch_size:
            raise ValueError(
                f"`max_rows` must hold one sample of a batch, {self.batch_size} rows. Received: "
                f"max_rows={self.max_rows}. Raise it, or lower `batch_size`."
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

    def _steepest(self, norm: str) -> Steepest:
        return Steepest(norm, raw=self.raw_gradient)


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

    def __call__(self, model: DefendedModel, x: Any, labels: Any, number: Any) -> tuple[Any, Any, Any]:
        noise = _Noise(self, model, tf.stack([self.seed, 0 if self.common_noise else number]))
        return (_loss_of_mean if self.average == "logits" else _mean_of_losses)(noise, x, labels)

    def of(self, logits: Any, labels: Any) -> tuple[Any, Any]:
        """Return `(descended, judged)` of logits `[rows, m]`."""
        return loss_of_logits(self.loss, self.targeted, logits, labels)


class _Noise:
    """The network under noise, a chunk of samples at a time."""

    def __init__(self, loss: _NoisyLoss, model: DefendedModel, stream: Any):
        self.loss, self.model, self.stream = loss, model, stream
        self.chunks = -(-loss.samples // loss.chunk)

    def logits(self, points: Any, part: Any) -> Any:
        """Return the logits `[chunk, batch, m]` at points `[1 or chunk, batch, ...]`; the batch shares the noise."""
        shape = (self.loss.chunk, 1, *points.shape[2:])
        seed = tf.random.experimental.stateless_fold_in(self.stream, part)
        noisy = points + self.loss.sigma * tf.random.stateless_normal(shape, seed)
        logits = self.model.network(tf.reshape(noisy, (-1, *points.shape[2:])), training=False)
        return tf.reshape(logits, (self.loss.chunk, -1, logits.shape[-1]))

    def shares(self, part: Any) -> Any:
        """Return the weight of each sample in the mean, `[chunk, 1]`; 0 after the last sample."""
        drawn = part * self.loss.chunk + tf.range(self.loss.chunk) < self.loss.samples
        return tf.cast(drawn, tf.float32)[:, None] / self.loss.samples

    def mean_logits(self, x: Any, part: Any) -> Any:
        """Return the chunk's part of the mean logits at `[batch, ...]`, `[batch, m]`."""
        return tf.reduce_sum(self.shares(part)[:, :, None] * self.logits(x[None], part), axis=0)

    def total(self, terms: Callable[[Any], list[Any]]) -> list[Any]:
        """Return the sums of the terms over all chunks."""
        sums = terms(tf.constant(0))
        if self.chunks == 1:
            return sums

        def add(part: Any, *sums: Any) -> tuple[Any, ...]:
            return part + 1, *(a + b for a, b in zip(sums, terms(part), strict=True))

        state = (tf.constant(1), *sums)
        _, *sums = tf.while_loop(lambda part, *_: part < self.chunks, add, state, parallel_iterations=1)
        return sums

    def checked(self, gradient: Any) -> Any:
        if gradient is None:
            raise no_gradient(f"the loss {self.loss.loss!r}", self.model)
        return gradient


def _loss_of_mean(noise: _Noise, x: Any, labels: Any) -> tuple[Any, Any, Any]:
    """Return the loss of the mean logits; the chain rule takes two passes over the chunks."""
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
    """Return the mean of the samples' losses, with that of their gradients or of their steepest directions."""
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
