"""ReLU networks of every kind that the dual bounds know, and random ones; exact logits, and minima of tiny ones."""

import contextlib
import itertools
from unittest import mock

import keras
import numpy as np
from keras import layers
from scipy.optimize import linprog

from defended import PolytopeNet
from defended.tracing import CompiledFunctions


def untraced():
    """Within it no graphs are traced."""
    return mock.patch.object(CompiledFunctions, "__call__", lambda self, name, function, **_: function)


@contextlib.contextmanager
def eagerly():
    """Within it no graphs are traced, and evaluations of final models are not compared with what was proven.

    For tests that hold bounds themselves against the exact network.
    """
    with untraced(), mock.patch.object(PolytopeNet, "_check"):
        yield


def sequential(shape, *body):
    return keras.Sequential([keras.Input(shape), *body])


def residual():
    x = keras.Input((6, 6, 2))
    a = layers.Conv2D(3, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(3, 3, padding="same")(a)
    c = layers.ReLU()(layers.Add()([b, layers.Conv2D(3, 1)(x)]))
    d = layers.Add()([c, layers.Conv2D(3, 3, padding="same", use_bias=False)(c)])
    pooled = layers.AveragePooling2D(3, 2, "same")(layers.ReLU()(d))
    return keras.Model(x, layers.Dense(3)(layers.Dense(5, activation="relu")(layers.Flatten()(pooled))))


def nested():
    inner = sequential((5,), layers.Dense(5), layers.ReLU())
    x = keras.Input((5,))
    return keras.Model(x, layers.Dense(3)(inner(inner(x))))


def skipping():
    """The input itself is added behind a ReLU, and the network ends in a sum."""
    x = keras.Input((4,))
    y = layers.Add()([layers.Dense(4, activation="relu")(x), x])
    return keras.Model(x, layers.Add()([layers.Dense(3)(layers.ReLU()(y)), layers.Dense(3)(y)]))


NETWORKS = {
    "linear": lambda: sequential((6,), layers.Dense(3)),
    "dense": lambda: sequential(
        (5,), layers.Dense(8, activation="relu"), layers.Dense(8), layers.Activation("relu"), layers.Dense(3)
    ),
    "long sums": lambda: sequential((331,), layers.Dense(140, activation="relu"), layers.Dense(3)),
    "patches": lambda: sequential(
        (13, 11, 2), layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(4, (2, 3), padding="same", activation="relu"), layers.Flatten(), layers.Dense(3),
    ),
    "patches of patches": lambda: sequential(
        (12, 12, 1), layers.Conv2D(2, 3, activation="relu"), layers.Conv2D(3, 2, use_bias=False),
        layers.Conv2D(3, 3, padding="same", activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(3),
    ),
    "whole maps": lambda: sequential(
        (7, 6, 2), layers.Conv2D(4, 4, strides=2, padding="same", activation="relu"),
        layers.Conv2D(4, 2, strides=(1, 2), activation="relu"), layers.Flatten(), layers.Dense(3),
    ),
    "pooling": lambda: sequential(
        (7, 7, 2), layers.AveragePooling2D(2), layers.Conv2D(4, 2, activation="relu"),
        layers.AveragePooling2D(2, 1, "same"), layers.Conv2D(3, 2), layers.GlobalAveragePooling2D(),
    ),
    "reshaped": lambda: sequential(
        (12,), layers.Reshape((2, 3, 2)), layers.Conv2D(4, 2, padding="same", activation="relu"), layers.Flatten(),
        layers.Reshape((24,)), layers.Dense(3, activation="relu"), layers.Dense(3),
    ),
    "residual": residual,
    "nested": nested,
    "skipping": skipping,
}  # fmt: skip


def randomised(network, rng, scale=1.0, bias=0.3):
    """Normal weights by the root of the fan-in, times `scale`, and normal biases."""
    for variable in network.variables:
        shape = variable.shape
        size = scale / np.sqrt(np.prod(shape[:-1])) * 1.5 if len(shape) > 1 else bias * scale
        variable.assign((rng.standard_normal(shape) * size).astype("float32"))
    return network


def linear_pieces(kernels, biases, rows, n):
    """`(cost, constant, above, limits)` of each pattern of signs of a Dense ReLU network: there, where `above z <=
    limits`, it is `rows · logits = cost · z + constant`; float64.
    """
    widths = [len(bias) for bias in biases[:-1]]
    for signs in itertools.product([False, True], repeat=sum(widths)):
        matrix, offset = np.eye(n), np.zeros(n)
        above, limits, first = [], [], 0
        for kernel, bias, width in zip(kernels[:-1], biases[:-1], widths, strict=True):
            matrix, offset = kernel.T @ matrix, kernel.T @ offset + bias
            on = np.array(signs[first : first + width])
            above.append(np.where(on[:, None], -matrix, matrix))
            limits.append(np.where(on, offset, -offset))
            matrix, offset = matrix * on[:, None], offset * on
            first += width
        cost, constant = rows @ kernels[-1].T @ matrix, rows @ (kernels[-1].T @ offset + biases[-1])
        yield cost, constant, np.concatenate(above), np.concatenate(limits)


def exact_minimum(kernels, biases, rows, x, epsilon, norm):
    """The minimum over the ball of `rows · logits` of a Dense ReLU network, float64."""
    pieces = linear_pieces(kernels, biases, rows, len(x))
    if norm == "linf":
        box = np.stack([x - epsilon, x + epsilon], 1)
        programs = ((linprog(cost, above, limits, bounds=box), constant) for cost, constant, above, limits in pieces)
        return min(found.fun + constant for found, constant in programs if found.status == 0)
    points = np.concatenate([l2_candidates(cost, above, limits, x, epsilon) for cost, _, above, limits in pieces])
    for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
        points = np.maximum(points @ kernel + bias, 0)
    return float(np.min((points @ kernels[-1] + biases[-1]) @ rows))


def l2_candidates(cost, above, limits, x, epsilon):
    """Points `[k, n]` of the l2 ball, among them one that minimises `cost · z` over its part with `above z <= limits`.

    Such a minimiser solves the same with the limits S that it touches as equations and no others, and a ball in a plane
    has its least point in closed form. (Where the cost is constant in that plane, take a minimiser that touches as
    many limits as possible: then the whole ball in the plane is feasible, its centre too.) So all S of at most n
    limits are tried. What is not feasible for this piece is a point of the ball all the same, with a value of its own.
    """
    found = []
    for size in range(len(x) + 1):
        chosen = np.array([*itertools.combinations(range(len(above)), size)], int)
        plane = above[chosen]  # [subsets, size, n]
        inverse = np.linalg.pinv(plane)
        centre = x + (inverse @ (limits[chosen] - plane @ x)[..., None])[..., 0]
        along = cost - ((inverse @ plane) @ cost)
        square = epsilon**2 - np.sum((centre - x) ** 2, axis=1)
        length = np.linalg.norm(along, axis=1)
        length = np.where(length > 1e-9 * np.linalg.norm(cost), length, np.inf)
        step = np.sqrt(np.maximum(square, 0)) / length
        found.append((centre - step[:, None] * along)[square >= 0])
    return np.concatenate(found)


def in_float64(network, x):
    """Logits of a Sequential of Dense layers with ReLUs between, in float64."""
    for layer in network.layers:
        if isinstance(layer, layers.Dense):
            kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
            x = x @ kernel + (bias[0] if bias else 0.0)
            if layer.activation is keras.activations.relu:
                x = np.maximum(x, 0)
        elif isinstance(layer, layers.Activation | layers.ReLU):
            x = np.maximum(x, 0)
    return x


def exact_logits(network, x):
    """Logits at inputs `[n, ...]` of any network of known layers, in float64, without code of those layers."""
    graph = network._functional if isinstance(network, keras.Sequential) else network
    return graph._run_through_graph(np.asarray(x, np.float64), lambda layer: lambda x, **_: _exact_layer(layer, x))


def _exact_layer(layer, x):
    if isinstance(layer, keras.Model):
        return exact_logits(layer, x)
    if isinstance(layer, layers.Add):
        return sum(x)
    if isinstance(layer, layers.Flatten | layers.Reshape):
        return x.reshape(len(x), *layer.compute_output_shape(x.shape)[1:])
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return x.mean(axis=(1, 2), keepdims=layer.keepdims)
    if isinstance(layer, layers.AveragePooling2D):
        return np.nanmean(_windows(layer, layer.pool_size, x, np.nan), axis=(-2, -1))
    if isinstance(layer, layers.Dense | layers.Conv2D):
        kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
        if isinstance(layer, layers.Conv2D):
            x = np.einsum("nhwcij,ijco->nhwo", _windows(layer, layer.kernel_size, x, 0.0), kernel)
        else:
            x = x @ kernel
        x = x + bias[0] if bias else x
    rectified = isinstance(layer, layers.ReLU) or getattr(layer, "activation", None) is keras.activations.relu
    return np.maximum(x, 0) if rectified else x


def _windows(layer, size, x, padding):
    """`[n, rows, columns, channels, *size]`: what each window holds, `padding` beyond the map."""
    if layer.padding == "same":
        axes = zip(x.shape[1:3], layer.strides, size, strict=True)
        missing = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in axes]
        sides = [(n // 2, n - n // 2) for n in missing]
        x = np.pad(x, [(0, 0), *sides, (0, 0)], constant_values=padding)
    found = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))
    return found[:, :: layer.strides[0], :: layer.strides[1]]


def random_graph(rng):
    """A network of 3 to 10 random layers, behind one another, side by side, added, shared, nested, ReLUs anywhere."""
    shape = (
        (int(rng.integers(2, 9)),)
        if rng.random() < 0.4
        else (*rng.integers(2, 10, 2).tolist(), int(rng.integers(1, 4)))
    )
    x = keras.Input(shape)
    values, shared = [x], []
    for _ in range(rng.integers(3, 11)):
        value = values[-1] if rng.random() < 0.8 else values[rng.integers(len(values))]
        values.append(_random_step(rng, value, values, shared))
    value = values[-1]
    end = rng.integers(6)
    if end == 0 and len(value.shape) == 4 and value.shape[-1] > 1:
        return keras.Model(x, layers.GlobalAveragePooling2D()(value))
    value = layers.Flatten()(value) if len(value.shape) > 2 or end == 1 else value
    if end == 2 and 1 < value.shape[-1] < 6:
        return keras.Model(x, value)
    value = layers.Dense(3, activation="relu" if end == 3 else None)(value)
    return keras.Model(x, layers.Add()([value, layers.Dense(3)(layers.Flatten()(x))]) if end == 4 else value)


def _random_step(rng, value, values, shared):
    """One more value of a random network."""
    like = [other for other in values if other.shape == value.shape]
    usable = [(layer, shape) for layer, shape in shared if shape == value.shape]
    kind = rng.choice(
        ["affine", "relu", "add", "shape", "pool", "shared", "nested"], p=[0.4, 0.2, 0.12, 0.08, 0.1, 0.06, 0.04]
    )
    if kind == "relu":
        return (layers.ReLU() if rng.random() < 0.5 else layers.Activation("relu"))(value)
    if kind == "add":
        return layers.Add()([value, *(like[rng.integers(len(like))] for _ in range(rng.integers(1, 4)))])
    if kind == "shared" and usable:
        return usable[rng.integers(len(usable))][0](value)
    activation = rng.choice(["relu", "linear"])
    if kind == "nested":
        units = value.shape[-1]
        inner = layers.Dense(units) if len(value.shape) == 2 else layers.Conv2D(units, 2, padding="same")
        inner = sequential(value.shape[1:], inner, layers.Activation(activation))
        shared.append((inner, value.shape))
        return inner(value)
    if len(value.shape) == 2:
        size = value.shape[-1]
        if kind == "shape":
            rows = [n for n in range(1, size + 1) if size % n == 0]
            return layers.Reshape((int(rng.choice(rows)), -1, 1))(value)
        layer = layers.Dense(size if rng.random() < 0.3 else int(rng.integers(1, 7)), activation=activation)
    else:
        height, width, channels = value.shape[1:]
        if kind == "shape":
            return layers.Flatten()(value) if rng.random() < 0.5 else layers.Identity()(value)
        padding = str(rng.choice(["same", "valid"]))
        strides = tuple(rng.integers(1, 4, 2).tolist()) if rng.random() < 0.5 else (1, 1)
        limits = (6, 6) if padding == "same" else (min(height, 5) + 1, min(width, 5) + 1)
        if channels == 1 and kind != "pool":
            # TensorFlow 2.21's own convolution may read wrong memory with strides (1, 2) or (1, 3).
            strides = strides[0], strides[0]
        size = tuple(int(rng.integers(1, limit)) for limit in limits)
        if kind == "pool":
            if rng.random() < 0.3:
                return layers.GlobalAveragePooling2D(keepdims=bool(rng.random() < 0.5))(value)
            return layers.AveragePooling2D(size, strides, padding)(value)
        if rng.random() < 0.3:
            layer = layers.Conv2D(channels, size, padding="same", activation=activation)
        else:
            layer = layers.Conv2D(
                int(rng.integers(1, 4)),
                size,
                strides,
                padding,
                activation=activation,
                use_bias=bool(rng.random() < 0.7),
            )
    made = layer(value)
    if made.shape == value.shape:
        shared.append((layer, value.shape))
    return made
