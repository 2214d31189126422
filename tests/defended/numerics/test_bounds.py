"""Operator norms: never below the true norm, and close to it."""

import keras
import numpy as np
import pytest
import scipy.sparse.linalg
import tensorflow as tf
from keras import layers, ops

from defended.gloro import bound_conv2d_norm, bound_matrix_norm
from defended.gloro.operators import Conv2DOperator, DenseOperator, Kernel
from defended.numerics import convolution_norms as convolutions
from defended.numerics import eigenvalues
from defended.numerics import matrix_norms as bounds
from defended.numerics.sliding_windows import axes_of

RNG = np.random.default_rng(7)


def dense_operator(function, shape):
    """The matrix of a linear map of arrays, column by column, and its largest singular value in float64."""
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return function(basis).reshape(len(basis), -1)


def conv_in_float64(kernel, strides, padding, dilation=1, groups=1):
    def function(x):
        with keras.device("cpu"):
            return ops.convert_to_numpy(
                ops.conv(
                    x,
                    ops.convert_to_tensor(kernel, "float64"),
                    strides=strides,
                    padding=padding,
                    dilation_rate=dilation,
                )
            )

    return function


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 7), (64, 40)])
def test_matrix_norm_is_tight_and_never_low(shape, scale):
    matrix = (RNG.standard_normal(shape) * scale).astype("float32")
    true = np.linalg.norm(matrix.astype("float64") / scale, 2) * scale
    bound = bound_matrix_norm(matrix)
    assert true * (1 - 1e-14) <= bound <= true * (1 + 1e-8)


def test_matrix_norms_by_hand():
    assert bound_matrix_norm(np.diag([3.0, -4.0])) == pytest.approx(4.0, rel=1e-9)
    assert bound_matrix_norm(np.ones((2, 8))) == pytest.approx(4.0, rel=1e-9)
    assert bound_matrix_norm(np.zeros((3, 3))) == 0.0
    assert bound_matrix_norm(np.diag([3.0, -4.0])) >= 4.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not all finite"):
        bound_matrix_norm(np.array([[1.0, bad]]))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2), (3, 2)])
@pytest.mark.parametrize("size", [(3, 3), (4, 4), (2, 5), (1, 1)])
def test_conv_norms_exact_and_on_the_torus(padding, strides, size, monkeypatch):
    shape = (9, 8, 3)
    kernel = RNG.standard_normal((*size, 3, 4)).astype("float32")
    matrix = dense_operator(conv_in_float64(kernel, strides, padding), shape)
    true = np.linalg.norm(matrix, 2)
    exact = bound_conv2d_norm(kernel, shape[:2], strides, padding)
    assert true * (1 - 1e-13) <= exact <= true * (1 + 1e-8)
    monkeypatch.setattr(convolutions, "BAND_WORK", 0)
    torus = bound_conv2d_norm(kernel, shape[:2], strides, padding)
    assert true * (1 - 1e-13) <= torus <= true * 1.35


def test_the_torus_bound_is_within_three_percent_of_the_norm_on_larger_images(monkeypatch):
    kernel = RNG.standard_normal((3, 3, 2, 2)).astype("float32")
    exact = bound_conv2d_norm(kernel, (24, 24), (1, 1), "same")
    monkeypatch.setattr(convolutions, "BAND_WORK", 0)
    assert exact <= bound_conv2d_norm(kernel, (24, 24), (1, 1), "same") * (1 + 1e-12)
    assert bound_conv2d_norm(kernel, (24, 24), (1, 1), "same") <= exact * 1.03


@pytest.mark.parametrize("rank", [1, 5, 40])
def test_gram_iteration_is_never_low(rank, monkeypatch):
    monkeypatch.setattr(eigenvalues, "EXACT_SIZE", 4)
    factor = RNG.standard_normal((40, rank))
    matrix = factor @ RNG.standard_normal((rank, 60))
    true = np.linalg.norm(matrix, 2)
    assert true * (1 - 1e-14) <= bound_matrix_norm(matrix) <= true * 1.01


def test_a_wrong_eigenvalue_is_not_believed(monkeypatch):
    """The bound must hold even if the eigenvalue solver returned half of the truth."""
    from scipy import linalg

    true_solver = linalg.eigh
    monkeypatch.setattr(linalg, "eigh", lambda *a, **k: true_solver(*a, **k) * 0.5)
    matrix = RNG.standard_normal((30, 30))
    assert bound_matrix_norm(matrix) >= np.linalg.norm(matrix, 2) * (1 - 1e-14)


def test_a_wrong_lanczos_value_is_not_believed(monkeypatch):
    matrix, kernel = RNG.standard_normal((100, 100)), RNG.standard_normal((3, 3, 2, 3))
    right = bound_matrix_norm(matrix), bound_conv2d_norm(kernel, (7, 7), (1, 1), "same")
    for module in (eigenvalues, convolutions):
        true = module.estimate_by_lanczos
        monkeypatch.setattr(module, "estimate_by_lanczos", lambda *a, true=true: true(*a) * 0.5)
    assert bound_matrix_norm(matrix) >= np.linalg.norm(matrix, 2) * (1 - 1e-14)
    assert bound_conv2d_norm(kernel, (7, 7), (1, 1), "same") >= right[1] * (1 - 1e-7)


def norm_from_below(kernel, shape, strides, padding):
    """The largest singular value as Lanczos finds it on TensorFlow's own float64 convolution and its gradient."""
    kernel = tf.constant(kernel, "float64")

    def squared(vector):
        x = tf.reshape(tf.constant(vector), (1, *shape))
        image = tf.nn.conv2d(x, kernel, strides, padding.upper())
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=x.shape, filter=kernel, out_backprop=image, strides=[1, *strides, 1], padding=padding.upper()
        ).numpy().reshape(-1)  # fmt: skip

    n = int(np.prod(shape))
    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=squared, dtype="float64")
    return scipy.sparse.linalg.eigsh(operator, k=1, tol=1e-9, return_eigenvectors=False)[0] ** 0.5


@pytest.mark.parametrize(
    ("size", "shape", "filters", "strides", "padding"),
    [
        (3, (24, 24, 8), 8, (1, 1), "same"),
        (4, (28, 28, 16), 16, (2, 2), "same"),
        (3, (40, 10, 12), 6, (1, 1), "valid"),
        (5, (20, 26, 9), 12, (2, 1), "same"),
    ],
)
def test_large_convolutions_are_bounded_within_a_tenth_of_a_percent(size, shape, filters, strides, padding):
    kernel = RNG.standard_normal((size, size, shape[2], filters)).astype("float32")
    below = norm_from_below(kernel, shape, strides, padding)
    assert below * (1 - 1e-12) <= bound_conv2d_norm(kernel, shape[:2], strides, padding) <= below * 1.001


def test_a_kernel_that_reads_only_padding_has_norm_zero_and_a_single_pixel_its_own():
    kernel = np.zeros((3, 3, 1, 1), "float32")
    kernel[0, 0] = 2.0
    assert bound_conv2d_norm(kernel, (1, 1), (1, 1), "same") == 0.0
    kernel[1, 1] = 0.5
    assert 0.5 <= bound_conv2d_norm(kernel, (1, 1), (1, 1), "same") <= 0.5 * (1 + 1e-8)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("pool", "stride"), [(2, 2), (3, 2), (2, 1), (3, 3), (2, 3)])
def test_average_pooling_norm(pool, stride, padding):
    shape = (7, 6, 1)
    layer = layers.AveragePooling2D(pool, stride, padding, dtype="float64")
    matrix = dense_operator(lambda x: ops.convert_to_numpy(layer(x)), shape)
    true = np.linalg.norm(matrix, 2)
    got = np.prod([bounds.average_pooling_norm(side, pool, stride, padding) for side in shape[:2]])
    assert got == pytest.approx(true, rel=1e-6)
    assert got >= true * (1 - 1e-12)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("pool", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_max_pooling_is_attained_by_a_peak(pool, stride, padding):
    """A single raised pixel moves every window that holds it: the worst case of the rule is real."""
    shape = (1, 7, 6, 1)
    layer = layers.MaxPooling2D(pool, stride, padding)
    flat = ops.convert_to_numpy(layer(np.zeros(shape, "float32")))
    worst = 0.0
    for index in np.ndindex(*shape):
        peak = np.zeros(shape, "float32")
        peak[index] = 1.0
        worst = max(worst, float(np.linalg.norm(ops.convert_to_numpy(layer(peak)) - flat)))
    overlap = np.prod([bounds.max_pooling_overlap(side, pool, stride, padding) for side in shape[1:3]])
    assert np.sqrt(overlap) == pytest.approx(worst, rel=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2D(4, 3, padding="same"), (7, 6, 2)),
        (layers.Conv2D(4, 3, strides=2, padding="same"), (7, 6, 2)),
        (layers.Conv2D(4, 4, strides=3, padding="valid"), (9, 8, 2)),
        (layers.Conv2D(4, 2, strides=3, padding="valid"), (9, 8, 2)),
        (layers.Conv2D(4, 3, dilation_rate=2, padding="same"), (7, 8, 2)),
        (layers.Conv2D(4, 3, groups=2, padding="same"), (6, 6, 4)),
    ],
)
def test_conv_operator_is_the_layer_and_its_adjoint_is_one(layer, shape):
    layer.build((None, *shape))
    operator = Conv2DOperator(
        Kernel(lambda: ops.convert_to_tensor(layer.kernel)),
        shape,
        layer.strides,
        layer.padding,
        layer.dilation_rate,
        layer.groups,
    )
    x = RNG.standard_normal((1, *shape)).astype("float32")
    image = ops.convert_to_numpy(operator.apply(x))
    np.testing.assert_allclose(image, ops.convert_to_numpy(layer(x)) - ops.convert_to_numpy(layer.bias), atol=1e-5)
    z = RNG.standard_normal(image.shape).astype("float32")
    back = ops.convert_to_numpy(operator.adjoint(z))
    assert back.shape == x.shape
    assert np.sum(image * z) == pytest.approx(np.sum(x * back), rel=1e-4, abs=1e-4)
    matrix = dense_operator(lambda b: ops.convert_to_numpy(operator.apply(b.astype("float32"))), shape)
    assert operator.bound() == pytest.approx(np.linalg.norm(matrix.astype("float64"), 2), rel=1e-5)


def test_dense_estimate_converges_to_the_norm_from_below():
    kernel = keras.Variable(RNG.standard_normal((12, 8)).astype("float32"))
    operator = DenseOperator(Kernel(lambda: ops.convert_to_tensor(kernel)))
    start = RNG.standard_normal((1, 12)).astype("float32")
    operator.iterate = keras.Variable(start / np.linalg.norm(start))
    true = np.linalg.norm(ops.convert_to_numpy(kernel).astype("float64"), 2)
    values = [float(operator.estimate(training=True)) for _ in range(300)]
    assert max(values) <= true * (1 + 1e-6)
    assert values[-1] == pytest.approx(true, rel=1e-4)
    frozen = ops.convert_to_numpy(operator.iterate)
    operator.estimate(training=False)
    np.testing.assert_array_equal(frozen, ops.convert_to_numpy(operator.iterate))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_estimate_is_homogeneous_down_to_tiny_weights(scale):
    """A constant added inside the normalisation would shrink small weights to nothing."""
    base = RNG.standard_normal((12, 8)).astype("float32")
    results = []
    for factor in (1.0, scale):
        kernel = keras.Variable(base * np.float32(factor))
        operator = DenseOperator(Kernel(lambda kernel=kernel: ops.convert_to_tensor(kernel)))
        operator.iterate = keras.Variable(np.full((1, 12), 12**-0.5, "float32"))
        for _ in range(50):
            value = float(operator.estimate(training=True))
        results.append(value / factor)
    assert results[1] == pytest.approx(results[0], rel=1e-3)


@pytest.mark.parametrize("distance", [0.0, 1e-300, 1e-60, 1e-20])
def test_matrices_near_the_identity_are_bounded(distance):
    """LAPACK's solver for a single eigenvalue gives up on a third of them: residual blocks with tiny weights."""
    for _ in range(20):
        assert 1.0 <= bound_matrix_norm(np.eye(32) + distance * RNG.standard_normal((32, 32))) <= 1 + 1e-8


def test_rounding_up_to_float32():
    values = np.array([0.0, 1e-60, 0.1, 1.0, 1.0 + 1e-12, 1e60])
    rounded = bounds.round_up_to_float32(values).astype("float64")
    assert np.all(rounded >= values)
    assert rounded[0] == 0.0
    assert rounded[1] == np.finfo(np.float32).tiny
    assert rounded[3] == 1.0
    assert np.isinf(rounded[-1])


def test_the_entries_on_a_torus_err_by_no_more_than_is_counted():
    """Of angles near 2 pi exponentials lose most: against arithmetic of 64 bits."""
    kernel = np.zeros((2, 2, 1, 1))
    kernel[1, 1] = 1.0
    for sides in ((49, 249), (98, 249), (12, 49)):
        blocks, coarse = convolutions.torus_blocks(kernel, axes_of(kernel.shape, sides, (1, 1), "valid"))
        turns = [np.arange(count).astype(np.longdouble) / count for count in coarse]
        angles = 8 * np.arctan(np.longdouble(1)) * np.add.outer(*turns)[: coarse[0] // 2 + 1].reshape(-1)
        found = blocks.reshape(-1).astype(np.clongdouble)
        assert np.all(np.abs(found - np.cos(angles) - 1j * np.sin(angles)) <= convolutions.entry_errors(kernel))
