"""What everyone who runs a model does with its inputs: refuse other dtypes, and divide many into batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import numpy as np

from defended.progress import shown
from defended.serving.artefacts.tensor_info import SignatureInfo


def require_float32(x: np.ndarray) -> None:
    """Refuse inputs that are not a NumPy array of float32.

    Raises:
        TypeError: `x` is not such an array.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        received = f"{x.dtype} array" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(
            f"`x` must be a NumPy array of float32, scaled as in training. Received: {received}. "
            "Convert it yourself: a silent conversion would take pixels in 0…255 for pixels in 0…1."
        )


def require_array_signature(name: str, offered: Mapping[str, SignatureInfo], whose: str) -> SignatureInfo:
    """Return the signature of this name, which takes one array of numbers.

    Raises:
        ValueError: there is none, it takes several inputs, or records in place of numbers, as `classify` does.
    """
    if name not in offered:
        raise ValueError(f"{whose} offers no signature {name!r}, but {sorted(offered)}.")
    inputs = offered[name].inputs
    if len(inputs) != 1:
        raise ValueError(f"Signature {name!r} takes several inputs, {sorted(inputs)}; one can be sent.")
    if next(iter(inputs.values())).dtype == "string":
        raise ValueError(f"Signature {name!r} takes records, not arrays: ask 'serving_default' or 'audit'.")
    return offered[name]


def run_in_batches(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]], x: np.ndarray, batch_size: int
) -> dict[str, np.ndarray]:
    """Return the outputs of `run` by name, `[n, ...]`, for inputs `[n, ...]`, `batch_size` of them at a time.

    An empty array is run too, for the shapes of its outputs.
    """
    parts = []
    # A single batch may be divided further on, and shown there.
    with shown("judging", len(x)) if len(x) > batch_size else nullcontext(lambda count: None) as advance:
        for start in range(0, max(len(x), 1), batch_size):
            parts.append(run(part := x[start : start + batch_size]))
            advance(len(part))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
