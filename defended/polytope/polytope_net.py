"""Polytope nets: l∞ and l2 certificates by the dual bounds of Wong and Kolter."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from defended.arguments import one_of, whole_number
from defended.certificate import of_certificate
from defended.defended_model import DefendedModel
from defended.margins import leader
from defended.networks.inputs import float32_tensor
from defended.numerics.float32 import FLOAT_MAX
from defended.polytope.dual_bounds import SLOPES
from defended.polytope.dual_certificate import DualCertificate
from defended.polytope.graph import PolytopeGraph
from defended.polytope.radius import ABOVE
from defended.training.training_batch import TrainingBatch

NORMS = ("linf", "l2")
TRAINING_BOUNDS = ("dual", "crown-ibp", "interval", "projected")


@keras.saving.register_keras_serializable(package="defended")
class PolytopeNet(TrainingBatch, DefendedModel):
    """A ReLU classifier with an l∞ or l2 certificate from dual bounds (Wong and Kolter 2018).

    A point x is certified at eps when the lower bounds on `y_j - y_i` over the closed ball around it are positive, for
    the predicted class j and every other class i. They bound the logits as float32 computes them anywhere in the ball,
    and the exact ones too. The score of ⊥ is `top score - smallest bound`, differentiable, so `fit` trains the
    certificate. The bounds need one backward pass for every hidden ReLU and class; nothing is proven in
    advance but that sums cannot overflow (`finalize`).

    Args:
        network: a built Sequential or functional model with logits out, of the layers that
            `defended.polytope.known_layers()` names: linear ones, ReLUs with any slope below 0, and maxima; or,
            together with `outputs`, the input tensor of the functional API. BatchNormalization counts with its moving
            statistics, in training too, where they stay as they are.
        outputs: the output tensor, where `network` is the input tensor; after a model, this is the place of epsilon:
            `PolytopeNet(network, 0.3)`.
        epsilon: radius defended at run time, in input units; positive.
        norm: `"linf"` or `"l2"`.
        slope: of the line below a ReLU whose sign is open: `"wong-kolter"`, the paper's u / (u - l), or `"adaptive"`:
            0 or 1, whichever leaves less (CROWN, Zhang et al. 2018), and everywhere the tightest of these bounds, the
            paper's own and interval arithmetic's. So it is never looser than the paper's, at about three times the
            cost.
        training_bounds: which bounds `fit` trains and validates by; they are estimates, as rounding is not counted.
            `"dual"`: the deployed ones. `"crown-ibp"`: interval arithmetic for hidden values and the dual for the
            logits (Zhang et al. 2020). `"interval"`: interval arithmetic (Gowal et al. 2018), the cheapest.
            `"projected"`: the paper's slope, with hidden bounds estimated by random projections (Wong et al. 2018).
        projections: numbers drawn for each such estimate.
        rounding: whether the certificate pays for rounding. False certifies real arithmetic only, and says so among its
            assumptions.
        radius_steps: evaluations that search the certified radius, after the one at epsilon; the first of them is at
            2 eps where epsilon is certified.
        memory_budget: bytes that one evaluation may hold; larger batches are evaluated in parts.

    Raises:
        ValueError: for a layer that has no bounds (named, with the remedy), several inputs or outputs, a network that
            ends in softmax, or an argument out of range.

    Example:
        >>> model = PolytopeNet(network, epsilon=0.1, training_bounds="interval")
        >>> model.compile("adam", loss="certified_crossentropy", metrics=["clean_accuracy", "vra"])
        >>> model.fit(x, y, epochs=20, callbacks=[EpsilonSchedule("linear", by_batch=True)])
        >>> model.verdicts(x_test).rejected.mean()
    """

    def __init__(
        self,
        network: keras.Model | keras.KerasTensor,
        outputs: keras.KerasTensor | float | None = None,
        epsilon: float | None = None,
        *,
        norm: str = "linf",
        slope: str = "adaptive",
        training_bounds: str = "dual",
        projections: int = 50,
        rounding: bool = True,
        radius_steps: int = 5,
        memory_budget: int = 2**28,
        name: str | None = None,
        **kwargs: Any,
    ):
        one_of("norm", norm, NORMS)
        one_of("slope", slope, SLOPES)
        one_of("training_bounds", training_bounds, TRAINING_BOUNDS)
        projections = whole_number("projections", projections, 1, floats=True)
        radius_steps = whole_number("radius_steps", radius_steps, 1, floats=True)
        memory_budget = whole_number("memory_budget", memory_budget, 1, floats=True)
        super().__init__(network, outputs, epsilon=epsilon, norm=norm, name=name, **kwargs)
        self.slope, self.rounding = slope, bool(rounding)
        self._seeds = keras.random.SeedGenerator(0) if training_bounds == "projected" else None
        self._certificate: DualCertificate = DualCertificate(
            network=self.network, proof=self._proof, compiled=self._compiled, norm=norm, slope=slope,
            rounding=self.rounding, training_bounds=training_bounds, projections=projections,
            radius_steps=radius_steps, memory_budget=memory_budget, seeds=self._seeds,
        )  # fmt: skip

    # Settings of the certificate, which may be set anew.
    training_bounds = of_certificate("training_bounds")
    projections = of_certificate("projections")
    radius_steps = of_certificate("radius_steps")
    memory_budget = of_certificate("memory_budget")

    @property
    def _graph(self) -> PolytopeGraph:
        return self._certificate.graph

    @property
    def certificate_method(self) -> str:  # type: ignore[override]
        """The method, for manifests and reports."""
        lines = "the paper's slope" if self.slope == "wong-kolter" else "the tighter of its slope and CROWN's"
        return f"dual bounds on differences of logits (Wong and Kolter 2018), {lines}"

    @property
    def certificate_assumptions(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the certificate takes for granted."""
        distance = "the largest change of an entry (l-infinity)" if self.norm == "linf" else "Euclidean (l2)"
        return (
            f"Distances are {distance} on the model's input, in the units of that input; the ball is not cut at a box.",
            "The network and its bounds are evaluated in IEEE float32: inner products in the blocks in which the graph "
            "states them, each in any order, with or without fused multiply-add, subnormal numbers kept or flushed; no "
            "TF32, bfloat16 or half precision, and no convolution by Winograd's or Fourier's method."
            if self.rounding
            else "The network and its bounds are evaluated in real arithmetic: the rounding of float32 is not counted.",
        )

    # Bounds.

    def margin_lower_bounds(self, inputs: Any, epsilon: Any = None) -> Any:
        """Return lower bounds `[batch, m]` on `y_j - y_i` over the closed ball, for the predicted class j and each i.

        They hold for the exact logits and for those that float32 computes, anywhere in the ball, and are proven where
        the model is final. They are 0 for i = j, and minus the largest float32 where nothing can be said: an input
        that is not finite, or values that could overflow.

        Args:
            inputs: `[batch, *input shape]`.
            epsilon: radius, a number or `[batch]`, not negative; None for `model.epsilon`.
        """
        return self._bounds_within(inputs, epsilon, counted=True)

    def rounding_slack(self, inputs: Any, epsilon: Any = None) -> Any:
        """Return what rounding takes off `margin_lower_bounds`, against the same bounds without it, `[batch, m]`."""
        return self._bounds_within(inputs, epsilon, counted=False) - self.margin_lower_bounds(inputs, epsilon)

    def _bounds_within(self, inputs: Any, epsilon: Any, counted: bool) -> Any:
        inputs = float32_tensor(inputs)
        if epsilon is None:
            radius = ops.convert_to_tensor(self.epsilon)
        elif ops.is_tensor(epsilon):
            radius = epsilon
        else:
            radius = np.asarray(epsilon, "float32")
            if not (np.all(np.isfinite(radius)) and np.all(radius >= 0) and radius.ndim <= 1):
                raise ValueError(
                    f"`epsilon` must be a finite number that is not negative, or one for each input. "
                    f"Received: {epsilon!r}"
                )
        radius = ops.broadcast_to(ops.cast(radius, "float32"), ops.shape(inputs)[:1])

        def bounds(inputs: Any, radius: Any) -> Any:
            return self._if_proven(self._certificate.margin_bounds(inputs, radius, counted), -FLOAT_MAX)

        return self._at_entry("margins", bounds, inputs, radius)

    def competitor_radii(self, inputs: Any) -> Any:
        """Return the radius `[batch, m]` at which class i might overtake by the lines for epsilon; differentiable in x.

        The lines hold within epsilon, where the bound on `y_j - y_i` falls linearly with the radius: this is its zero.
        So it is above epsilon exactly where class i is excluded at epsilon; below epsilon it is proven, above it
        an extrapolation. Attacks descend it. It is the largest float32 for the predicted class.
        """
        return super().competitor_radii(inputs)

    def certified_radius(self, inputs: Any) -> Any:
        """Return the norm below which no perturbation changes the predicted class, `[batch]` float32; 0 where nothing
        is certified.

        It is found by bisection on [0, 4 eps]: a lower bound, never below what the bounds at eps and at 2 eps prove,
        and at most 3.94 eps with the default number of steps.
        """
        return super().certified_radius(inputs)

    def availability_radius(self, inputs: Any) -> Any:
        """Return `max(r - eps, 0)`, `[batch]` float32: within it, no perturbation should force ⊥.

        This is not a proof: over a ball inside another one the bounds are as a rule tighter, but lines follow their
        bounds, and need not leave less. A wrong *answer* stays impossible.
        """
        return super().availability_radius(inputs)

    @property
    def rows_at_once(self) -> int:
        """Inputs that are evaluated together within the memory budget."""
        return self._certificate.rows_at_once

    # Training.

    def worst_case_logits(self, rows: Any) -> Any:
        """Return minus the bounds on `y_t - y_i`, `[batch, m]`, for the batch whose loss or metrics are being computed.

        Args:
            rows: `[batch, m]`, one-hot rows of the classes t.

        Raises:
            RuntimeError: outside of `fit`, `evaluate` and their like.
        """
        inputs, radius = self._batch_inputs(), self._batch_radius()
        return (rows - 1.0) * self._certificate.estimated_margins(inputs, rows, radius)

    def radius_from_scores(self, scores: Any) -> Any:
        """Return the radii at which the batch at hand is certified, `[batch]`: 0, eps or 2 eps (and a trifle more).

        Metrics use it. In a training step it is the training radius or 0; outside of `fit` and `evaluate`, where scores
        come without inputs, it is `model.epsilon` or 0.
        """
        epsilon = ops.convert_to_tensor(self.epsilon)
        batch = self._batch()
        if batch.inputs is None or batch.training:
            slack = ops.max(scores[:, :-1], axis=-1) - scores[:, -1]
            return ops.where(slack > 0, self._batch_radius() * ABOVE, 0.0)
        inputs = self._batch_inputs()
        first = leader(scores[:, :-1])
        found: Any = 0.0
        for factor in (1.0, 2.0):
            radius = ops.broadcast_to(factor * epsilon, ops.shape(inputs)[:1])
            if self._is_estimating():
                slack = self._certificate.estimated_slack(inputs, first, radius)
            else:
                slack = self._if_proven(self._certificate.certify(inputs, first, radius)[0], -1.0)
            found = ops.where(slack > 0, radius * ABOVE, found)
        return found

    def get_config(self) -> dict[str, Any]:
        names = (
            "norm", "slope", "training_bounds", "projections", "rounding", "radius_steps", "memory_budget",
        )  # fmt: skip
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
