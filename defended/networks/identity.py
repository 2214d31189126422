"""Tests whether a network is still the one that was proven: a digest, and a watch that costs next to nothing.

The digest is SHA-256 over architecture, settings, code and weights, so that two networks that share it are the same
network. It takes a millisecond or more. The watch remembers which objects the settings are and which buffers the
weights lie in; where all of them are still the same, nothing was assigned, and the digest need not be made again.

What a watch cannot see: a change inside an object that a layer holds (an entry of a list, a variable that a function
closes over), a write into a buffer behind TensorFlow's back, and a change in code that layers call, such as a function
of Keras that was replaced. The digest sees the first where it is part of a layer's configuration. On a GPU, and with
PyTorch, buffers say nothing, and weights are compared by their digest.
"""

from __future__ import annotations

import hashlib
import json
import types
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

_PLAIN = (bool, int, float, str, bytes, type(None))


def digest_of_settings(network: keras.Model) -> bytes:
    """Return the SHA-256 of a network without its weights: layers, their order, settings, replaced code."""
    digest = hashlib.sha256()
    for part in _settings(network):
        digest.update(part.encode() + b"\0")
    return digest.digest()


def digest_of_values(variables: Iterable[Any]) -> bytes:
    """Return the SHA-256 of the types, shapes and values of variables or arrays, in their order."""
    digest = hashlib.sha256()
    for variable in variables:
        value = np.ascontiguousarray(ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(value.reshape(-1).view(np.uint8).data)
    return digest.digest()


def values_of(network: keras.Model) -> list[Any]:
    """Return the variables of a network that it computes with at inference: all but the states of its random seeds.

    Some layers that augment images move their seed at inference, too, and draw nothing that they return.
    """
    layers = network._flatten_layers(include_self=False)
    seeds = {id(generator.state) for layer in layers for generator in getattr(layer, "_seed_generators", ())}
    return [variable for variable in network.variables if id(variable) not in seeds]


class Watch:
    """Notices that the settings of a network's layers, or the values of variables, may have changed.

    Args:
        network: the network; its layers are those it has now.
        variables: what is watched besides the network's own variables.
    """

    def __init__(self, network: keras.Model, variables: Iterable[Any] = ()):
        layers = [network, *network._flatten_layers(include_self=False)]
        self._environment = _environment()
        self._layers = [(vars(layer), dict(vars(layer))) for layer in layers]
        self._methods = {(cls, name): getattr(cls, name) for cls in map(type, layers) for name in ("call", "__call__")}
        self._variables = [*values_of(network), *variables]
        # Held, a buffer is neither written to nor used for anything else: an assignment makes another one.
        self._held = [_buffer(variable) for variable in self._variables]

    def settings_are_untouched(self) -> bool:
        """Return whether every layer holds the very objects that it held, and runs the very methods that it ran."""
        try:
            return (
                self._environment == _environment()
                and all(now == then for now, then in self._layers)
                and all(getattr(cls, name) is method for (cls, name), method in self._methods.items())
            )
        except (TypeError, ValueError):  # arrays compare entry by entry: an attribute is another one now
            return False

    def values_are_untouched(self) -> bool:
        """Return whether every variable still lies in the buffer that it lay in; False where that is not known."""
        return all(
            held is not None and _is_same(_buffer(variable), held)
            for variable, held in zip(self._variables, self._held, strict=True)
        )


def _buffer(variable: Any) -> Any:
    """Return what holds a variable's value, the same object as long as the value is; None where that is not known."""
    value = getattr(variable, "_value", None)
    backend = keras.backend.backend()
    if backend == "jax":
        return value
    if value is None or backend != "tensorflow" or not hasattr(value, "_read_variable_op"):
        return None
    tensor = value._read_variable_op()
    return tensor if str(getattr(tensor, "device", "")).endswith("CPU:0") else None


def _is_same(now: Any, then: Any) -> bool:
    if now is then:
        return True
    if keras.backend.backend() != "tensorflow" or now is None:
        return False
    one, other = now._numpy(), then._numpy()
    if np.ndim(one) == 0:  # numbers come as copies
        return one.tobytes() == other.tobytes()
    if one.flags.owndata or other.flags.owndata:
        return False
    return one.__array_interface__["data"] == other.__array_interface__["data"]


# Settings, as texts.


def _environment() -> tuple[Any, ...]:
    """Return what layers read of Keras when they are called."""
    return keras.config.epsilon(), keras.config.image_data_format()


def _settings(network: keras.Model) -> Iterator[str]:
    if _environment() != (1e-7, "channels_last"):  # Keras's defaults
        yield repr(_environment())
    yield _configuration(network)
    for layer in [network, *network._flatten_layers(include_self=False)]:
        cls = type(layer)
        yield f"{cls.__module__}.{cls.__qualname__} {layer.name}"
        yield from (_code(getattr(cls, name)) for name in ("call", "__call__"))
        own = vars(layer)
        # For Keras's layers the configuration says all; what else they hold depends on how they were made.
        is_kerass = cls.__module__.split(".")[0] == "keras"
        for name in sorted(own):
            value = own[name]
            if isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
                yield f"{name}={_code(value)}"
            elif not is_kerass and not name.startswith("_") and name not in _VOLATILE and _is_plain(value):
                yield f"{name}={value!r}"
            elif isinstance(value, keras.Variable):
                yield f"{name} is a variable {value.shape}"
            elif isinstance(value, np.ndarray) or ops.is_tensor(value):
                yield f"{name} is {digest_of_values([value]).hex()}"
        yield f"{getattr(layer, 'lora_enabled', False)} {getattr(layer, 'quantization_mode', None)}"
        if not isinstance(layer, keras.Model):
            yield _configuration(layer)


# Attributes that every layer has, and that do not say what it computes.
_VOLATILE = frozenset({"built", "trainable", "name"})


def _configuration(layer: Any) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of functions without a name, which are not saved here
            return json.dumps(layer.get_config(), sort_keys=True, default=_described)
    except (NotImplementedError, TypeError, ValueError):
        return ""  # a layer that cannot be saved: its attributes are what is known of it


def _described(value: Any) -> str:
    if callable(value):
        return _code(value)
    if isinstance(value, np.ndarray):
        return digest_of_values([value]).hex()
    text = repr(value)
    # A text with an address says nothing.
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_is_plain, value)))


def _code(function: Any, depth: int = 4) -> str:
    """Return a text that differs between functions: name, code, and the functions and numbers that it closes over."""
    function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    if code is None or depth == 0:
        return name
    held = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        if _is_plain(content):
            held.append(repr(content))
        elif callable(content) and not isinstance(content, type | keras.layers.Layer):
            held.append(_code(content, depth - 1))
    digest = hashlib.sha256(code.co_code + repr([c for c in code.co_consts if _is_plain(c)]).encode()).hexdigest()
    return f"{name} {digest} {held} {function.__defaults__ if _is_plain(function.__defaults__) else ''}"
