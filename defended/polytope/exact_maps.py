"""Affine maps in float64 NumPy, in every form: what those that evaluate are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from defended.networks.exact_windows import Array, convolution, transposed_convolution
from defended.polytope.affine_maps import AffineMap, GlobalPoolMap, PoolMap
from defended.polytope.element_maps import FLOAT64, ScaleMap, SelectMap
from defended.polytope.kernel_maps import ConvMap, DenseMap, KernelMap


class ExactMap(NamedTuple):
    """A map, functions of float32 or float64 rows."""

    plain: Callable[[Array], Array]
    magnitudes: Callable[[Array], Array]
    squares: Callable[[Array], Array]
    transposed: Callable[[Array], tuple[Array, Array]]
    """Returns the transposed map of rows, and that of magnitudes."""
    bias: Array | float = 0.0
    offsets: Array | float = 0.0
    """The sum of magnitudes of what the bias is added up from."""


def exact_form(affine: AffineMap) -> ExactMap | None:
    """Return a map in float64; None where it does nothing but change a shape."""
    found = next((form(affine) for kind, form in _FORMS.items() if isinstance(affine, kind)), None)
    if isinstance(affine, KernelMap) and found is not None and affine.bias is not None:
        bias = _float64(affine.bias)
        return found._replace(bias=bias, offsets=np.abs(bias))
    return found


def _float64(values: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(values), np.float64)


def _by_kernel(
    forward: Callable[[Array, Array], Array], transposed: Callable[[Array, Array], Array], kernel: Array
) -> ExactMap:
    """Return a map from functions of values and of a kernel."""

    def of_kernel(weights: Array) -> Callable[[Array], Array]:
        return lambda values: forward(values.astype(np.float64), weights)

    def back(rows: Array) -> tuple[Array, Array]:
        rows = rows.astype(np.float64)
        return transposed(rows, kernel), transposed(np.abs(rows), np.abs(kernel))

    return ExactMap(of_kernel(kernel), of_kernel(np.abs(kernel)), of_kernel(kernel**2), back)


def _dense(affine: DenseMap) -> ExactMap:
    return _by_kernel(np.matmul, lambda rows, kernel: rows @ kernel.T, _float64(affine.kernel))


def _convolution(affine: ConvMap) -> ExactMap:
    geometry = affine.strides, affine.padding
    return _by_kernel(
        lambda values, kernel: convolution(values, kernel, *geometry),
        lambda rows, kernel: transposed_convolution(rows, kernel, *geometry, affine.input_shape),
        _float64(affine.kernel),
    )


def _pooling(affine: PoolMap) -> ExactMap:
    size, strides, padding = affine.geometry
    kernel = np.ones((*size, 1, 1)) * np.eye(affine.input_shape[-1])
    counts = convolution(np.ones((1, *affine.input_shape)), kernel, strides, padding)

    def forward(power: int) -> Callable[[Array], Array]:
        return lambda values: convolution(values.astype(np.float64), kernel, strides, padding) / counts**power

    def transposed(rows: Array) -> tuple[Array, Array]:
        both = (part.astype(np.float64) / counts for part in (rows, np.abs(rows)))
        first, second = (transposed_convolution(part, kernel, strides, padding, affine.input_shape) for part in both)
        return first, second

    return ExactMap(forward(1), forward(1), forward(2), transposed)


def _global_pooling(affine: GlobalPoolMap) -> ExactMap:
    height, width, _ = affine.input_shape
    share = 1.0 / (height * width)

    def pooled(power: int) -> Callable[[Array], Array]:
        return lambda values: (values.astype(np.float64).sum(axis=(1, 2)) * share**power).reshape(
            len(values), *affine.output_shape
        )

    def spread(rows: Array) -> tuple[Array, Array]:
        middle = rows.astype(np.float64).reshape(len(rows), 1, 1, -1) * share * np.ones((1, height, width, 1))
        return middle, np.abs(middle)

    return ExactMap(pooled(1), pooled(1), pooled(2), spread)


def _scaling(affine: ScaleMap) -> ExactMap:
    found = affine.scaling(FLOAT64)
    made = _by_kernel(np.multiply, np.multiply, np.asarray(found.factor))
    bias, offsets = (sum((part(offset) for offset in found.offsets), 0.0) for part in (np.asarray, np.abs))
    return made._replace(bias=bias, offsets=offsets)


def _selection(affine: SelectMap) -> ExactMap:
    entries = affine.index < np.prod(affine.input_shape)

    def forward(signs: Array) -> Callable[[Array], Array]:
        def selected(values: Array) -> Array:
            flat = np.pad(values.astype(np.float64).reshape(len(values), -1), ((0, 0), (0, 1)))
            return (flat[:, affine.index] * signs).sum(axis=1).reshape(len(values), *affine.output_shape)

        return selected

    def transposed(rows: Array, signs: Array) -> Array:
        found = np.zeros((len(rows), int(np.prod(affine.input_shape))))
        for index, sign, inside in zip(affine.index, signs, entries, strict=True):
            given = rows.reshape(len(rows), -1).astype(np.float64) * sign
            for row, values in zip(found, given, strict=True):
                np.add.at(row, index[inside], values[inside])
        return found.reshape(len(rows), *affine.input_shape)

    sizes = np.abs(affine.signs)
    return ExactMap(
        forward(affine.signs), forward(sizes), forward(sizes),
        lambda rows: (transposed(rows, affine.signs), transposed(np.abs(rows), sizes)),
    )  # fmt: skip


_FORMS: dict[type, Callable[[Any], ExactMap]] = {
    DenseMap: _dense, ConvMap: _convolution, PoolMap: _pooling, GlobalPoolMap: _global_pooling, ScaleMap: _scaling,
    SelectMap: _selection,
}  # fmt: skip
