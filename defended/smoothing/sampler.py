"""Votes of a network under Gaussian noise, drawn inside one TensorFlow graph, until a gate has seen enough."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from defended.margins import finite_rows
from defended.smoothing.gate import Gate


class Sampled(NamedTuple):
    """What one run of sampling found for each input."""

    counts: Any
    """`[batch, m]` int32, the votes of the draws that decided; those of the selection are not among them."""
    drawn: Any
    """`[batch]` int32, how many draws these were; a draw whose logits are not finite votes for no class."""
    margin: Any
    """`[batch]` int32, votes for the candidate beyond those that would just not answer; positive: an answer."""
    radius: Any
    """`[batch]` float32, proven; 0 where sampling was given up early, and where the input is not finite."""
    samples_used: Any
    """`[batch]` int32, all draws, selection included; 0 where the input is not finite."""


@dataclass(eq=False)
class Sampler:
    """CERTIFY's sampling (Cohen et al. 2019), chunk by chunk, on the inputs that are still undecided.

    Every input is judged under noise of its own, so that verdicts on the inputs of a batch are independent draws. The
    loops run inside the graph: counts never leave the device before the end.

    Args:
        network: logits `[batch, m]` out.
        sigma: standard deviation of the noise.
        selection_samples: draws that choose the candidate class; they do not count towards its proof.
        max_batch: the most rows that are evaluated at a time, as a function that is asked when a graph is made.
        precision: the type that the network computes in.
    """

    network: keras.Model
    sigma: float
    selection_samples: int
    max_batch: Callable[[], int]
    precision: str = "float32"

    def __post_init__(self) -> None:
        self.num_classes = int(self.network.outputs[0].shape[-1])
        shape = self.network.input_shape[1:]
        specification = [tf.TensorSpec([None, *axes, *shape], tf.float32) for axes in ((), (None,))]
        # Made once, since a graph evaluates the network in several places.
        self.chunk = tf.function(self.count_chunk, input_signature=specification, autograph=False)

    def decide(self, inputs: Any, seed: Any, gate: Gate) -> Sampled:
        """Choose a candidate for each input, and sample until the gate decides on it.

        Args:
            inputs: `[batch, ...]` float32.
            seed: `[2]` int32, names the streams of noise.
            gate: thresholds and radii; constants of the graph.
        """
        checkpoints, answer, futile, radius, offset = (tf.constant(part) for part in gate)
        batch, last = tf.shape(inputs)[0], len(gate.checkpoints) - 1
        rows = tf.cast(tf.where(finite_rows(inputs))[:, 0], tf.int32)
        points = tf.gather(inputs, rows)
        selected, step = self._votes(points, self.selection_samples, seed, tf.constant(0))
        nothing = tf.zeros([batch], tf.int32)
        found = Sampled(tf.zeros([batch, selected.shape[-1]], tf.int32), nothing, nothing, tf.zeros([batch]), nothing)

        def body(
            look: Any, step: Any, rows: Any, points: Any, candidate: Any, counts: Any, found: Sampled
        ) -> tuple[Any, ...]:
            before = tf.where(look > 0, checkpoints[tf.maximum(look - 1, 0)], 0)
            votes, step = self._votes(points, checkpoints[look] - before, seed, step)
            counts += votes
            own = tf.gather(counts, candidate, batch_dims=1)
            answered = own >= answer[look]
            decided = answered | (own <= futile[look])
            known = answered | (look == last)
            # Elsewhere the table has no entry.
            proven = tf.where(known, tf.gather(radius, tf.where(known, offset[look] + own, 0)), 0.0)
            drawn = tf.fill(tf.shape(own), checkpoints[look])
            now = Sampled(counts, drawn, own - answer[look] + 1, proven, drawn + self.selection_samples)
            done, going = tf.where(decided), tf.where(~decided)[:, 0]
            # A list of indices, since `tensor_scatter_nd_update` takes one.
            places = tf.gather_nd(rows, done)[:, None]
            pairs = zip(found, now, strict=True)
            found = Sampled(*(tf.tensor_scatter_nd_update(old, places, tf.gather_nd(new, done)) for old, new in pairs))
            kept = (tf.gather(part, going) for part in (rows, points, candidate, counts))
            return look + 1, step, *kept, found

        state = (
            tf.constant(0), step, rows, points, tf.argmax(selected, axis=-1, output_type=tf.int32),
            tf.zeros_like(selected), found,
        )  # fmt: skip
        some, scalar = tf.TensorShape([None]), tf.TensorShape([])
        shapes = (
            scalar, scalar, some, tf.TensorShape([None, *points.shape[1:]]), some, selected.shape,
            Sampled(*(part.shape for part in found)),
        )  # fmt: skip
        *_, found = tf.while_loop(
            lambda look, step, rows, *_: (look <= last) & (tf.size(rows) > 0),
            body, state, shape_invariants=shapes, parallel_iterations=1,
        )  # fmt: skip
        return found

    def count(self, inputs: Any, number: int, seed: Any) -> Any:
        """Return the votes of `number` draws, `[batch, m]` int32; none for inputs that are not finite."""
        votes, _ = self._votes(inputs, number, seed, tf.constant(0))
        return tf.where(finite_rows(inputs)[:, None], votes, 0)

    def noise(self, count: Any, seed: Any) -> Any:
        """Return independent normal numbers, `[count, *input shape]` float32; a function of the seed, `[2]` int32.

        They are TensorFlow Probability's uniform numbers under the transform of Box and Muller: its normal ones are
        made by the same transform of the same numbers, one at a time, which takes twice as long on CPUs.
        """
        shape = self.network.input_shape[1:]
        size = count * math.prod(shape)
        # The first from 1 down to 0, which is left out, so that the logarithm is finite; the second an angle.
        tfp = tensorflow_probability()
        seeds, half = tfp.random.split_seed(seed, 2), (size + 1) // 2
        first = tfp.distributions.Uniform(1.0, 0.0).sample(half, seed=seeds[0])
        angle = tfp.distributions.Uniform(0.0, 2 * math.pi).sample(half, seed=seeds[1])
        length = tf.sqrt(-2 * self.sigma**2 * tf.math.log(first))
        normal = tf.concat([length * tf.cos(angle), length * tf.sin(angle)], axis=0)
        return tf.reshape(normal if math.prod(shape) % 2 == 0 else normal[:size], tf.stack([count, *shape]))

    def logits(self, points: Any) -> Any:
        """Return the network's logits in inference mode and in this sampler's precision, as float32."""
        with evaluated_in(self.network, self.precision):
            return tf.cast(self.network(points, training=False), tf.float32)

    def _votes(self, points: Any, number: Any, seed: Any, step: Any) -> tuple[Any, Any]:
        """Return votes `[batch, m]` int32 of `number` draws, in chunks, and the number of the stream's next chunk."""
        # While a CPU waits for the end of one evaluation, it can work on the next: together they keep to the budget.
        rounds = 1 if tf.config.list_logical_devices("GPU") else 2
        limit = max(1, self.max_batch() // rounds)
        batch = tf.shape(points)[0]
        chunk = tf.maximum(1, limit // tf.maximum(batch, 1))

        def body(drawn: Any, step: Any, counts: Any) -> tuple[Any, Any, Any]:
            size = tf.minimum(chunk, number - drawn)
            return drawn + size, step + 1, counts + self._chunk_of(points, size, tf.random.fold_in(seed, step), limit)

        state = (tf.constant(0), step, tf.zeros([batch, self.num_classes], tf.int32))
        shapes = (tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([None, self.num_classes]))
        _, step, counts = tf.while_loop(
            lambda drawn, *_: (drawn < number) & (batch > 0),
            body, state, shape_invariants=shapes, parallel_iterations=rounds,
        )  # fmt: skip
        return counts, step

    def _chunk_of(self, points: Any, draws: Any, seed: Any, limit: int) -> Any:
        """Return votes `[batch, m]` int32 of draws for every point, `limit` rows at a time (at least a point's)."""
        batch = tf.shape(points)[0]
        width = tf.maximum(1, limit // draws)

        def count(part: Any, seed: Any) -> Any:
            size = tf.shape(part)[0]
            noise = self.noise(size * draws, seed)
            return self.chunk(part, tf.reshape(noise, tf.concat([[size, draws], tf.shape(noise)[1:]], axis=0)))

        def body(first: Any, votes: Any) -> tuple[Any, Any]:
            part = count(points[first : first + width], tf.random.fold_in(seed, first))
            return first + width, tf.concat([votes, part], axis=0)

        # Slices only where there are more points than the budget has rows.
        shapes = (tf.TensorShape([]), tf.TensorShape([None, self.num_classes]))
        return tf.cond(
            width >= batch,
            lambda: count(points, seed),
            lambda: tf.while_loop(
                lambda first, votes: first < batch,
                body,
                (tf.constant(0), tf.zeros([0, self.num_classes], tf.int32)),
                shape_invariants=shapes,
                parallel_iterations=1,
            )[1],
        )

    def count_chunk(self, points: Any, noise: Any) -> Any:
        """Return votes `[batch, m]` int32 under noise `[batch, draws, ...]`, or `[1, draws, ...]` for all points."""
        shape, (batch, draws) = list(points.shape[1:]), (tf.shape(points)[0], tf.shape(noise)[1])
        logits = self.logits(tf.reshape(points[:, None] + noise, [batch * draws, *shape]))
        votes = tf.one_hot(tf.argmax(logits, axis=-1, output_type=tf.int32), self.num_classes, dtype=tf.int32)
        # Logits that are not finite vote for no class.
        votes *= tf.cast(finite_rows(logits), tf.int32)[:, None]
        return tf.reduce_sum(tf.reshape(votes, [batch, draws, self.num_classes]), axis=1)


def fresh_seed() -> Any:
    """Return a seed `[2]` int32 from the system's entropy at every run, in Python, in graphs and in exported artefacts.

    The operation has no seed to be set, so neither `keras.utils.set_random_seed` nor a copy of an artefact can make
    two processes draw the same noise; and no state, so there is nothing to restore from a checkpoint.
    """
    return tf.raw_ops.NonDeterministicInts(shape=[2], dtype=tf.int32)


def seed_of(seed: int, inputs: Any) -> Any:
    """Return a seed `[2]` int32, a function of `seed` and the content of `inputs`, for experiments that must repeat."""
    bits = tf.reshape(tf.bitcast(inputs, tf.int32), [-1])
    # Odd factors, so that every bit of every entry counts; sums of int32 wrap around.
    factors = 2 * tf.range(tf.size(bits)) * 40503 + 1
    return tf.random.fold_in(tf.constant([seed & 0x7FFFFFFF, seed >> 31], tf.int32), tf.reduce_sum(bits * factors))


@contextmanager
def evaluated_in(network: keras.Model, precision: str) -> Iterator[None]:
    """Let a float32 network compute in another type while it is traced; its weights stay float32."""
    if precision == "float32":
        yield
        return
    layers = [layer for layer in network._flatten_layers() if hasattr(layer, "dtype_policy")]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy(f"mixed_{precision}")
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


def tensorflow_probability() -> Any:
    """Return the module, imported at the first use: the import takes seconds that only smoothing needs."""
    with warnings.catch_warnings():
        # It asks for versions through distutils, which is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        import tensorflow_probability as tfp
    return tfp
