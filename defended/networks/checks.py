"""What a network must be to be defended, and what a radius must be; all else is refused here, with the remedy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers


def checked_radius(epsilon: Any) -> float:
    """Return `epsilon` as a positive finite number, or raise `ValueError`."""
    with np.errstate(over="ignore"):
        value = float(np.float32(epsilon))  # as it is stored
    if isinstance(epsilon, bool) or not (np.isfinite(value) and value > 0):
        raise ValueError(f"`epsilon` must be a positive finite number, in input units. Received: epsilon={epsilon!r}")
    return value


def require_float32_policy(dtype: str | keras.DTypePolicy | None) -> str:
    """Return `"float32"`, or raise `ValueError` for another dtype that a defended model is asked to compute in."""
    name = getattr(dtype, "name", dtype)
    if name not in (None, "float32"):
        raise ValueError(
            f"A defended model computes in float32, whatever the global policy: its certificate counts float32's "
            f"rounding. Received: dtype={name!r}. Leave it out."
        )
    return "float32"


def checked_network(model: Any) -> keras.Model:
    """Return `model`, if it is a built network with one input and logits `[batch, m]` as its output, in float32.

    Raises:
        TypeError: for anything that is not a Keras model.
        ValueError: naming what is in the way and what to do.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`network` must be a Keras model, or the input tensor followed by the output tensor of the functional "
            f"API. Received: {type(model).__name__}"
        )
    if hasattr(model, "certified_radius"):
        raise ValueError(f"`network` is already defended ({model.name!r}). Pass the undefended one: `model.network`.")
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            f"`network` {model.name!r} is not built, or is a subclassed model whose graph cannot be seen. Start a "
            f"Sequential with `keras.Input(shape)`, call `network.build((None, ...))`, or use the functional API."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"`network` must have one input and one output. Received: {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs. Defend a model with a single head: keras.Model(inputs, logits)."
        )
    dtype = str(model.inputs[0].dtype)
    if dtype != "float32":
        raise ValueError(
            f"The input of `network` {model.name!r} is declared as {dtype}: what it is given would be rounded before "
            f"the network sees it, and certificates are about float32 inputs. Build it with `keras.Input(shape)`, "
            f"whose dtype is float32; whole numbers and bytes are converted by the defended model."
        )
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            f"`network` must have a fixed input shape: Lipschitz constants depend on it. "
            f"Received: {tuple(model.inputs[0].shape)}. Name every size in `keras.Input`."
        )
    shape = tuple(model.outputs[0].shape)
    if len(shape) != 2 or shape[-1] is None or shape[-1] < 2:
        raise ValueError(
            f"`network` must return logits of shape [batch, m] with m >= 2 classes. Received: output shape {shape}. "
            f"For two classes use two logits."
        )
    _refuse_probabilities(model)
    for layer in model._flatten_layers():
        if getattr(layer, "compute_dtype", "float32") != "float32":
            raise ValueError(
                f"Layer {layer.name!r} computes in {layer.compute_dtype}; certificates are made for float32. "
                f"Build the network under the dtype policy 'float32'."
            )
    return model


def check_plain_weights(layer: layers.Layer) -> None:
    """Refuse a layer whose kernel is not what it computes with.

    Raises:
        ValueError: for low-rank or quantised weights, naming the layer and the remedy.
    """
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        raise ValueError(
            f"Layer {layer.name!r} has low-rank or quantised weights; certificates are made for plain float32 kernels. "
            f"Merge the low-rank weights, as saving and loading does, or defend the network that was not quantised."
        )


def check_channels_last(layer: layers.Layer) -> None:
    """Raise `ValueError`, naming the layer, where its channels are not its last axis."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) uses data_format={layer.data_format!r}. "
            f"Only 'channels_last' is supported: rebuild the network with it."
        )


def _refuse_probabilities(model: Any) -> None:
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        _refuse_probabilities(last)
        return
    activation = getattr(last, "activation", None)
    squashing = {"softmax", "sigmoid", "log_softmax", "hard_sigmoid", "sparsemax"}
    names = {type(last).__name__.lower(), str(getattr(activation, "__name__", "")).lower()}
    if names & squashing:
        raise ValueError(
            f"`network` must return logits, but its last layer {last.name!r} ends in {sorted(names & squashing)[0]}. "
            f"Remove that activation (`activation=None`; `classifier_activation=None` in `keras.applications`); the "
            f"losses of `defended` expect logits."
        )
