"""Trained nets that ship with the package, each pinned by its SHA-256 in `index.json`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import keras

from defended._io import atomic_write_bytes, atomic_write_text, sha256_file
from defended.defended_model import DefendedModel
from defended.gloro.gloro_net import GloroNet
from defended.polytope.polytope_net import PolytopeNet
from defended.smoothing.smoothed_net import SmoothedNet

FOLDER = Path(__file__).parent
KINDS: dict[str, type[DefendedModel]] = {"GloroNet": GloroNet, "PolytopeNet": PolytopeNet, "SmoothedNet": SmoothedNet}


class Entry(NamedTuple):
    """What is known of a trained net before it is opened."""

    name: str
    kind: str
    """The class of the defended model, by its name in `KINDS`."""
    data: str
    """The data set that it was trained on, as `datasets.load` names it."""
    settings: dict[str, Any]
    """What the defence is built with: the radius `epsilon` it defends, in input units, and for smoothing `sigma`."""
    command: str
    """The command that trained it, run from the root of a clone."""
    sha256: str
    network: str = ""
    """The architecture, in words."""


def index() -> dict[str, Entry]:
    """Return the nets that ship, by name."""
    content = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return {name: Entry(name, **entry) for name, entry in content.items()}


def entry_of(name: str) -> Entry:
    """Return the entry of a name, or raise `ValueError` for an unknown one."""
    entries = index()
    if name not in entries:
        raise ValueError(f"Unknown net {name!r}. Known: {', '.join(sorted(entries))}.")
    return entries[name]


def path(name: str) -> Path:
    """Return the file of a net, its hash checked.

    The folder that the environment variable `DEFENDED_ZOO` names is searched before the package's own.

    Raises:
        ValueError: for an unknown name, or a file that is not the one that was published.
        FileNotFoundError: where the file is in neither place.
    """
    entry = entry_of(name)
    folders = [Path(folder) for folder in (os.environ.get("DEFENDED_ZOO"),) if folder] + [FOLDER]
    candidates = [folder / f"{name}.keras" for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            found = sha256_file(candidate)
            if found != entry.sha256:
                raise ValueError(
                    f"{candidate} is not the net that was published as {name!r}: its SHA-256 is {found}, not "
                    f"{entry.sha256}. Delete it and install the package again."
                )
            return candidate
    raise FileNotFoundError(
        f"The net {name!r} is in none of {', '.join(map(str, candidates))}. Install the package again, or name the "
        f"folder that holds it in DEFENDED_ZOO; `{entry.command}` trains it."
    )


def load(name: str, **settings: Any) -> DefendedModel:
    """Open a trained net of the zoo, defended and final.

    Args:
        name: such as `"mnist-2c2f-0.3"`; `zoo.names()` lists them. A number at the end is the radius that the net was
            trained for: `"mnist-2c2f-0.6"` is trained at twice the radius 0.3 that it defends (radius doubling).
        settings: settings of the defence, in place of the net's own: `epsilon`, the radius defended, in input units;
            for a plain network, whatever else `SmoothedNet` or `PolytopeNet` takes.

    Raises:
        ValueError: for an unknown name, a setting that does not fit, or a file that was changed since it was published.
        FileNotFoundError: where the file is missing, saying where it was looked for.
    """
    entry = entry_of(name)
    network = keras.models.load_model(path(name), compile=False)
    if isinstance(network, DefendedModel):
        unknown = sorted(set(settings) - {"epsilon"})
        if unknown:
            raise ValueError(f"{name!r} is a {entry.kind}, which only takes `epsilon` anew. Received: {unknown}.")
        network.trust_file()  # the hash of the file is pinned
        network.epsilon = settings.get("epsilon", entry.settings["epsilon"])
        return network
    model = KINDS[entry.kind](network, **{**entry.settings, **settings})
    model.ensure_proven()
    return model


def publish(name: str, file: str | os.PathLike[str], **entry: Any) -> Path:
    """Put a net into the zoo of this clone, under a new hash; the training commands in `benchmarks/` end with this.

    Args:
        name: the net's name.
        file: its `.keras` file.
        entry: `kind`, `data`, `settings`, `command` and `network` of an `Entry`.
    """
    target = atomic_write_bytes(FOLDER / f"{name}.keras", Path(file).read_bytes())
    content = {known.name: known._asdict() for known in index().values()}
    content[name] = {"name": name, **entry, "sha256": sha256_file(target)}
    without_names = {
        key: {field: value for field, value in content[key].items() if field != "name"} for key in sorted(content)
    }
    atomic_write_text(FOLDER / "index.json", json.dumps(without_names, indent=1) + "\n")
    return target
