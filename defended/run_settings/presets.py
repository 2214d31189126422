"""What a training run does where it is told nothing, by the kind of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Kind = Literal["small-images", "colour-images", "tabular"]
KINDS: tuple[Kind, ...] = get_args(Kind)

PRESETS: Mapping[Kind, Mapping[str, Any]] = {
    # Digits, MNIST, Fashion-MNIST and their like: the demo's recipe.
    "small-images": {"net": "2c2f", "learning_rate": 3e-3, "sharpen": True},
    # 32x32 in colour: that of the nets for CIFAR-10 and road signs that ship.
    "colour-images": {
        "net": "6c2f", "epochs": 100, "loss": "emma", "start": 0.1, "ramp": 0.4, "augment": "photo",
        "sharpen": True, "sharpen_every": 8, "second_look": True,
    },
    # Rows of measurements, brought to a common scale first.
    "tabular": {
        "net": "dense", "epsilon": 0.1, "epochs": 100, "batch_size": 32, "learning_rate": 3e-3, "sharpen": True,
        "standardise": True,
    },
}  # fmt: skip
"""Settings of `TrainingSettings`, by kind of data; what is not named has that class's default."""


def kind_of(shape: tuple[int, ...]) -> Kind | None:
    """Return the kind of data whose inputs have this shape, without the batch axis; None for none of these."""
    if len(shape) == 1:
        return "tabular"
    if len(shape) != 3:
        return None
    return "colour-images" if shape[-1] == 3 else "small-images"
