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
from compact import save_packed

from defended import DefendedModel, pretrained

RESULTS = Path(__file__).parent / "results"


TRAIN = "defended train --config benchmarks/recipes"
RECIPES = {
    # name: data, network, epsilon, command after that of the recipe of the same name
    "mnist-2c2f-0.6": ("mnist", "2C2F", 0.3, ", then as the files in refined/ say"),
    "mnist-4c3f-1.58": ("mnist", "4C3F", 1.58, ", then as the files in refined/ say"),
    "mnist-4c3f-3.16": ("mnist", "4C3F", 1.58, ", from the net of mnist-4c3f-1.58"),
    "fashion-mnist-2c2f-0.3": ("fashion_mnist", "2C2F", 0.3, ""),
    "fashion-mnist-2c2f-0.6": ("fashion_mnist", "2C2F", 0.3, ""),
    "cifar10-6c2f-0.141": ("cifar10", "6C2F", 0.141, ", then as the files in refined/ say"),
    "cifar10-6c2f-0.282": ("cifar10", "6C2F", 0.141, ", from the net of refined/cifar10-6c2f-0.141-longer.toml"),
    "gtsrb-6c2f-0.141": ("gtsrb", "6C2F", 0.141, ", then as the files in refined/ say"),
    "gtsrb-6c2f-0.282": ("gtsrb", "6C2F", 0.141, ", from the net of gtsrb-6c2f-0.141"),
}
"""The nets of `benchmarks/recipes`, files and recipes under the same name."""


def nets() -> dict[str, tuple[Path, dict[str, Any]]]:
    """File and facts of every net, by its name in the zoo."""
    facts: dict[str, Any] = {
        "kind": "GloroNet", "data": "mnist", "network": "2C2F", "settings": {"epsilon": 0.3},
        "command": "python benchmarks/mnist_2c2f.py",
    }  # fmt: skip
    found = {"mnist-2c2f-0.3": (RESULTS / "mnist_2c2f" / "eps_0.3.keras", facts)}
    for name, (data, network, epsilon, then) in RECIPES.items():
        settings, command = {"epsilon": epsilon}, f"{TRAIN}/{name}.toml{then}"
        facts = {"kind": "GloroNet", "data": data, "network": network, "settings": settings, "command": command}
        found[name] = RESULTS / "recipes" / f"{name}.keras", facts
    facts = {"kind": "PolytopeNet", "data": "mnist", "network": "2C2F", "settings": {"epsilon": 0.1, "norm": "linf"}}
    for name, stem in (("mnist-2c2f-linf-0.1", "eps_0.1"), ("mnist-2c2f-linf-0.2", "eps_0.1_doubled")):
        found[name] = RESULTS / "kw" / f"{stem}.keras", {**facts, "command": "python benchmarks/kw.py train"}
    smoothed = [(data, "2C2F", sigma) for data in ("mnist", "fashion_mnist") for sigma in (0.25, 0.5)]
    for data, network, sigma in (*smoothed, ("cifar10", "ResNet-20", 0.25)):
        settings = {"epsilon": 0.25, "sigma": sigma, "mode": "fixed"}
        command = "python benchmarks/smoothed_nets.py"
        facts = {"kind": "SmoothedNet", "data": data, "network": network, "settings": settings, "command": command}
        short = network.split("-")[0].lower()
        name = f"{data.replace('_', '-')}-{short}-smoothed-{sigma:g}"
        found[name] = RESULTS / "smoothed" / f"{data}_sigma_{sigma:.2f}.keras", facts
    return found


def prove(file: Path) -> None:
    """Prove the bounds of the net in `file` anew where it does not hold this version's proof."""
    model = keras.models.load_model(file, compile=False)
    if isinstance(model, DefendedModel) and not model.trust_file():
        model.finalize()
        save_packed(model, file.resolve())


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
