"""GloRo Nets on Keras 3."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from defended.certificate import Array
from defended.defended_model import DefendedModel
from defended.gate import ProvingProperty
from defended.gloro.certificate import CertificateReport
from defended.gloro.graph import LipschitzGraph
from defended.gloro.legacy.reader import read_live
from defended.gloro.lipschitz_certificate import LipschitzCertificate
from defended.margins import (
    Budget,
    competitor_radii,
    predicted_class,
)
from defended.networks.inputs import float32_tensor
from defended.numerics.float32 import FLOAT_MAX
from defended.tracing import is_at_hand


@keras.saving.register_keras_serializable(package="defended")
class GloroNet(DefendedModel):
    """A classifier with an l2 certificate from its global Lipschitz constant (Leino, Wang, Fredrikson 2021).

    With K_ij a Lipschitz constant of `y_j - y_i`, the point x is certified at eps when
    `y_j(x) - y_i(x) > eps * K_ij` for the predicted class j and every other class i; the score of ⊥ is
    `max over i != j of y_i + eps * K_ij`, differentiable, so `fit` trains the certificate together with the classifier.
    K_ij is the product of the hidden layers' constants times `|w_j - w_i|`.

    While training, norms are *estimates*: one power-iteration step per batch on a persistent vector. `finalize()`,
    which the end of `fit` calls, replaces them with proven float64 upper bounds, rounded upwards and frozen. From then
    on the certificate also pays for rounding: a point is answered when `y_j(x) - y_i(x) > eps * K_ij + E`, with E a
    proven bound on the error of that difference as float32 evaluates it at x. So the exact network's class is j in the
    whole ball, and whatever is answered in it is answered j. `finalize()` also compares what is evaluated with what was
    proven (`gloro.self_check`).

    Args:
        network: a built Sequential or functional model that returns logits; or, together with `outputs`, the input
            tensor of the functional API.
        outputs: the output tensor, where `network` is the input tensor; after a model, this is the place of epsilon:
            `GloroNet(network, 0.3)`.
        epsilon: the l2 radius defended at run time, in input units; positive.
        rounding: whether the certificate pays for rounding. False certifies real arithmetic only, and says so among its
            assumptions: for deep and wide networks, whose worst case may exceed the radius itself.

        second_look: whether inputs that nothing but rounding rejects are evaluated once more, in float64 (TensorFlow
            only; a few of a hundred inputs on deep nets). Then rounding costs next to nothing of what is answered.

    Raises:
        ValueError: when the network ends in softmax, has several inputs or outputs, a single class, a layer without a
            known Lipschitz constant, or was not built.

    Example:
        >>> model = GloroNet(network, epsilon=0.3)
        >>> model.compile("adam", loss="trades_kl.1.5", metrics=["clean_accuracy", "vra"])
        >>> model.fit(x_train, y_train, validation_data=(x_test, y_test), epochs=20)
        >>> model.verdicts(x_test).rejected.mean()
    """

    certificate_method = "GloRo: margin over a global Lipschitz bound (Leino et al. 2021)"
    certificate_assumptions: tuple[str, ...] = (
        "Distances are Euclidean (l2) on the model's input, in the units of that input.",
        "Norms are proven in float64 and rounded upwards. The network is evaluated in IEEE float32: inner products in "
        "any order, with or without fused multiply-add, subnormal numbers kept or flushed; no TF32, bfloat16 or half "
        "precision, and no convolution by Winograd's or Fourier's method. Where exp, tanh and their kin occur, they "
        "are within 16 units of roundoff relative to 1 + L |z|, with L their Lipschitz constant.",
    )

    def __init__(
        self,
        network: keras.Model | keras.KerasTensor,
        outputs: keras.KerasTensor | float | None = None,
        epsilon: float | None = None,
        *,
        rounding: bool = True,
        second_look: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(network, outputs, epsilon=epsilon, norm="l2", name=name, **kwargs)
        self.rounding, self.second_look = bool(rounding), bool(second_look)
        if self.second_look and not self.rounding:
            raise ValueError(
                "`second_look` saves what rounding costs, and with `rounding=False` it costs nothing: leave one out."
            )
        if not self.rounding:
            self.certificate_assumptions = (
                *self.certificate_assumptions,
                "The network is evaluated in real arithmetic: the rounding of float32 is not counted.",
            )
        if self.second_look:
            self.certificate_assumptions = (
                *self.certificate_assumptions,
                "Inputs that only rounding rejects are evaluated in IEEE float64 too, under the same conditions.",
            )
        self._certificate: LipschitzCertificate = LipschitzCertificate(
            self.network, self._proof, self._compiled, self.rounding, self.second_look, self._add_iterate
        )

    def _add_iterate(self, name: str, start: Array) -> Any:
        variable = self.add_weight(
            name=name, shape=start.shape, initializer="zeros", trainable=False, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        variable.assign(start)
        return variable

    @property
    def _graph(self) -> LipschitzGraph:
        return self._certificate.graph

    @ProvingProperty
    def margin_lipschitz(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The matrix K, `[m, m]` float32: proven bounds on the Lipschitz constants of `y_j - y_i`.

        An entry below the others by a factor of 1000 or more may be enlarged, so that the rounding budget, which is
        one for all pairs, covers that pair too.

        Raises:
            ValueError: whatever `finalize` raises, where bounds must be proven first.
        """
        self.ensure_proven()
        return ops.convert_to_numpy(self._proof.named.margin_lipschitz)

    def lipschitz_rows(self, classes: Any, training: bool = False) -> Any:
        """Return the rows of K for classes `[batch]`, by which losses train: `[batch, m]`.

        They are proven where the bounds are proven and nothing is being trained; otherwise they are training-time
        estimates, which may be low. `training=True` moves the power iteration.
        """
        if training or self._is_estimating():
            return self._graph.estimate_rows(classes, training=training)
        return ops.cond(
            self._proof.sealed,
            lambda: self._certificate.rows(classes),
            lambda: self._graph.estimate_rows(classes, training=False),
        )

    def deployment_radius(self, inputs: Any) -> Any:
        """Return the radius `[batch]` float32 below which a deployment of this net at any epsilon answers an input.

        It is the certified radius, except with a second look: a certified radius is looked at twice where it decides
        about epsilon and 2 epsilon only, and this one everywhere, which takes many times as long.
        """

        def radius(part: Any) -> Any:
            found = self._certificate.deployment_radius(part, ops.convert_to_tensor(self.epsilon))
            return self._if_proven(ops.where(found > 0, ops.minimum(found, FLOAT_MAX), 0.0), 0.0)

        return self._at_entry("deployment radius", radius, inputs)

    def radius_from_scores(self, scores: Any) -> Any:
        """Return the certified radius `[batch]` from scores `[batch, m + 1]`; the score of ⊥ shows what rounding costs.

        While training, and for scores that training made, it is an estimate.
        """
        if self._is_estimating() or self._aside.trained:
            logits = scores[:, : self.num_classes]
            rows = self.lipschitz_rows(predicted_class(logits))
            return ops.maximum(ops.min(competitor_radii(logits, rows), axis=-1), 0.0)
        if is_at_hand(scores):
            self.ensure_proven()
        radius = self._certificate.radius_from_scores(scores, ops.convert_to_tensor(self.epsilon))
        return self._if_proven(radius, 0.0, frozen=is_at_hand(scores))

    def _rounding_of(self, inputs: Any) -> Budget:
        """Return what rounding costs at inputs `[batch, ...]`, in units of the radius."""
        inputs = self._pass_gate(float32_tensor(inputs))
        return self._certificate.budget(self._certificate.norm(inputs))

    def certificate_report(self, at_norm: float | None = None) -> CertificateReport:
        """Report what the certificate is made of: each layer's bound, method, slack and rounding error, and the budget.

        Args:
            at_norm: l2 norm of an input for which errors are stated; by default that of an input of all ones.

        Returns:
            A `CertificateReport`; `print` shows it as a table, `to_dict()` gives it as plain data.

        Raises:
            ValueError: whatever `finalize` raises, where bounds must be proven first.
        """
        self.ensure_proven()
        norm = float(self._graph.input_size**0.5 if at_norm is None else at_norm)
        return CertificateReport.of(self._graph, norm, ops.convert_to_numpy(self._proof.named.rounding_budget))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rounding": self.rounding, "second_look": self.second_look}

    @classmethod
    def from_gloro(cls, live_model: Any, epsilon: float | None = None) -> GloroNet:
        """Convert a live model of the `gloro` library (1.1.1 or later) into a final model with the same network.

        `gloro` needs legacy Keras, which lives beside Keras 3 as `tf_keras` (`docs/how-to/import-gloro.md`). The live
        model is read by duck typing and left as it is; neither `gloro` nor `tf_keras` is imported here. As with
        `load_gloronet`, the architecture is rebuilt from an allowlist of layers and bounds are proven anew.

        Args:
            live_model: a `gloro.GloroNet`.
            epsilon: the l2 radius to defend, in input units; by default the live model's.

        Raises:
            TypeError: for anything that is not a live gloro model.
            ValueError: for a relaxed (top-k or affinity) model, a layer that is not known or is a user's own class, or
                weights that are not finite, naming the layer.
        """
        return read_live(live_model, epsilon, cls._final)

    @classmethod
    def _final(cls, network: keras.Model, epsilon: float) -> GloroNet:
        """Return the network defended at the radius, its bounds proven."""
        model = cls(network, epsilon=epsilon)
        model.finalize()
        return model
