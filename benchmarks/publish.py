"""Put the nets that the recipes trained into the zoo of this clone, and pin their hashes.

    python benchmarks/publish.py

Run it after `mnist_2c2f.py`, `smoothed_nets.py` or `kw.py train` have trained anew, or after a recipe's `model.keras`
(loaded with `compile=False` and saved anew, which leaves the optimizer out) and `history.csv` were laid down as
`results/recipes/NAME.keras` and `NAME.csv`. Bounds that another version of the package proved are proven anew. The
files of the nets lie in `defended/pretrained`; `benchmarks/results` links to them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras

from defended import DefendedModel, pretrained
from defended.training.training_run import save

RESULTS = Path(__file__).parent / "results"


def nets() -> dict[str, tuple[Path, dict[str, Any]]]:
    """File and facts of every net, by its name in the zoo."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    train = "defended train --config benchmarks/recipes"
    facts = {"kind": "GloroNet", "data": "mnist", "settings": {"epsilon": 0.3}}
    found["mnist-2c2f-0.3"] = (
        RESULTS / "mnist_2c2f" / "eps_0.3.keras",
        {**facts, "command": "python benchmarks/mnist_2c2f.py"},
    )
    found["mnist-2c2f-0.6"] = (
        RESULTS / "recipes" / "mnist-2c2f-0.6.keras",
        {**facts, "command": f"{train}/mnist-2c2f-0.6.toml, then as the files in refined/ say"},
    )
    for name, then in (
        ("mnist-4c3f-1.58", "then as the files in refined/ say"),
        ("mnist-4c3f-3.16", "from the net of mnist-4c3f-1.58"),
    ):
        found[name] = (
            RESULTS / "recipes" / f"{name}.keras",
            {**facts, "settings": {"epsilon": 1.58}, "command": f"{train}/{name}.toml, {then}"},
        )
    facts = {"kind": "GloroNet", "data": "fashion_mnist", "settings": {"epsilon": 0.3}}
    for name in ("fashion-mnist-2c2f-0.3", "fashion-mnist-2c2f-0.6"):
        found[name] = RESULTS / "recipes" / f"{name}.keras", {**facts, "command": f"{train}/{name}.toml"}
    facts = {"kind": "PolytopeNet", "data": "mnist", "settings": {"epsilon": 0.1, "norm": "linf"}}
    for name, stem in (("mnist-2c2f-linf-0.1", "eps_0.1"), ("mnist-2c2f-linf-0.2", "eps_0.1_doubled")):
        found[name] = RESULTS / "kw" / f"{stem}.keras", {**facts, "command": "python benchmarks/kw.py train"}
    for data in ("mnist", "fashion_mnist"):
        for sigma in (0.25, 0.5):
            settings = {"epsilon": 0.25, "sigma": sigma}
            facts = {"kind": "SmoothedNet", "data": data, "settings": settings}
            file = RESULTS / "smoothed" / f"{data}_sigma_{sigma:.2f}.keras"
            name = f"{data.replace('_', '-')}-2c2f-smoothed-{sigma:g}"
            found[name] = file, {**facts, "command": "python benchmarks/smoothed_nets.py"}
    return found


def prove(file: Path) -> None:
    """Prove the bounds of the net in `file` anew where they are not this version's."""
    model = keras.models.load_model(file, compile=False)
    if isinstance(model, DefendedModel) and not model.is_final:
        model.finalize()
        save(model, file.resolve())


def main() -> None:
    for name, (file, facts) in nets().items():
        if not file.exists():
            print(f"{name}: not at {file}, left as it is")
            continue
        prove(file)
        target = pretrained.publish(name, file, **facts)
        if not file.is_symlink():
            file.unlink()
            file.symlink_to(os.path.relpath(target, file.parent))
        print(f"{name}: {pretrained.index()[name].sha256}")


if __name__ == "__main__":
    main()
