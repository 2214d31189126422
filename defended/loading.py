"""Opening a defended model from a file."""

from __future__ import annotations

import os
from typing import Any

import keras

from defended.defended_model import DefendedModel


def load_model(path: str | os.PathLike[str], *, trusted: bool = False, **kwargs: Any) -> DefendedModel:
    """Open a defended model from a `.keras` file, as `keras.models.load_model` does.

    The bounds in a file are claims: they are verified before the first answer, by a factorisation for each layer. A
    file that nobody else can have written may be trusted: its bounds then count at once.

    Args:
        path: the file's path.
        trusted: whether the file's bounds are taken as they are. They still must belong to the weights and settings in
            the file, which a digest shows; where they do not, they are verified as usual.
        **kwargs: further arguments of `keras.models.load_model`.

    Raises:
        ValueError: the file holds an undefended model.
    """
    model = keras.models.load_model(path, **kwargs)
    if not isinstance(model, DefendedModel):
        raise ValueError(
            f"{os.fspath(path)} holds an undefended {type(model).__name__}. Defend it: GloroNet(model, epsilon=...)."
        )
    if trusted:
        model.trust_file()
    return model
