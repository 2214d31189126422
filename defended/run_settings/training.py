"""Settings of a training run."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict

from defended_settings.fields import Count, NaturalNumber, NotNegative, Placeholder, Positive
from defended_settings.presets import PRESETS, kind_of


class TrainingSettings(BaseModel):
    """What decides a training run's result; each setting is an option of `defended train`.

    Raises:
        ValueError: for an unknown setting, or a value outside of its limits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Annotated[str, Placeholder("NAME|FILE.npz")] = "digits"
    """digits (8x8, from scikit-learn), mnist, fashion_mnist, or a file with x_train, y_train, x_test, y_test."""
    scale: Annotated[str, Placeholder("auto|none|NUMBER")] = "auto"
    """What the inputs in a file are divided by: auto divides images of whole numbers by 255, and nothing else."""
    net: Literal["2c2f", "4c3f", "6c2f", "dense", "liresnet"] = "2c2f"
    """The network: 2c2f (two convolutions), 4c3f, dense; 6c2f or liresnet for colour images."""
    network: Annotated[str | None, Placeholder("FILE.keras")] = None
    """Your own Keras classifier, logits out, in place of --net; its weights are the start."""
    epsilon: Positive = 0.3
    """The l2 radius to defend, in input units (pixels are in 0...1)."""
    doubling: bool = True
    """Train at twice the radius: costs clean accuracy, resists degradation."""
    epochs: Count = 60
    batch_size: Count = 128
    learning_rate: Positive = 1e-3
    """Adam's at the start; it falls over the run, see --decay."""
    decay: Literal["linear", "exponential"] = "linear"
    """How the learning rate falls: linearly to a thousandth, or exponentially to a hundredth."""
    bias_rate: NotNegative = 1.0
    """The learning rate of biases, as a multiple."""
    balance: Annotated[tuple[Positive, ...], Placeholder("NORM")] = ()
    """Keep kernels in proportion: the relative norm of each, the option once for every layer."""
    sharpen: bool = False
    """At the end rewrite the weights so that more is proven of the same function."""
    sharpen_every: Annotated[NaturalNumber, Placeholder("EPOCHS")] = 0
    """Sharpen during training too, each time after this many epochs."""
    second_look: bool = False
    """Evaluate in float64 what nothing but the cost of rounding rejects: pays on deep nets."""
    bfloat16: bool = False
    """Train in bfloat16 where oneDNN can; prove as ever."""
    loss: str = "trades_kl.1.5"
    """trades_kl.W, trades_ce.W (W the robust weight), crossentropy, or emma."""
    schedule: Literal["fixed", "linear", "log"] = "linear"
    """How the training radius reaches its value over the ramp."""
    train_radius: Positive = 1.0
    """Without doubling: the radius to train at, as a multiple of epsilon."""
    start: NotNegative = 0.0
    """Training radius of the first epoch, as a multiple of epsilon."""
    ramp: Annotated[float, Gt(0), Le(1)] = 0.5
    """Share of the epochs until the training radius has arrived."""
    augment: Literal["none", "affine", "elastic", "photo", "signs", "shift", "flip-shift"] = "none"
    """Turn, scale and move training images a little, and bend them; change them as cameras do (photo), road signs in
    the mirror, too (signs); or move and mirror them."""
    validation_split: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the training data that chooses the best epoch of radius doubling."""
    standardise: bool = False
    """Bring the features of tabular data to mean 0 and deviation 1 first; the model keeps how."""
    preset: Literal["auto", "small-images", "colour-images", "tabular", "none"] = "auto"
    """Where nothing else is said, what is known to train well on such data; auto: by the data's shape."""
    seed: NaturalNumber = 0

    def settled(self, shape: tuple[int, ...]) -> TrainingSettings:
        """Return the settings with all that was left unsaid taken from the preset for inputs `[batch, *shape]`."""
        kind = kind_of(shape) if self.preset == "auto" else self.preset
        known = {} if kind is None or kind == "none" else PRESETS[kind]
        unsaid = {name: value for name, value in known.items() if name not in self.model_fields_set}
        return self.model_copy(update={**unsaid, "preset": "none"})

    def to_toml(self) -> str:
        """Return the settings as TOML; `defended train --config` reads it back."""
        # JSON's strings, numbers and booleans are TOML's.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.model_dump(exclude_none=True).items())
