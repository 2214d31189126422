"""Let metrics read the model's variables inside a compiled step on the JAX backend.

Keras's JAX trainer passes weights through the compiled step as arguments and leaves the variables themselves empty.
The forward pass and the loss see the arguments; metrics do not, and ours ask the model for radii.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras


class VisibleSteps:
    """Mixed in before `keras.Model`; on JAX, gives a step's arguments to the variables while the step is traced."""

    def train_step(self, *arguments: Any) -> Any:
        """Make one step of training, as Keras calls it."""
        with _visible(self, arguments[0]):
            return super().train_step(*arguments)  # type: ignore[misc]

    def test_step(self, *arguments: Any) -> Any:
        """Make one step of evaluation, as Keras calls it."""
        with _visible(self, arguments[0]):
            return super().test_step(*arguments)  # type: ignore[misc]


@contextmanager
def _visible(model: Any, state: Any) -> Iterator[None]:
    if keras.backend.backend() != "jax":
        yield
        return
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    before = [variable._value for variable in variables]
    try:
        for variable, value in zip(variables, [*state[0], *state[1]], strict=True):
            variable._value = value
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable._value = value
