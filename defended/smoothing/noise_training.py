"""Training a base classifier under Gaussian noise, with Keras's own `compile` and `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np
from keras import ops

from defended import input_range
from defended.arguments import whole_number
from defended.layers.gaussian_noise_augmentation import GaussianNoiseAugmentation
from defended.networks.checks import checked_network
from defended.networks.inputs import float32_array, float32_tensor
from defended.smoothing.consistency import Consistency
from defended.smoothing.smooth_adv import SmoothAdv
from defended.smoothing.tokens import refuse_tokens
from defended.training.fit_arguments import arguments_of_fit
from defended.training.labels import check_labels, checked_dataset, refuse_containers, soft_labels
from defended.training.losses import crossentropy
from defended.training.optimizers import make_variables
from defended.training.over_probabilities import refuse_probability_loss

# Replicas of a distribution strategy are traced in threads; each has its own value.
_EVALUATING: ContextVar[bool] = ContextVar("evaluating", default=False)


@keras.saving.register_keras_serializable(package="defended")
def crossentropy_from_logits(y_true: Any, y_pred: Any) -> Any:
    """Return the cross-entropy `[batch]` of logits `[batch, m]`; labels are class numbers or rows of probabilities."""
    return crossentropy(soft_labels(y_true, y_pred.shape[-1]), y_pred)


@keras.saving.register_keras_serializable(package="defended")
class NoisyTrainer(keras.Model):
    """A trainer of a plain classifier under noise from N(0, sigma² I), so that it can be smoothed.

    `trainer.compile(...)` and `trainer.fit(...)` are Keras's, with any data, callbacks, class or sample weights, and
    train the weights of `network` itself, which keeps nothing of the noise. The loss of an input is the mean of
    the compiled loss over its draws (Cohen et al. 2019: one draw), plus `consistency`; with `adversary`, the draws are
    around adversarial examples of the smoothed classifier. The two can be combined.

    Validation and `evaluate` measure under one fresh draw of noise per input, without consistency and adversary: that
    is what the smoothed classifier counts. `trainer(x)` and `predict` are the network, without noise.

    Args:
        network: a built Keras model with one input and logits `[batch, m]` out.
        sigma: standard deviation of the noise, in input units; the one that the smoothed classifier will have.
        draws: noise draws for each input in a step, which costs that many times as much.
        consistency: a `Consistency` loss; needs at least two draws.
        adversary: a `SmoothAdv` attack; needs the TensorFlow backend.

    Raises:
        ValueError: when an argument is out of range, or the network cannot be smoothed.
        RuntimeError: for `adversary` on a backend other than TensorFlow.
    """

    def __init__(
        self,
        network: keras.Model,
        *,
        sigma: float,
        draws: int = 1,
        consistency: Consistency | None = None,
        adversary: SmoothAdv | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        refuse_tokens(network)
        self.network = checked_network(network)
        self.augmentation = GaussianNoiseAugmentation(sigma, name="noise")
        self.draws = draws = whole_number("draws", draws, 1, floats=True)
        if consistency is not None and draws < 2:
            raise ValueError(f"`consistency` compares noise draws of one input. Received: draws={draws}. Set draws=2.")
        if adversary is not None and keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                f"`adversary` needs gradients with respect to the inputs, which are taken with TensorFlow; the Keras "
                f"backend is {keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow, or train with `consistency`."
            )
        self.consistency = consistency
        self.adversary = adversary
        self.attack_scale = self.add_weight(
            name="attack_scale", shape=(), initializer="ones", trainable=False, autocast=False,
            aggregation="only_first_replica",
        )  # fmt: skip
        self.built = True

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise, in input units."""
        return self.augmentation.sigma

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return logits: `[batch, draws, m]` while training with several draws, otherwise `[batch, m]`.

        `inputs` are `[batch, ...]`, or a pair of inputs and noise `[batch * draws, ...]` that was drawn before.
        """
        if training:
            if isinstance(inputs, tuple | list):
                inputs, noise = inputs
            else:
                self.augmentation.check_units(inputs.dtype)
                noise = self._draw(float32_tensor(inputs))
            logits = self.network(self._repeated(float32_tensor(inputs)) + noise, training=True)
            return logits if self.draws == 1 else ops.reshape(logits, (-1, self.draws, logits.shape[-1]))
        inputs = float32_tensor(inputs)
        if _EVALUATING.get():
            inputs = inputs + self.augmentation.noise_like(inputs)
        return self.network(inputs, training=False)

    def compile(
        self, optimizer: str | keras.optimizers.Optimizer = "adam", loss: Any = "crossentropy", **kwargs: Any
    ) -> None:
        """Compile as Keras does; cross-entropies given by name take logits, and labels of either kind."""
        names = ("crossentropy", "sparse_categorical_crossentropy", "categorical_crossentropy")
        loss = crossentropy_from_logits if isinstance(loss, str) and loss in names else loss
        refuse_probability_loss(loss)
        super().compile(optimizer, loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        loss = super().compute_loss(x, *self._by_draw(y, y_pred, sample_weight), training=training)
        if training and self.consistency is not None:
            loss = loss + self.consistency(y_pred, y_pred, sample_weight=sample_weight)
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return super().compute_metrics(x, *self._by_draw(y, y_pred, sample_weight))

    def train_step(self, *arguments: Any) -> Any:
        """Run one step of training, as Keras calls it; with an adversary, on the inputs that it has found."""
        if self.adversary is None:
            return super().train_step(*arguments)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(arguments[0])
        self.augmentation.check_units(x.dtype)
        x = float32_tensor(x)
        noise = self._draw(x)
        targets = soft_labels(y, self.network.output_shape[-1])
        attacked = self.adversary.perturb(self.network, x, targets, noise, ops.convert_to_tensor(self.attack_scale))
        return super().train_step(((attacked, noise), y, sample_weight))

    def test_step(self, *arguments: Any) -> Any:
        """Run one step of evaluation, as Keras calls it, under noise."""
        token = _EVALUATING.set(True)
        try:
            return super().test_step(*arguments)
        finally:
            _EVALUATING.reset(token)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Fit as `keras.Model.fit` does.

        Raises:
            ValueError: when integer labels lie outside [0, m), or inputs are integers, which are in other units than
                the noise.
        """
        kwargs = arguments_of_fit(*args, **kwargs)
        callbacks = kwargs.pop("callbacks", None)
        classes = self.network.output_shape[-1]
        refuse_containers(x=x, y=y)
        if isinstance(y, list | np.ndarray):
            check_labels(np.asarray(y), classes)
        if isinstance(x, np.ndarray) and x.dtype.kind in "iub":
            self.augmentation.check_units(x.dtype)
        if isinstance(x, list | np.ndarray):
            x = float32_array(x)
        if self.adversary is not None:
            given = callbacks if isinstance(callbacks, list | tuple) else [callbacks] * bool(callbacks)
            callbacks = [_WarmUp(), *given]
        make_variables(self)
        history = super().fit(checked_dataset(x, classes), y, callbacks=callbacks, **kwargs)
        input_range.note_training(self.network, x)
        return history

    def _draw(self, x: Any) -> Any:
        return self.augmentation.noise_like(self._repeated(x))

    def _repeated(self, values: Any) -> Any:
        """Return `[batch * draws, ...]`, the copies of an input one after the other; None stays None."""
        return values if values is None or self.draws == 1 else ops.repeat(values, self.draws, axis=0)

    def _by_draw(self, y: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Return labels, logits and weights with a row for each draw."""
        if len(y_pred.shape) == 2:
            return y, y_pred, sample_weight
        logits = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
        return self._repeated(y), logits, self._repeated(sample_weight)

    @property
    def input_shape(self) -> Any:
        return self.network.input_shape

    def get_config(self) -> dict[str, Any]:
        serialized = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "network": serialized(self.network),
            "sigma": self.sigma,
            "draws": self.draws,
            "consistency": serialized(self.consistency),
            "adversary": serialized(self.adversary),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None) -> NoisyTrainer:
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("network", "consistency", "adversary")
        }
        return cls(**{**config, **parts})


def train_noisy(
    network: keras.Model,
    x: Any,
    y: Any = None,
    *,
    sigma: float,
    draws: int = 1,
    consistency: Consistency | None = None,
    adversary: SmoothAdv | None = None,
    optimizer: str | keras.optimizers.Optimizer = "adam",
    loss: str | keras.losses.Loss | Callable[..., Any] = "crossentropy",
    metrics: Any = ("accuracy",),
    **fit: Any,
) -> keras.callbacks.History:
    """Train the weights of `network` under noise, in place, and return Keras's `History`.

    This compiles and fits a `NoisyTrainer`, which explains its arguments. For more of `compile`, use that itself.

    Args:
        network: a built Keras model with one input and logits `[batch, m]` out.
        x: inputs, or whatever `keras.Model.fit` takes.
        y: class numbers or rows of probabilities, where `x` does not hold them.
        sigma: standard deviation of the noise, in input units.
        draws: noise draws for each input in a step.
        consistency: a `Consistency` loss, or None.
        adversary: a `SmoothAdv` attack, or None.
        optimizer: as in Keras.
        loss: as in Keras; cross-entropies given by name take logits.
        metrics: as in Keras, measured under noise.
        **fit: arguments of `keras.Model.fit`, such as `epochs`, `validation_data`, `callbacks`, `class_weight`.
    """
    trainer = NoisyTrainer(network, sigma=sigma, draws=draws, consistency=consistency, adversary=adversary)
    trainer.compile(optimizer, loss, metrics=list(metrics) if isinstance(metrics, tuple) else metrics)
    return trainer.fit(x, y, **fit)


class _WarmUp(keras.callbacks.Callback):
    """Sets the attack's radius by the epoch's number, so that an interrupted run goes on with the right one."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.attack_scale.assign(self.model.adversary.scale(epoch))
