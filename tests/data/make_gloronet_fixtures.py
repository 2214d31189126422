"""Makes the `.gloronet` fixtures of the tests in `tests/defended/gloro/legacy` with gloro itself, under legacy Keras.

It runs in an environment of its own, once for each format, in this folder:

    python3.11 -m venv legacy && legacy/bin/pip install tensorflow==2.15.1 numpy==1.26.4 gloro==1.1.1
    legacy/bin/python make_gloronet_fixtures.py                    # gloro_1_1_1.*
    git clone https://github.com/klasleino/gloro && git -C gloro checkout f04fd23
    PYTHONPATH=gloro legacy/bin/python make_gloronet_fixtures.py   # gloro_later.*, gloro_later_nested.*, liresnet.npz

Beside each `NAME.gloronet` lies `NAME.npz`: inputs `x`, gloro's `logits`, its matrix of Lipschitz constants `K` after
its power iteration, and `K_exact`, the same from float64 singular values of the layers' own operators.
"""

import json

import gloro
import numpy as np
import tensorflow as tf
from gloro.layers import InvertibleDownsampling, MinMax
from tensorflow.keras import Model, Sequential
from tensorflow.keras.layers import (
    Activation,
    Add,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    Input,
    LeakyReLU,
    MaxPooling2D,
    ReLU,
    Reshape,
)

LATER = hasattr(gloro.layers, "LiResNetBlock")
CLASSES = 4


def operator_norm(layer):
    """Largest singular value of a linear layer, from its values at every unit vector in float64."""
    shape = layer.input_shape[1:]
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    if hasattr(layer, "conv_kernel"):  # LiResNetBlock
        columns = tf.nn.conv2d(basis, tf.cast(layer.kernel, tf.float64), 1, "SAME")
    elif isinstance(layer, Conv2D):
        columns = tf.nn.conv2d(basis, tf.cast(layer.kernel, tf.float64), layer.strides, layer.padding.upper())
    elif isinstance(layer, Dense):
        columns = basis @ layer.kernel.numpy().astype(np.float64)
    elif isinstance(layer, AveragePooling2D):
        columns = tf.nn.avg_pool2d(basis, layer.pool_size, layer.strides, layer.padding.upper())
    else:
        return 1.0
    return np.linalg.norm(np.reshape(columns, (len(basis), -1)), 2)


def exact_matrix(model):
    """K of a chain of layers, in which a block's branches, told by their layers' names, are added."""
    constant, branch, skip = 1.0, 1.0, 1.0
    for layer in model.layers[:-1]:
        if isinstance(layer, Add):
            constant, branch, skip = constant * (branch + skip), 1.0, 1.0
        elif layer.name.endswith("conv_skip"):
            skip *= operator_norm(layer)
        elif layer.name.startswith("ResnetBlock"):
            branch *= operator_norm(layer)
        else:
            constant *= operator_norm(layer)
    kernel = model.layers[-1].kernel.numpy().astype(np.float64)
    return constant * np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], axis=0)


def randomise(model, seed):
    """Give every weight, biases too, a value of its own."""
    random = np.random.default_rng(seed)
    values = [
        (random.standard_normal(v.shape) * (0.5 if v.ndim < 2 else np.prod(v.shape[:-1]) ** -0.5)).astype("float32")
        for v in model.get_weights()
    ]
    model.set_weights(values)
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.moving_variance.assign(tf.abs(layer.moving_variance) + 0.5)


def converged(net):
    if LATER:
        for _ in range(200):
            net.run_lc_to_convergence(threshold=1e-7, max_tries=1000)
    else:
        net.refresh_iterates(convergence_threshold=1e-7, max_tries=2000)
    return net


def record(net, name, with_constants=True, **further):
    f = net.f
    x = np.random.default_rng(7).uniform(size=(16, *f.input_shape[1:])).astype("float32")
    arrays = {"x": x, "logits": f(x).numpy(), **further}
    if with_constants:
        arrays.update(K=net.lipschitz_constant().numpy(), K_exact=exact_matrix(f), radius=net.certified_radius(x))
    np.savez_compressed(f"{name}.npz", **arrays)


def layer_values():
    """What gloro's own weightless layers do, also behind convolutions."""
    x = np.random.default_rng(3).standard_normal((2, 4, 6, 6)).astype("float32")
    return {
        "values": x,
        "minmax": MinMax()(x).numpy(),
        "minmax_flat": MinMax()(x.reshape(2, -1)).numpy(),
        "downsampled": InvertibleDownsampling((2, 3))(x).numpy(),
    }


def first_format():
    from gloro.layers import ResnetBlock

    x = Input((8, 8, 2))
    z = Conv2D(4, 3, padding="same")(x)
    z = MinMax()(z)
    z = InvertibleDownsampling(2)(z)
    z = ResnetBlock([8, 8], [3, 1], stride1=1, activation="minmax")(z)
    z = ResnetBlock([8, 8], [3, 3], stride1=1, activation="relu", identity_skip=True)(z)
    z = AveragePooling2D(3, strides=1, padding="valid")(z)
    z = Flatten()(z)
    z = Dense(12)(z)
    z = MinMax()(z)
    net = gloro.GloroNet(x, Dense(CLASSES)(z), epsilon=0.25)
    randomise(net.f, 1)
    return converged(net)


def later_format():
    layers = gloro.layers
    f = Sequential(
        [
            Input((9, 9, 1)),
            layers.Conv2D(6, 4, strides=2, padding="same"),
            layers.MinMax(),
            layers.Conv2D(8, 3, lc_strategy="power"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, lc_strategy="eigh"),
            layers.MinMax(),
            layers.Dense(CLASSES),
        ]
    )
    net = gloro.GloroNet(model=f, epsilon=0.5)
    randomise(f, 2)
    return converged(net)


def nested():
    """Layers whose constants gloro takes for 1, so logits only."""
    inner = Sequential([Input((6, 6, 2)), Conv2D(4, 3, padding="same", name="c"), ReLU(max_value=2.0)], name="inner")
    a = Input((6, 6, 4))
    twice = Model(a, Conv2D(4, 3, padding="same", activation="tanh", name="c", groups=2)(a), name="twice")
    x = Input((6, 6, 2))
    z = inner(x)
    z = Add()([twice(twice(z)), z])
    z = LeakyReLU(0.1)(z)
    z = BatchNormalization(epsilon=0.01)(z)
    z = Conv2D(4, 2, dilation_rate=2, use_bias=False, activation="elu")(z)
    z = AveragePooling2D(2, padding="same")(z)
    z = Reshape((-1, 4))(z)
    z = Dense(5, activation="softplus")(z)
    z = Activation("softsign")(z)
    z = Reshape((2, 2, 5))(z)
    z = MaxPooling2D((1, 2), strides=(1, 1))(z)
    z = GlobalAveragePooling2D()(z)
    z = Dropout(0.3)(z)
    z = Dense(6, activation="sigmoid")(z)
    net = gloro.GloroNet(x, Dense(CLASSES)(z), epsilon=0.5)
    randomise(net.f, 4)
    return net


def live_block():
    """A network that gloro cannot save, since its block's settings are objects."""
    x = Input((5, 5, 4))
    z = gloro.layers.LiResNetBlock(3, residual_scale=0.5)(x)
    z = MinMax()(z)
    z = Flatten()(z)
    net = gloro.GloroNet(x, Dense(CLASSES)(z), epsilon=0.5)
    scale = net.f.layers[1].residual_scale.numpy()
    randomise(net.f, 5)
    net.f.layers[1].residual_scale = scale * 0.75
    return converged(net)


def main():
    tf.keras.utils.set_random_seed(11)
    if not LATER:
        net = first_format()
        record(net, "gloro_1_1_1", **layer_values())
        net.save("gloro_1_1_1.gloronet")
        return
    net = later_format()
    record(net, "gloro_later", **layer_values())
    net.freeze_lc().save("gloro_later.gloronet")
    net = nested()
    record(net, "gloro_later_nested", with_constants=False)
    net.save("gloro_later_nested.gloronet")
    net = live_block()
    names = [variable.name for variable in net.f.weights]
    values = {f"weight_{number}": value for number, value in enumerate(net.f.get_weights())}
    record(net, "liresnet", names=json.dumps(names), **values)


if __name__ == "__main__":
    main()
