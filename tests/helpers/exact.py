"""Keras networks in exact arithmetic: Python integers in units of 2^-1024, as NumPy object arrays.

Sums and products of float32 numbers fit that unit. Divisions (pooling, normalisation) and long chains of products are
rounded down to it, which even a factor of 1e30 in every later layer leaves far below the smallest float32, 2^-149.

Nothing here is shared with the library, the geometry of convolutions and the order of the layers included.
"""

import math

import keras
import numpy as np
from keras import layers

from defended.layers import GaussianNoiseAugmentation, InvertibleDownsampling, LiResNetBlock, MinMax

BITS = 1024
WEIGHT_BITS = 176  # 149 and more


def exactly(values, bits=BITS):
    """Finite floating-point numbers as integers in units of 2^-bits; rounded down where they are no multiples."""
    mantissa, exponent = np.frexp(np.asarray(values, "float64"))
    return _shifted(np.asarray(mantissa * 2.0**53, "int64").astype(object), exponent - 53 + bits)


_shifted = np.frompyfunc(lambda whole, by: int(whole) << int(by) if by >= 0 else int(whole) >> int(-by), 2, 1)


def exact_logits(network, x):
    """The network at float32 inputs `[n, ...]`, for its float32 weights: integers `[n, m]`."""
    return _run(network, exactly(x))


def _run(network, value):
    network = getattr(network, "_functional", network)
    return network._run_through_graph(value, operation_fn=lambda operation: lambda *args, **_: _layer(operation, *args))


def _layer(layer, value):
    if isinstance(layer, keras.Model):
        return _run(layer, value)
    return LAYERS[type(layer)](layer, value)


def _times(a, b):
    return (a * b) >> BITS


def _weights(variable):
    return exactly(keras.ops.convert_to_numpy(variable), WEIGHT_BITS)


def _with_bias(layer, value):
    bias = getattr(layer, "bias", None)
    value = value if bias is None else value + exactly(keras.ops.convert_to_numpy(bias))
    return _activation(layer, value) if hasattr(layer, "activation") else value


def _dense(layer, value):
    return _with_bias(layer, (value @ _weights(layer.kernel)) >> WEIGHT_BITS)


def _padded(value, rows, columns, fill=0):
    """`numpy.pad` would pad with NumPy's integers, which overflow."""
    n, height, width, channels = value.shape
    result = np.full((n, height + sum(rows), width + sum(columns), channels), fill, dtype=object)
    result[:, rows[0] : rows[0] + height, columns[0] : columns[0] + width] = value
    return result


def _windows(value, size, strides, padding, dilation=(1, 1), fill=0):
    """`[n, h, w, taps, c]`: what each output place reads; TensorFlow's padding, the odd pixel to the bottom right."""
    counts, pads = [], []
    for length, taps, stride, step in zip(value.shape[1:3], size, strides, dilation, strict=True):
        reach = (taps - 1) * step + 1
        count = -(-length // stride) if padding == "same" else (length - reach) // stride + 1
        missing = max((count - 1) * stride + reach - length, 0) if padding == "same" else 0
        counts.append(count)
        pads.append((missing // 2, missing - missing // 2))
    value = _padded(value, *pads, fill)
    starts = [
        [slice(tap * step, tap * step + (count - 1) * stride + 1, stride) for tap in range(taps)]
        for taps, stride, step, count in zip(size, strides, dilation, counts, strict=True)
    ]
    return np.stack([value[:, rows, columns] for rows in starts[0] for columns in starts[1]], axis=3)


def _convolution(value, kernel, bits, strides, padding, dilation=(1, 1), groups=1):
    parts = []
    channels, filters = value.shape[-1] // groups, kernel.shape[-1] // groups
    for group in range(groups):
        read = value[..., group * channels : (group + 1) * channels]
        read = _windows(read, kernel.shape[:2], strides, padding, dilation)
        weights = kernel[..., group * filters : (group + 1) * filters].reshape(-1, filters)
        parts.append(read.reshape(*read.shape[:3], -1) @ weights)
    return np.concatenate(parts, axis=-1) >> bits


def _conv(layer, value):
    geometry = layer.strides, layer.padding, layer.dilation_rate, layer.groups
    return _with_bias(layer, _convolution(value, _weights(layer.kernel), WEIGHT_BITS, *geometry))


def _linear_residual(layer, value):
    kernel = _times(exactly(layer.branch_kernel), exactly(layer.residual_scale))
    if layer.affine is not None:
        kernel = _times(kernel, exactly(layer.affine))
    kernel[layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] += exactly(np.eye(value.shape[-1]))
    return _with_bias(layer, _convolution(value, kernel, BITS, (1, 1), "same"))


def _normalisation(layer, value):
    variance = exactly(layer.moving_variance) + exactly(layer.epsilon)
    scale = np.array([(1 << 2 * BITS) // math.isqrt(int(entry) << BITS) for entry in variance], dtype=object)
    if layer.scale:
        scale = _times(scale, exactly(layer.gamma))
    shifted = _times(value - exactly(layer.moving_mean), scale)
    return shifted + exactly(layer.beta) if layer.center else shifted


def _average_pooling(layer, value):
    read = _windows(value, layer.pool_size, layer.strides, layer.padding)
    inside = _windows(np.ones((1, *value.shape[1:]), dtype=object), layer.pool_size, layer.strides, layer.padding)
    return read.sum(axis=3) // inside.sum(axis=3)


def _max_pooling(layer, value):
    return _windows(value, layer.pool_size, layer.strides, layer.padding, fill=-(1 << 4 * BITS)).max(axis=3)


def _minmax(layer, value):
    low, high = (pick(value[..., ::2], value[..., 1::2]) for pick in (np.minimum, np.maximum))
    return np.stack([low, high], axis=-1).reshape(value.shape)


def _space_to_depth(layer, value):
    rows, columns = layer.pool_size
    return np.concatenate([value[:, i::rows, j::columns] for i in range(rows) for j in range(columns)], axis=-1)


def _padding(layer, value):
    return _padded(value, *layer.padding)


def _cropping(layer, value):
    (top, bottom), (left, right) = layer.cropping
    return value[:, top : value.shape[1] - bottom, left : value.shape[2] - right]


def _sloped(slope, value):
    return np.where(value >= 0, value, (value * exactly(slope)) >> BITS)


def _relu(layer, value):
    value = _sloped(layer.negative_slope, value)
    return value if layer.max_value is None else np.minimum(value, exactly(np.float32(layer.max_value)))


_ONE = 1 << BITS
_ACTIVATIONS = {
    "linear": lambda value: value,
    "relu": lambda value: np.maximum(value, 0),
    "relu6": lambda value: np.clip(value, 0, 6 * _ONE),
    "hard_tanh": lambda value: np.clip(value, -_ONE, _ONE),
    "soft_shrink": lambda value: value - np.clip(value, -_ONE // 2, _ONE // 2),
    "leaky_relu": lambda value: _sloped(0.2, value),
    "hard_sigmoid": lambda value: np.clip(value + 3 * _ONE, 0, 6 * _ONE) // 6,
}


def _activation(layer, value):
    activation = layer.activation
    if isinstance(activation, keras.layers.Layer):
        return _layer(activation, value)
    return value if activation is None else _ACTIVATIONS[activation.__name__](value)


LAYERS = {
    layers.Dense: _dense,
    layers.Conv2D: _conv,
    LiResNetBlock: _linear_residual,
    layers.BatchNormalization: _normalisation,
    layers.AveragePooling2D: _average_pooling,
    layers.MaxPooling2D: _max_pooling,
    layers.GlobalAveragePooling2D: lambda layer, value: value.sum(axis=(1, 2)) // (value.shape[1] * value.shape[2]),
    MinMax: _minmax,
    InvertibleDownsampling: _space_to_depth,
    layers.ReLU: _relu,
    layers.LeakyReLU: lambda layer, value: _sloped(layer.negative_slope, value),
    layers.Activation: _activation,
    layers.Identity: lambda layer, value: value,
    layers.Dropout: lambda layer, value: value,
    GaussianNoiseAugmentation: lambda layer, value: value,
    layers.Flatten: lambda layer, value: value.reshape(len(value), -1),
    layers.Reshape: lambda layer, value: value.reshape(len(value), *layer.target_shape),
    layers.Permute: lambda layer, value: value.transpose(0, *layer.dims),
    layers.ZeroPadding2D: _padding,
    layers.Cropping2D: _cropping,
    layers.Add: lambda layer, values: sum(values[1:], values[0]),
    layers.Subtract: lambda layer, values: values[0] - values[1],
    layers.Average: lambda layer, values: sum(values[1:], values[0]) // len(values),
    layers.Concatenate: lambda layer, values: np.concatenate(values, axis=layer.axis),
}
