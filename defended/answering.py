"""How a defended model answers: one formula for every path to an answer, behind an entry that ensures the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.certificate import Array, Finding, available_radius, finite_radius
from defended.gate import Gate
from defended.margins import predicted_class
from defended.networks.inputs import dataset_inputs, float32_array, float32_tensor, is_dataset, whole_batch_size
from defended.progress import shown
from defended.rejection_head import RejectionHead
from defended.tracing import in_stateless_scope, is_at_hand


class Verdicts(NamedTuple):
    """What a defended model says about each input, all of it proven for the network as it is."""

    label: Array
    """`[n]` int64, the answer, or -1 where the input was rejected."""
    rejected: Array
    """`[n]` bool."""
    radius: Array
    """`[n]` float32, certified radius in the model's norm; 0 where nothing is certified."""

    def __repr__(self) -> str:
        n, answered = len(self.label), self.radius[~self.rejected]
        said = f"{n} inputs: {len(answered)} answered"
        if n:
            said += f" ({len(answered) / n:.1%}), {n - len(answered)} rejected"
        if len(answered):
            said += f"; radii of answers {answered.min():.4g} to {answered.max():.4g}, median {np.median(answered):.4g}"
        return f"<Verdicts on {said}>"


_OUTPUTS = (
    "label", "rejected", "scores", "scores_with_bottom", "certified_radius", "availability_radius", "epsilon",
)  # fmt: skip
"""The outputs of every deployed model; a kind's `details` come after them."""


class Judgement(NamedTuple):
    """What a defence found about a batch in one evaluation; tensors."""

    scores: Any
    """`[batch, m + 1]`, ⊥ last."""
    radius: Any
    """`[batch]` float32, finite, 0 where nothing is certified."""
    availability: Callable[[], Any]
    """Makes `[batch]` float32, finite: the distance within which the input is still answered; 0 where it is not."""
    details: Mapping[str, Any] = MappingProxyType({})
    """Further outputs of the deployed model, `[batch, ...]` each, by their names in `DefendedModel.details`."""


class Answering(Gate, keras.Model):
    """The part of a defended model that gives what its certificate finds as scores, verdicts and radii."""

    num_classes: int
    head: RejectionHead
    forecast: Callable[[Any, int], Any]

    # One formula for `call`, verdicts and the graph that is exported.

    def _finding(self, inputs: Any, frozen: bool = False) -> Finding:
        return self._certificate.judge(inputs, ops.convert_to_tensor(self._settings.epsilon), deployed=frozen)

    def _scores(self, found: Finding, frozen: bool = False) -> Any:
        return self.head(found.logits, self._if_proven(found.slack, -1.0, frozen), found.valid)

    def _judgement(self, inputs: Any, frozen: bool = False) -> Judgement:
        """Return what one evaluation finds, so that scores and radii agree; `frozen` assumes that all is proven."""
        found = self._finding(float32_tensor(inputs), frozen)
        radius = finite_radius(found)

        def availability() -> Any:
            # Nothing is promised where epsilon was set to something other than a positive number.
            epsilon = ops.convert_to_tensor(self._settings.epsilon)
            available = available_radius(found, radius, epsilon)
            return self._if_proven(ops.where(epsilon > 0, available, 0.0), 0.0, frozen)

        details = {name: self._if_proven(value, 0, frozen) for name, value in found.details.items()}
        return Judgement(self._scores(found, frozen), self._if_proven(radius, 0.0, frozen), availability, details)

    def _verdict(self, scores: Any) -> tuple[Any, Any]:
        """Return label and rejection, `[batch]` each."""
        choice = predicted_class(scores)  # `ops.argmax` reads bits, which ONNX cannot
        rejected = ops.equal(choice, self.num_classes)
        return ops.where(rejected, ops.cast(-1, "int64"), ops.cast(choice, "int64")), rejected

    def _outputs(self, inputs: Any, frozen: bool = False) -> dict[str, Any]:
        scores, radius, availability, details = self._judgement(inputs, frozen)
        label, rejected = self._verdict(scores)
        return {
            "label": label,
            "rejected": rejected,
            "scores": scores[:, : self.num_classes],
            "scores_with_bottom": scores,
            "certified_radius": radius,
            "availability_radius": availability(),
            "epsilon": ops.zeros_like(radius) + ops.convert_to_tensor(self._settings.epsilon),
            **details,
        }

    def _logits(self, inputs: Any, training: bool = False) -> Any:
        """Return the network's logits, `[batch, m]`, as they are evaluated for verdicts."""
        return self._certificate.logits(inputs, training)

    def _judge(self) -> Any:
        def judge(batch: Any) -> tuple[Any, Any, Any]:
            scores, radius, *_ = self._judgement(batch)
            return *self._verdict(scores), radius

        with self._entered():
            return self._compiled("judge", judge, of_inputs=True)

    # Entries.

    def _pass_gate(self, inputs: Any) -> Any:
        """Return the inputs once the bounds are proven: done here for inputs at hand; in graphs, the seal decides."""
        if is_at_hand(inputs) and not in_stateless_scope():
            self._check_shape("Inputs", inputs.shape)
            self.ensure_proven()
        return inputs

    def _at_entry(
        self,
        name: str,
        function: Callable[..., Any],
        inputs: Any,
        *others: Any,
        made: Callable[[], Callable[..., Any]] | None = None,
    ) -> Any:
        """Return `function(inputs, *others)`, once the bounds are proven. For inputs at hand it is compiled, if nothing
        else is given: eagerly, thirty small operations take ten times as long as the network. `made` returns a function
        that does the same by a graph that there is already.
        """
        inputs = self._pass_gate(float32_tensor(self._without_dataset(inputs)))
        if not is_at_hand(inputs) or in_stateless_scope():
            return function(inputs, *others)
        with self._entered():
            if made is not None:
                return self._in_parts(made(), inputs)
            return self._in_parts(
                function if others else self._compiled(name, function, of_inputs=True), inputs, *others
            )

    def _in_parts(self, function: Callable[..., Any], inputs: Any, *others: Any) -> Any:
        """Return `function(inputs, *others)`, of inputs at hand in parts of as many as the certificate takes."""
        rows, count = self._certificate.rows_at_once, int(inputs.shape[0])
        if rows is None or count <= rows:
            return function(inputs, *others)
        parts = [
            function(*(value[first : first + rows] for value in (inputs, *others))) for first in range(0, count, rows)
        ]
        return ops.concatenate(parts, axis=0)

    def _checked_inputs(self, x: Any) -> Array:
        """Return `x` as an array `[n, *input shape]`, or raise `ValueError`."""
        x = self._without_dataset(x)
        x = ops.convert_to_numpy(x) if ops.is_tensor(x) else x
        # Converted by batches: of a file that is mapped into memory, only one batch is ever loaded.
        x = x if isinstance(x, np.ndarray) else float32_array(x)
        float32_array(x[:0])
        self._check_shape("`x`", x.shape)
        return x

    def _without_dataset(self, x: Any) -> Any:
        """Return the inputs of a `tf.data.Dataset` as an array; anything else as it is."""
        return dataset_inputs(x, tuple(self.network.input_shape[1:])) if is_dataset(x) else x

    def _check_shape(self, what: str, shape: Any) -> None:
        expected = tuple(self.network.input_shape[1:])
        if tuple(shape[1:]) != expected or not len(shape):
            raise ValueError(
                f"{what} must have shape [n, {', '.join(map(str, expected))}]. Received: shape {tuple(shape)}"
            )

    def verdicts(self, x: ArrayLike, batch_size: int | None = None, progress: bool | None = None) -> Verdicts:
        """Judge inputs `[n, ...]`, in batches, and return NumPy arrays.

        Args:
            x: `[n, *input shape]`; or a `tf.data.Dataset` of inputs, or of `(inputs, labels)`, batched or not, which is
                read as a whole, once.
            batch_size: inputs judged at a time, at most as many as a certificate that limits its memory evaluates at
                a time; by default that number, or 256.
            progress: show a bar on stderr, after a line that says how long it is likely to take where answers are
                drawn at random; None shows it on a terminal, once the work takes more than a few seconds.

        Raises:
            TypeError: when `x` does not hold real numbers, or `batch_size` is not a whole number.
            ValueError: when the shape of `x` is not `[n, *input shape]`, or `batch_size` is below 1; whatever
                `finalize` raises, where bounds must be proven first.
        """
        label, rejected, radius = self._in_batches(self._judge, x, batch_size, progress)
        return Verdicts(label.astype(np.int64), rejected, radius)

    def audit(self, x: ArrayLike, batch_size: int | None = None, progress: bool | None = None) -> dict[str, Array]:
        """Return all outputs of `deployed` by name, as an artefact's `audit` does: `[n, ...]` NumPy arrays.

        Arguments and errors are those of `verdicts`.
        """
        names = (*_OUTPUTS, *self.details)

        def judge(batch: Any) -> list[Any]:
            outputs = self._outputs(batch)
            return [outputs[name] for name in names]

        def made() -> Any:
            with self._entered():
                return self._compiled("audit", judge, of_inputs=True)

        return dict(zip(names, self._in_batches(made, x, batch_size, progress), strict=True))

    def _in_batches(
        self, made: Callable[[], Any], x: Any, batch_size: int | None, progress: bool | None
    ) -> list[Array]:
        """Return what a function of a batch gives for `x`; `made` makes it, once the bounds are proven."""
        size = self._batch_size(batch_size)
        x = self._checked_inputs(x)

        with shown(f"{self.name}: judging", len(x), progress, lambda: self.forecast(x, len(x))) as advance:
            self.ensure_proven()
            function, parts = made(), []
            for start in range(0, max(len(x), 1), size):
                batch = float32_array(x[start : start + size])
                # A constant shape keeps a compiled function compiled; NaN is rejected, whatever else a defence does.
                missing = max(min(size, len(x)), 1) - len(batch)
                filling = np.full((missing, *batch.shape[1:]), np.nan, "float32")
                padded = ops.convert_to_tensor(np.concatenate([batch, filling]) if missing else batch)
                parts.append([ops.convert_to_numpy(part)[: len(batch)] for part in function(padded)])
                advance(len(batch))
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return scores `[n, m + 1]` by proven bounds, as `keras.Model.predict`."""
        return self._proven_first(super().predict, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """Return scores `[batch, m + 1]` by proven bounds, as `keras.Model.predict_on_batch`."""
        return self._proven_first(super().predict_on_batch, x)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a batch by proven bounds, as `keras.Model.test_on_batch`."""
        return self._proven_first(super().test_on_batch, *args, **kwargs)

    def _proven_first(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.ensure_proven()
        with self._entered():
            return function(*args, **kwargs)

    def _batch_size(self, asked: int | None) -> int:
        most = self._certificate.rows_at_once
        sizes = [size for size in (None if asked is None else whole_batch_size(asked), most) if size is not None]
        return min(sizes, default=256)
