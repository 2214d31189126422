"""What score oracles share: features, a calibrated threshold, and the search for a valid input by descent."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.defended_model import DefendedModel
from defended.membership.calibration import conformal_threshold
from defended.membership.oracle import Array, MembershipOracle, Nearest, finite_points, same_shape
from defended.networks.identity import digest_of_settings, digest_of_values, values_of

INPUT = "input"
_BATCH = 512


class ScoreOracle(MembershipOracle):
    """An oracle that takes an input to be valid when its score is at most a threshold.

    The threshold is calibrated on held-out inputs: at most a share `false_alarm_rate` of further valid inputs is taken
    to be invalid (`conformal_threshold`; on average over draws of the calibration inputs). Nothing is known about
    invalid ones: how many of them pass has to be measured.

    The score reads the network's features, so every `finalize()` that finds other weights computes it anew, from the
    data given here. The data themselves are not saved with a model.

    Args:
        x: `[n, *input shape]`, valid inputs.
        calibration: `[k, *input shape]`, further ones that neither the network nor the oracle has seen.
        false_alarm_rate: in (0, 1); at least `1 / false_alarm_rate - 1` calibration inputs are needed.
        layer: name of the layer whose output is scored; `"input"` for the input itself; None for what the last Dense
            layer reads.
        threshold: in place of a calibrated one; the rate that the calibration inputs show is then `observed_rate`.
    """

    def __init__(
        self,
        x: ArrayLike,
        calibration: ArrayLike,
        *,
        false_alarm_rate: float = 0.05,
        layer: str | None = None,
        threshold: float | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        x, calibration = finite_points("x", x), finite_points("calibration", calibration)
        if x.shape[1:] != calibration.shape[1:]:
            raise ValueError(
                f"`calibration` must hold inputs of the shape of `x`, {list(x.shape[1:])}. Received: "
                f"{list(calibration.shape[1:])}"
            )
        # Raised now for too few inputs, and not after an hour of training.
        conformal_threshold(np.zeros(len(calibration)), false_alarm_rate)
        if threshold is not None and not np.isfinite(float(threshold)):
            raise ValueError(f"`threshold` must be a finite number, or None. Received: {threshold!r}")
        self._configure(tuple(x.shape), float(false_alarm_rate), layer, threshold)
        self._aside.data = (x, calibration)

    def _configure(self, shape: tuple[int, ...], rate: float, layer: str | None, threshold: float | None) -> None:
        self.shape, self.false_alarm_rate, self.layer = shape, rate, layer
        self.given_threshold = None if threshold is None else float(threshold)
        self._aside = SimpleNamespace(data=None, features=None, both=None, is_of_earlier_version=False)
        constant = keras.initializers.Constant
        self._threshold = self._fixed_weight("threshold", (), "float32", constant(-np.inf))
        self._observed_rate = self._fixed_weight("observed_rate", (), "float32", constant(1.0))
        # The digest of the network that the score was made for, in eight numbers.
        self._made_for = self._fixed_weight("made_for", (8,), "int32")

    @abstractmethod
    def _learn(self, features: Array, model: Any) -> None:
        """Set the score's constants from features `[n, d]` of the valid inputs."""

    @abstractmethod
    def _allocate(self, features: int, classes: int) -> None:
        """Make the score's constants, when the number of features is known."""

    @property
    def threshold(self) -> float:
        """The largest score of an input that is taken to be valid."""
        return float(ops.convert_to_numpy(self._threshold))

    @property
    def observed_rate(self) -> float:
        """The share of the calibration inputs whose score is above the threshold."""
        return float(ops.convert_to_numpy(self._observed_rate))

    def bind(self, model: DefendedModel) -> None:
        same_shape("x", self.shape[1:], model)
        if self._aside.features is None:
            self._aside.features = feature_extractor(model.network, self.layer)
            features = self._aside.features.output
            self._aside.both = keras.Model(model.network.inputs, [model.network.outputs[0], features])
            self._allocate(int(np.prod(self._aside.features.output_shape[1:])), model.num_classes)
            self.built = True
        elif self._aside.features.inputs[0] is not model.network.inputs[0]:
            raise ValueError("The oracle reads the features of another network. Make one for each model.")

    @abstractmethod
    def score_gradient(self, features: Any) -> tuple[Any, Any]:
        """Score features `[batch, d]`: return `[batch]` float32, higher if less valid, and gradients `[batch, d]`.

        Gradients are written out: the derivatives that TensorFlow makes of sums and minima do not convert to ONNX.
        """

    def logits_and_features(self, inputs: Any) -> tuple[Any, Any]:
        """Return the network's logits `[batch, m]` and the features that are scored, in one evaluation."""
        logits, features = self._aside.both(inputs, training=False)
        return logits, ops.reshape(features, (-1, int(np.prod(features.shape[1:]))))

    def features(self, inputs: Any) -> Any:
        """Return the features that are scored, `[batch, d]`."""
        features = self._aside.features(inputs, training=False)
        return ops.reshape(features, (-1, int(np.prod(features.shape[1:]))))

    def score(self, inputs: Any) -> Any:
        """Return scores `[batch]` float32, above `threshold` where an input is not taken to be valid."""
        return self.score_gradient(self.features(ops.convert_to_tensor(inputs)))[0]

    def excess(self, inputs: Any) -> Any:
        """Return how far the score is above the threshold, as a share of that, `[batch]` float32; differentiable.

        Positive values mark inputs that are not taken to be valid; an attack must avoid them: `attacks.EvasiveDescent`.
        """
        threshold = ops.convert_to_tensor(self._threshold)
        return (self.score(inputs) - threshold) / ops.maximum(ops.abs(threshold), 2.0**-100)

    def prove(self, model: DefendedModel) -> None:
        """Compute the score and its threshold for the network as it is now.

        Raises:
            ValueError: when the data were not saved with the model and the weights are others, when features are not
                finite, or when a threshold would take every calibration input to be invalid.
        """
        parts = (digest_of_settings(model.network), digest_of_values(values_of(model.network)))
        digest = np.frombuffer(hashlib.sha256(b"".join(parts)).digest(), np.int32)
        if np.array_equal(ops.convert_to_numpy(self._made_for), digest) or self._aside.is_of_earlier_version:
            # Files of earlier versions hold a checksum that says less; a score changes no answer, only its reason.
            self._made_for.assign(digest)
            self._aside.is_of_earlier_version = False
            return
        if self._aside.data is None:
            raise ValueError(
                f"{type(self).__name__} was loaded without its data, and the network has changed since its score was "
                f"made: make the oracle anew, and a guard with it."
            )
        x, calibration = self._aside.data
        self._learn(self._all(self.features, x), model)
        scores = self._all(self.score, calibration)
        if not np.isfinite(scores).all():
            raise ValueError(f"{int((~np.isfinite(scores)).sum())} calibration inputs have no finite score.")
        threshold = self.given_threshold
        if threshold is None:
            threshold = conformal_threshold(scores, self.false_alarm_rate)
        # float32 rounds to nearest: a calibration input must stay on its side.
        threshold = float(np.float32(threshold))
        if (scores > threshold).all():
            raise ValueError(
                f"`threshold` must let some valid inputs pass: at {threshold:g} all {len(scores)} calibration inputs "
                f"are flagged, the lowest score is {scores.min():g}. Leave it None for a calibrated one."
            )
        self._threshold.assign(threshold)
        self._observed_rate.assign(float((scores > threshold).mean()))
        self._made_for.assign(digest)

    def load_own_variables(self, store: Any) -> None:
        """Load the variables, as Keras asks; files of earlier versions hold one number where there are eight now."""
        own = [*self._trainable_variables, *self._non_trainable_variables]
        index = str(next(i for i, variable in enumerate(own) if variable is self._made_for))
        self._aside.is_of_earlier_version = index in store.keys() and np.shape(store[index]) == ()  # noqa: SIM118
        if not self._aside.is_of_earlier_version:
            super().load_own_variables(store)
            return
        for i, variable in enumerate(own):
            if variable is not self._made_for:
                variable.assign(store[str(i)])

    def _all(self, function: Any, x: Array) -> Array:
        import tensorflow as tf

        compiled = tf.function(function, reduce_retracing=True, autograph=False)
        parts = [compiled(tf.constant(x[i : i + _BATCH])).numpy() for i in range(0, len(x), _BATCH)]
        return np.concatenate(parts)

    def nearest(
        self, model: DefendedModel, inputs: Any, predicted: Any, radius: Any, reach: Any, budget: int
    ) -> Nearest:
        from defended.membership.descent import descend

        threshold = ops.convert_to_tensor(self._threshold)
        return descend(model, self, threshold, inputs, predicted, radius, budget)

    def describe(self) -> str:
        return (
            f"a score of {self.shape[0]} valid inputs' features, threshold {self.threshold:.6g} at a false alarm rate "
            f"of {self.false_alarm_rate:g}"
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name, "shape": list(self.shape), "false_alarm_rate": self.false_alarm_rate,
            "layer": self.layer, "threshold": self.given_threshold,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return an oracle whose score comes with the weights; its data were not saved."""
        oracle = cls.__new__(cls)
        MembershipOracle.__init__(oracle, name=config["name"])
        oracle._configure(tuple(config["shape"]), config["false_alarm_rate"], config["layer"], config["threshold"])
        return oracle


def feature_extractor(network: keras.Model, layer: str | None) -> keras.Model:
    """Return the network up to a layer or, where none is named, up to what the last Dense layer reads.

    Raises:
        ValueError: for a layer that the network does not have, or no name and a network without Dense layers.
    """
    if layer == INPUT:
        return keras.Model(network.inputs, keras.layers.Identity()(network.inputs[0]))
    if layer is not None:
        names = [own.name for own in network.layers]
        if layer not in names:
            raise ValueError(f"`layer` must name a layer of the network: {', '.join(names)}. Received: {layer!r}")
        return keras.Model(network.inputs, network.get_layer(layer).output)
    last = next((own for own in reversed(network.layers) if isinstance(own, keras.layers.Dense)), None)
    if last is None:
        raise ValueError("The network has no Dense layer of its own: name the `layer` whose output is scored.")
    return keras.Model(network.inputs, last.input)
