"""What users pass as inputs, turned into float32 before anything is computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from defended.arguments import whole_number

Array = np.ndarray[Any, np.dtype[Any]]

_REAL = ("float", "int", "uint", "bool", "bfloat")


def float32_array(x: ArrayLike, name: str = "x") -> Array:
    """Return `x`, which may be whole numbers, floats of any width, booleans, lists or tensors, as a float32 array.

    Values that float32 cannot hold are rounded to nearest; a certificate is then about the rounded point.

    Raises:
        TypeError: for complex numbers, texts, objects and ragged lists.
    """
    if ops.is_tensor(x):
        x = ops.convert_to_numpy(x)
    if is_dataset(x) or isinstance(x, Mapping):
        raise TypeError(
            f"`{name}` must be an array of real numbers. Received: {type(x).__name__}. Take the array out of a dict; "
            f"give a `tf.data.Dataset` to `predict`, `evaluate` or `verdicts`, or one batch of it."
        )
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise TypeError(f"`{name}` must be an array of real numbers. Received: {type(x).__name__}: {error}") from None
    if not array.dtype.name.startswith(_REAL):
        raise _not_real(name, array.dtype)
    with np.errstate(over="ignore"):  # what becomes infinite is rejected
        return array.astype(np.float32, copy=False)


def float32_tensor(x: Any, name: str = "inputs") -> Any:
    """Return `x`, a tensor (symbolic ones too) or whatever `float32_array` takes, as a float32 tensor.

    Raises:
        TypeError: as for `float32_array`.
    """
    if not (ops.is_tensor(x) or hasattr(x, "_keras_history")):
        return ops.convert_to_tensor(float32_array(x, name))
    dtype = str(getattr(x.dtype, "name", x.dtype))
    if dtype == "float32":
        return x
    if not dtype.removeprefix("torch.").startswith(_REAL):
        raise _not_real(name, dtype)
    return ops.cast(x, "float32")


def is_dataset(x: Any) -> bool:
    """Return whether `x` is a `tf.data.Dataset`."""
    return hasattr(x, "element_spec") and hasattr(x, "as_numpy_iterator")


def dataset_inputs(dataset: Any, shape: tuple[int, ...]) -> Array:
    """Return the inputs of a `tf.data.Dataset`, `[n, *shape]` float32, in the order of one pass over it.

    Its elements are inputs, or tuples that begin with them; batched or not.

    Raises:
        TypeError: when they are dicts, or do not hold real numbers.
        ValueError: when they have another shape, or the data set has no end.
    """
    spec = dataset.element_spec
    first = spec[0] if isinstance(spec, tuple) else spec
    if not hasattr(first, "shape") or not hasattr(first, "dtype"):
        raise TypeError(
            f"A data set must hold inputs, or tuples that begin with them: map it so, as `dataset.map(lambda element: "
            f"element['image'])`. Received: elements {spec}"
        )
    if int(dataset.cardinality()) == -1:
        raise ValueError("The data set repeats without end. Leave `repeat` out, or take a part: `dataset.take(count)`.")
    parts = []
    for element in dataset.as_numpy_iterator():
        part = float32_array(element[0] if isinstance(spec, tuple) else element, "dataset")
        part = part[None] if part.shape == shape else part
        if part.shape[1:] != shape:
            raise ValueError(
                f"Inputs of the data set must have shape {shape}, or [n, {', '.join(map(str, shape))}] in batches. "
                f"Received: shape {part.shape}"
            )
        parts.append(part)
    return np.concatenate([np.zeros((0, *shape), np.float32), *parts])


def whole_batch_size(batch_size: Any) -> int:
    """Return `batch_size` as an int of at least 1.

    Raises:
        TypeError: when it is not a whole number.
        ValueError: when it is below 1.
    """
    return whole_number("batch_size", batch_size, 1)


def _not_real(name: str, dtype: Any) -> TypeError:
    return TypeError(f"`{name}` must hold real numbers: floats, whole numbers or booleans. Received: dtype {dtype}")
