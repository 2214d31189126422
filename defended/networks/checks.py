"""What a network must be to be defended, and what a radius must be; all else is refused here, with the remedy."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
from keras import layers, ops


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


def checked_graph(model: Any) -> keras.Model:
    """Return `model`, if it is a built network with one input of fixed shape and one output, tensors both.

    Raises:
        TypeError: for anything that is not a Keras model.
        ValueError: naming what is in the way and what to do.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            _LEGACY
            if _is_legacy(model)
            else f"`network` must be a Keras model, or the input tensor followed by the output tensor of the "
            f"functional API. Received: {type(model).__name__}"
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
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            f"`network` must have a fixed input shape: Lipschitz constants depend on it. "
            f"Received: {tuple(model.inputs[0].shape)}. Name every size in `keras.Input`."
        )
    return _without_containers(model)


def checked_network(model: Any) -> keras.Model:
    """Return `model`, if it is a built network with one input and logits `[batch, m]` as its output, in float32.

    Raises:
        TypeError: for anything that is not a Keras model.
        ValueError: naming what is in the way and what to do.
    """
    model = checked_graph(model)
    dtype = str(model.inputs[0].dtype)
    if dtype != "float32":
        raise ValueError(
            f"The input of `network` {model.name!r} is declared as {dtype}: what it is given would be rounded before "
            f"the network sees it, and certificates are about float32 inputs. Build it with `keras.Input(shape)`, "
            f"whose dtype is float32; whole numbers and bytes are converted by the defended model."
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


def network_and_radius(network: Any, outputs: Any, epsilon: Any) -> tuple[Any, Any]:
    """Return the network and the radius from `(network, epsilon)`, `(network, None, epsilon)` or `(inputs, outputs,
    epsilon)`; the radius is yet to be checked.

    Raises:
        TypeError: when there is no radius, or two; or a tensor of legacy Keras.
    """
    if _is_legacy(network) or _is_legacy(outputs):
        raise TypeError(_LEGACY)
    if isinstance(outputs, int | float | np.number):
        if epsilon is not None:
            raise TypeError(f"`epsilon` is given twice: {outputs!r} after the network, and epsilon={epsilon!r}.")
        outputs, epsilon = None, outputs
    if epsilon is None:
        raise TypeError("`epsilon`, the radius to defend, is missing: pass epsilon=0.3, in units of the input.")
    return network if outputs is None else keras.Model(network, outputs), epsilon


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


def acts_as_in_training(layer: Any) -> bool:
    """Return whether a layer or operation of a network was called with `training=True` by whoever built it.

    Layers that change pictures write the argument themselves: it is their default, which a call of the network
    overrides.
    """
    training = inspect.signature(layer.call).parameters.get("training")
    nodes = [] if training is not None and training.default else getattr(layer, "_inbound_nodes", [])
    return any(node.arguments.kwargs.get("training") for node in nodes)


def check_channels_last(layer: layers.Layer) -> None:
    """Raise `ValueError`, naming the layer, where its channels are not its last axis."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) uses data_format={layer.data_format!r}. "
            f"Only 'channels_last' is supported: rebuild the network with it."
        )


def check_normalises_channels(layer: layers.BatchNormalization, shape: tuple[int, ...]) -> None:
    """Raise `ValueError`, naming the layer, where it normalises another axis than the last one."""
    if layer.axis not in (-1, len(shape)):
        raise ValueError(
            f"Layer {layer.name!r} (BatchNormalization) normalises axis {layer.axis}; only the last one, the channels, "
            f"is supported. Build it with axis=-1."
        )


def check_keeps_shape(layer: layers.Rescaling, shape: tuple[int, ...]) -> None:
    """Raise `ValueError`, naming the layer, where scale and offset would enlarge inputs of a shape."""
    parts = [np.shape(layer.scale), np.shape(layer.offset), (1, *shape)]
    try:
        fits = np.broadcast_shapes(*parts) == (1, *shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"Layer {layer.name!r} (Rescaling) has a scale of shape {parts[0]} and an offset of shape {parts[1]}, "
            f"which do not go with inputs of shape {shape}. Give numbers, or one of each for every channel."
        )


def check_is_adapted(layer: layers.Normalization) -> None:
    """Refuse statistics that were assigned as weights and are not those that the layer computes with.

    Raises:
        ValueError: naming the remedy.
    """
    if layer.input_mean is not None:
        return
    pairs = ((layer.mean, layer.adapt_mean), (layer.variance, layer.adapt_variance))
    used, weights = ([np.ravel(ops.convert_to_numpy(pair[side])) for pair in pairs] for side in (0, 1))
    if not all(np.array_equal(one, other) for one, other in zip(used, weights, strict=True)):
        raise ValueError("its weights were assigned, and it does not use them yet: call its `finalize_state()`.")


_LEGACY = (
    "`network` was made by legacy Keras (`tf_keras`, or `tf.keras` under TF_USE_LEGACY_KERAS=1), and is no model of "
    "Keras 3. Save it there with `network.save('net.h5')`, and defend `keras.models.load_model('net.h5', "
    "compile=False)`; where that fails, rebuild it from `keras.layers`, then `new.set_weights(old.get_weights())`."
)


def _is_legacy(thing: Any) -> bool:
    kinds = [kind.__module__.split(".") for kind in type(thing).__mro__]
    return any(path[0] == "tf_keras" or path[:3] == ["tensorflow", "python", "keras"] for path in kinds)


def _without_containers(model: Any) -> Any:
    """Return the model itself, or the same layers from tensor to tensor where one is in a list, tuple or dict."""
    graph = getattr(model, "_functional", None) or model  # a Sequential holds one
    if not any(isinstance(getattr(graph, end, None), list | tuple | dict) for end in ("input", "output")):
        return model
    if type(model).call is not type(keras.Model(model.inputs, model.outputs)).call:
        raise ValueError(
            f"`network` {model.name!r} takes or returns a list, tuple or dict, and overrides `call`: which tensor "
            f"holds the logits cannot be seen. Defend a model from tensor to tensor: keras.Model(inputs, logits)."
        )
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


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
