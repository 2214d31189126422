"""Whether a deployed graph answers as the Keras model that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from defended.serving.cpp_loader import CppSession

if TYPE_CHECKING:
    from defended import DefendedModel

# Two float32 evaluations of one network differ by roundings, some 1e-6 of the largest score. A difference above this is
# no rounding: reduced precision, other weights, another graph.
SCORE_DRIFT_BOUND = 1e-4


class AgreementError(ValueError):
    """A deployed graph and a Keras model answer differently."""


def require_agreement(
    model: DefendedModel, x: np.ndarray, outputs: Mapping[str, np.ndarray], batch_size: int = 256
) -> float:
    """Compare a graph's verdicts and scores with the model's own.

    Args:
        model: a final model.
        x: float32 `[n, *input_shape]`, finite.
        outputs: `label` `[n]` and `scores` `[n, m]`, what the graph answers to `x`.
        batch_size: inputs a run of the model.

    Returns:
        The drift: the largest difference of a score, relative to the largest score, or to 1 where that is smaller.

    Raises:
        AgreementError: a label differs, or the drift is above `SCORE_DRIFT_BOUND`.
    """
    starts = range(0, len(x), batch_size)
    scores = np.concatenate([np.asarray(model.network(x[i : i + batch_size], training=False)) for i in starts])
    drift = float(np.abs(outputs["scores"] - scores).max() / max(1.0, float(np.abs(scores).max())))
    if not drift <= SCORE_DRIFT_BOUND:  # a NaN is no agreement
        raise AgreementError(
            f"The graph's scores are {drift:.3g} (relative) away from the Keras model's; up to {SCORE_DRIFT_BOUND:g} "
            "could be rounding. Is it the same model? Are both evaluated in float32, without TF32 or mixed precision?"
        )
    expected = model.verdicts(x, batch_size=batch_size).label
    differing = np.flatnonzero(outputs["label"] != expected)
    if differing.size:
        first = differing[0]
        raise AgreementError(
            f"The graph's verdicts differ from the Keras model's on {differing.size} of {len(x)} inputs; on input "
            f"{first} it says {outputs['label'][first]}, the model {expected[first]} (-1 = rejected). "
            "Do both defend the same radius?"
        )
    return drift


def require_rejection(session: CppSession, clean: np.ndarray) -> None:
    """See that every signature rejects what is not finite, and that it does not touch the rest of the batch.

    Args:
        session: the graph in the C++ loader.
        clean: one finite input, `[1, *input_shape]` float32.

    Raises:
        AgreementError: it does not.
    """
    batch = np.repeat(clean, 4, axis=0)
    flat = batch.reshape(4, -1)
    flat[1, 0], flat[2, -1], flat[3, flat.shape[1] // 2] = np.nan, np.inf, -np.inf
    alone = np.repeat(clean, 4, axis=0)
    for name in session.signatures:
        expected = session.run(name, {"image": alone})["label"][0]
        outputs = session.run(name, {"image": batch})
        if outputs["label"].tolist() != [expected, -1, -1, -1] or not outputs["rejected"][1:].all():
            raise AgreementError(
                f"The graph's signature {name!r} must reject NaN and infinity, and them only. To a finite input, one "
                f"with NaN, one with inf and one with -inf it answered {outputs['label'].tolist()} (-1 = rejected)."
            )
