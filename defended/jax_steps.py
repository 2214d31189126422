"""On the JAX backend: let metrics read the model's variables inside a compiled step.

Keras's JAX trainer passes weights through the compiled step as arguments and leaves the variables themselves empty.
The forward pass and the loss see the arguments; metrics do not, and ours ask the model for radii.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class JaxSteps:
    """Mixed into a `keras.Model` before it; gives the steps' arguments to the variables while a step is traced."""

    def train_step(self, state: Any, data: Any) -> Any:
        with _filled(self, state):
            return super().train_step(state, data)  # type: ignore[misc]

    def test_step(self, state: Any, data: Any) -> Any:
        with _filled(self, state):
            return super().test_step(state, data)  # type: ignore[misc]


@contextmanager
def _filled(model: Any, state: Any) -> Iterator[None]:
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    before = [variable._value for variable in variables]
    try:
        for variable, value in zip(variables, [*state[0], *state[1]], strict=True):
            variable._value = value
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable._value = value
