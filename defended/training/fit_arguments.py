"""The arguments of Keras's `fit`, where a method takes them before Keras does."""

from __future__ import annotations

import inspect
from typing import Any

import keras


def arguments_of_fit(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return what stands behind `x` and `y` in a call of `keras.Model.fit`, positional arguments too, by name.

    Raises:
        TypeError: when `fit` has no such argument, or it is given twice.
    """
    parameters = [*inspect.signature(keras.Model.fit).parameters.values()][3:]  # behind self, x and y
    return inspect.Signature(parameters).bind(*args, **kwargs).arguments
