"""`.gloronet` files of the `gloro` library, opened as defended models."""

from __future__ import annotations

import os

from defended.gloro.gloro_net import GloroNet
from defended.gloro.legacy.reader import read_gloronet


def load_gloronet(path: str | os.PathLike[str], epsilon: float | None = None) -> GloroNet:
    """Load a `.gloronet` file of the `gloro` library (1.0 to 1.1.1 and its later format) as a final `GloroNet`.

    Only numbers and plain data are taken from the file. It is read in memory; nothing is extracted, and none of it is
    executed or handed to a deserialiser. The architecture is rebuilt from an allowlist of layers
    (`docs/how-to/import-gloro.md` lists them), and weights must have exactly the shapes that it needs. gloro's
    Lipschitz constants are not believed: bounds are proven from the weights, so that radii are never above those of the
    exact constants, and gloro's, which rest on a power iteration, may be.

    Args:
        path: the file: a tar of `NAME/config.json` and `NAME/f.h5`, gzipped or not, at most 1 GiB unpacked.
        epsilon: the l2 radius to defend, in input units; by default the file's.

    Returns:
        A final model (`is_final`); its inputs are those of the saved one, float32, channels last, and its `network` has
        the logits `[batch, m]` of the saved one up to rounding.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for anything else that is in the way, naming the member of the archive, the layer, setting or
            weight, the reason and the remedy: a truncated, tampered or foreign archive, a layer that is not known, a
            weight of another shape or that is not finite, a relaxed (top-k or affinity) model, a bad radius.

    Source: the format is that of `GloroNet.save` in https://github.com/klasleino/gloro (Leino, Wang, Fredrikson 2021).

    Example:
        >>> model = load_gloronet("mnist.gloronet")
        >>> model.verdicts(x_test).rejected.mean()
    """
    return read_gloronet(path, epsilon, GloroNet._final)
