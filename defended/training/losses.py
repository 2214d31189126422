"""Losses over m + 1 scores, ⊥ last. Labels are class numbers `[batch]` or probabilities `[batch, m]`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from defended.arguments import number_in, number_not_negative, one_of
from defended.training.labels import soft_labels, sparse_labels
from defended.training.over_probabilities import refuse_probability_loss

_PACKAGE = "defended"


class _ModelLoss(keras.losses.Loss):
    """A loss that reads the model it is computed for, which `compile` attaches to it."""

    reads: str
    """The model's attribute."""
    needs: str
    """The models that have it, in words."""

    def __init__(self, name: str, **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self._model: Any = lambda: None

    def attach(self, model: keras.Model) -> None:
        """Read `model` from now on; `compile` calls it."""
        if not hasattr(model, self.reads):
            raise ValueError(f"`{type(self).__name__}` needs a model {self.needs}. Received: {type(model).__name__}")
        self._model = weakref.ref(model)  # Keras saves what an attribute holds

    def model(self) -> Any:
        """Return the model, or raise a ValueError where none is attached."""
        model = self._model()
        if model is None:
            raise ValueError(
                f"`{type(self).__name__}` is not attached to a model. Pass it to `model.compile(loss=...)`."
            )
        return model


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Crossentropy(keras.losses.Loss):
    """Cross-entropy of the softmax over the m classes and ⊥ (Leino et al. 2021, section 3.3)."""

    def __init__(self, name: str = "crossentropy", **kwargs: Any):
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return crossentropy(soft_labels(y_true, y_pred.shape[-1] - 1), y_pred)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Trades(_ModelLoss):
    """`CE(y, p) + weight * D(p, q)`, p the softmax without ⊥ and q with it (Leino et al. 2021, section 3.3).

    The first term asks for the right answer, the second for a certified one, right or wrong. For `divergence="kl"` it
    is `KL(p || q) = -log(1 - q_⊥) = softplus(y_⊥ - logsumexp(y))`; for `"crossentropy"` the cross-entropy of q under p,
    which also sharpens p.

    Args:
        weight: lambda, not negative.
        divergence: `"kl"` or `"crossentropy"`.
    """

    reads = "robust_weight_scale"
    needs = "with a weight of the robust term, a DefendedModel"

    def __init__(self, weight: float = 1.0, divergence: str = "kl", name: str = "trades", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.weight = number_not_negative("weight", weight)
        self.divergence = one_of("divergence", divergence, ("kl", "crossentropy"))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        logits = y_pred[:, :-1]
        normaliser = ops.logsumexp(logits, axis=-1)
        robust = ops.softplus(y_pred[:, -1] - normaliser)
        if self.divergence == "crossentropy":
            robust = robust + normaliser - ops.sum(ops.softmax(logits, axis=-1) * logits, axis=-1)
        weight: Any = self.weight
        model = self._model()
        if model is not None:
            weight = weight * ops.convert_to_tensor(model.robust_weight_scale)
        return crossentropy(soft_labels(y_true, logits.shape[-1]), logits) + weight * robust

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight, "divergence": self.divergence}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class EMMA(_ModelLoss):
    """Efficient margin maximisation (Hu et al. 2023, section 4): every rival gets the room it is nearly able to defend.

    Cross-entropy over `y_i + e_i * K_ti` for the true class t, with `e_i = clip((y_t - y_i) / K_ti, eps / 100, eps)`
    held constant, so that the loss looks past competitors that are out of reach and does not ask for all of eps at
    once.

    It needs the model's Lipschitz constants for the *true* class: `compile` attaches it.
    """

    reads = "lipschitz_rows"
    needs = "with Lipschitz constants"

    def __init__(self, name: str = "emma", **kwargs: Any):
        super().__init__(name=name, **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        model = self.model()
        logits = y_pred[:, :-1]
        labels, valid = sparse_labels(y_true, logits.shape[-1])
        epsilon = ops.convert_to_tensor(model.epsilon) * ops.convert_to_tensor(model.radius_scale)
        reach = model.lipschitz_rows(labels)
        lead = ops.take_along_axis(logits, labels[:, None], axis=-1) - logits
        radius = ops.clip(lead / ops.maximum(reach, 1e-12), 0.01 * epsilon, epsilon)
        shifted = logits + ops.stop_gradient(radius) * reach
        targets = ops.one_hot(labels, logits.shape[-1])
        # K_tt is 0 but for rounding: the true class itself gets no room.
        loss = crossentropy(targets, ops.where(targets > 0, logits, shifted))
        return ops.where(valid, loss, float("nan"))


@keras.saving.register_keras_serializable(package=_PACKAGE)
class CertifiedCrossentropy(_ModelLoss):
    """Cross-entropy of the worst logits that the bounds allow: the robust loss of Wong and Kolter 2018, equation 14.

    With `b_i` the lower bound on `y_t - y_i` over the ball, for the true class t, the worst case has logits `-b_i`, and
    0 for t: `weight * CE(t, -b) + (1 - weight) * CE(t, y)`, an upper bound on the cross-entropy of every point in the
    ball for `weight=1`. The ball's radius is `model.epsilon` times `model.radius_scale`, which schedules move, and the
    bounds are those that the model trains by (`PolytopeNet(training_bounds=...)`).

    It needs a model that bounds differences of logits: `compile` attaches it.

    Args:
        weight: share of the worst case, in [0, 1]; `callbacks.TradesSchedule` moves it as a multiple of this.
    """

    reads = "worst_case_logits"
    needs = "that bounds differences of logits, such as PolytopeNet"

    def __init__(self, weight: float = 1.0, name: str = "certified_crossentropy", **kwargs: Any):
        super().__init__(name=name, **kwargs)
        self.weight = number_in("weight", weight, "[0, 1]")

    def call(self, y_true: Any, y_pred: Any) -> Any:
        model = self.model()
        m = y_pred.shape[-1] - 1
        targets = soft_labels(y_true, m)
        labels, _ = sparse_labels(y_true, m)
        worst = crossentropy(targets, model.worst_case_logits(ops.one_hot(labels, m, dtype="float32")))
        share = ops.minimum(self.weight * ops.convert_to_tensor(model.robust_weight_scale), 1.0)
        return share * worst + (1.0 - share) * crossentropy(targets, y_pred[:, :m])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "weight": self.weight}


def resolve_loss(loss: Any, model: keras.Model) -> Any:
    """Return a loss from its shorthand, attached to the model.

    The shorthands are `"crossentropy"`, `"trades_kl"`, `"trades_ce"`, `"emma"` and `"certified_crossentropy"`, each
    with an optional `"sparse_"` before it and, for TRADES, a weight after it (`"trades_kl.1.5"`). Keras's own
    cross-entropy names mean ours: theirs expect probabilities. Other names and objects are left to Keras. Lists and
    dicts are looked through.

    Raises:
        ValueError: for a loss over probabilities, such as `keras.losses.SparseCategoricalCrossentropy()`.
    """
    if isinstance(loss, list | tuple):
        return [resolve_loss(part, model) for part in loss]
    if isinstance(loss, Mapping):
        return {name: resolve_loss(part, model) for name, part in loss.items()}
    if isinstance(loss, str):
        loss = _from_name(loss)
    refuse_probability_loss(loss)
    if hasattr(loss, "attach"):
        loss.attach(model)
    return loss


def _from_name(name: str) -> Any:
    short = name.lower().removeprefix("sparse_").removeprefix("categorical_")
    plain = {"crossentropy": Crossentropy, "emma": EMMA, "certified_crossentropy": CertifiedCrossentropy}
    if short in plain:
        return plain[short]()
    kind, _, weight = short.partition(".")
    if kind in ("trades", "trades_kl", "trades_ce"):
        try:
            value = float(weight or 1.0)
        except ValueError:
            raise ValueError(
                f"`loss={name!r}`: the weight after the dot must be a number, as in 'trades_kl.1.5'."
            ) from None
        return Trades(value, divergence="crossentropy" if kind == "trades_ce" else "kl")
    return name


def crossentropy(targets: Any, logits: Any) -> Any:
    """Return cross-entropies `[batch]` of logits.

    Targets are `[batch, k]` for `k <= logits.shape[-1]`; missing columns count as 0.
    """
    chosen = ops.sum(targets * logits[:, : targets.shape[-1]], axis=-1)
    return ops.logsumexp(logits, axis=-1) * ops.sum(targets, axis=-1) - chosen
