"""How much of an experiment to do, and where its nets and data are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from defended import datasets, zoo
from defended.attacks.core.attack import Attack
from defended.attacks.core.checks import Array
from defended.attacks.measurement.result import Susceptibility
from defended.attacks.measurement.susceptibility import susceptibility
from defended.defended_model import DefendedModel
from defended.exceptions import NotHereError
from defended.gloro.gloro_net import GloroNet
from defended.gloro.legacy.gloronet import load_gloronet


@dataclass(frozen=True)
class Settings:
    """How to run an experiment.

    Args:
        quick: a tenth of the points and fewer samples, to see that everything works; the intervals are wide.
        nets: files by the name of a case (such as `"cifar10-0.141"`): `.keras` or `.gloronet`.
        data: `.npz` files by the name of a data set, in place of `datasets.load`'s search.
        reference: the folder with what the authors published (`gloro/*.gloronet`, `gloro/radii/*.csv`,
            `smoothing/*.tsv`, `kw/*.npz`); by default the one that the environment variable `DEFENDED_REFERENCE` names.
        resume: directory that keeps attacks while tables are made, so that the same call goes on where one that was
            killed stopped. Delete it once they are written: what it holds is not attacked again.
    """

    quick: bool = False
    nets: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)
    data: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)
    reference: str | os.PathLike[str] | None = None
    resume: str | os.PathLike[str] | None = None

    def points(self, full: int) -> int:
        """Return how many of `full` test points to use."""
        return max(full // 10, 20) if self.quick else full

    def measure(
        self,
        of: str,
        model: DefendedModel,
        x: ArrayLike,
        y: ArrayLike,
        attack: Attack | Callable[..., Any],
        batch_size: int = 512,
    ) -> Susceptibility:
        """Call `susceptibility`, kept in `resume` as `of` (net and attack), so that tables share what both measure."""
        folder = None
        if self.resume is not None and hasattr(attack, "config"):
            folder = Path(self.resume, f"quick, {of}" if self.quick else of)
        return susceptibility(model, x, y, attack, batch_size=batch_size, resume=folder)

    def test_points(self, name: str, full: int | None) -> tuple[Array, Array]:
        """Return the first `full` test inputs and labels of a data set, all of them for None."""
        try:
            data = datasets.load(self._source(name))
        except (FileNotFoundError, ValueError) as error:
            raise NotHereError(str(error)) from error
        count = self.points(len(data.x_test) if full is None else full)
        return data.x_test[:count], data.y_test[:count]

    def _source(self, name: str) -> str | os.PathLike[str]:
        if name in self.data or name in ("mnist", "fashion_mnist"):
            return self.data.get(name, name)
        # Too large to be fetched without being asked for.
        path = Path(os.environ.get("DEFENDED_DATA") or ".", f"{name}.npz")
        if not path.is_file():
            raise NotHereError(
                f"the data set {name} is not at {path}: put {name}.npz (x_train, y_train, x_test, y_test) in a folder "
                f"and name it in DEFENDED_DATA, or give the file (data={{{name!r}: ...}}, --data {name}=...)"
            )
        return path

    def reference_file(self, *parts: str) -> Path:
        """Return a file of the authors' published results."""
        folder = self.reference or os.environ.get("DEFENDED_REFERENCE")
        if not folder:
            raise NotHereError(f"{'/'.join(parts)}: name the folder that holds it in DEFENDED_REFERENCE")
        path = Path(folder, *parts)
        if not path.is_file():
            raise NotHereError(f"{path} is not there")
        return path

    def net(self, case: str, published: str | None, epsilon: float, **options: Any) -> DefendedModel:
        """Return a case's net: the caller's file, or the zoo's `published` with these options, defended at epsilon."""
        if case in self.nets:
            return open_net(self.nets[case], epsilon)
        if published is None or published not in zoo.names():
            raise NotHereError(f"no net is shipped for it; give your own (nets={{{case!r}: ...}}, --net {case}=...)")
        return zoo.load(published, epsilon=epsilon, **options)


def open_net(path: str | os.PathLike[str], epsilon: float) -> DefendedModel:
    """Return a defended model from a `.gloronet` or a `.keras` file; a plain classifier becomes a `GloroNet`."""
    import keras

    if not Path(path).exists():
        raise NotHereError(f"{path} is not there")
    if str(path).endswith(".gloronet"):
        model: Any = load_gloronet(path)
    else:
        model = keras.models.load_model(path, compile=False)
        if not isinstance(model, DefendedModel):
            model = GloroNet(model, epsilon=epsilon)
    model.epsilon = epsilon
    model.ensure_proven()
    return model
