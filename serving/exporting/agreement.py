"""Checks that a deployed graph answers like the Keras model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from defended.class_names import BOTTOM
from defended.exceptions import AgreementError
from defended.serving.artefacts.allowed_ops import CLASSIFY
from defended.serving.artefacts.cpp_loader import CppSession

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

# Two float32 evaluations of one network differ by roundings, some 1e-6 of the largest score. A difference above this is
# not rounding: reduced precision, other weights, another graph.
SCORE_DRIFT_BOUND = 1e-4
_SAMPLED_INPUTS = 64


def require_agreement(
    model: DefendedModel, x: np.ndarray, outputs: Mapping[str, np.ndarray], batch_size: int = 256
) -> float:
    """Compare a graph's verdicts and scores with the model's own.

    Where verdicts are drawn at random, the scores are votes: then the network's logits are compared instead, and the
    verdicts up to what chance explains (`model.disagreements`), on the first 64 inputs.

    Args:
        model: a final model.
        x: float32 `[n, *input_shape]`, finite.
        outputs: the outputs of the graph's signature `audit` for `x`.
        batch_size: inputs in one run of the model.

    Returns:
        The drift: the largest difference of a score, relative to the largest score, or to 1 where that is smaller.

    Raises:
        AgreementError: a label differs, or the drift is above `SCORE_DRIFT_BOUND`.
    """
    if model.sampling is not None:
        x, outputs = x[:_SAMPLED_INPUTS], {name: value[:_SAMPLED_INPUTS] for name, value in outputs.items()}
    starts = range(0, len(x), batch_size)
    found = outputs["scores"] if model.sampling is None else outputs["logits"]
    scores = np.concatenate([np.asarray(model.undefended_logits(x[i : i + batch_size])) for i in starts])
    drift = float(np.abs(found - scores).max() / max(1.0, float(np.abs(scores).max())))
    if not drift <= SCORE_DRIFT_BOUND:  # a NaN is not agreement
        raise AgreementError(
            f"The graph's scores are {drift:.3g} (relative) away from the Keras model's; up to {SCORE_DRIFT_BOUND:g} "
            "could be rounding. Is it the same model? Are both evaluated in float32, without TF32 or mixed precision?"
        )
    differing = model.disagreements(x, outputs, batch_size)
    if differing.size:
        first = differing[0]
        expected = model.verdicts(x[first : first + 1]).label[0]
        raise AgreementError(
            f"The graph's verdicts differ from the Keras model's on {differing.size} of {len(x)} inputs; on input "
            f"{first} it says {outputs['label'][first]}, the model {expected} (-1 = rejected). "
            "Do both defend the same radius?"
        )
    return drift


def require_rejection(session: CppSession, clean: np.ndarray, sampled: bool = False) -> None:
    """Check that every signature rejects what is not finite, as `check_rejection` does.

    Args:
        session: the graph in the C++ loader.
        clean: one finite input, `[1, *input_shape]` float32.
        sampled: whether verdicts are drawn at random.

    Raises:
        AgreementError: a signature does not.
    """

    def run(name: str, batch: np.ndarray) -> dict[str, np.ndarray]:
        return session.run(name, {"image": batch})

    for name in session.signatures:
        if name != CLASSIFY:
            check_rejection(f"The graph's signature {name!r}", partial(run, name), clean, sampled)


def check_rejection(
    what: str, run: Callable[[np.ndarray], Mapping[str, np.ndarray]], clean: np.ndarray, sampled: bool = False
) -> Mapping[str, np.ndarray]:
    """Check that NaN and infinities are rejected, and that they do not touch the rest of their batch.

    Args:
        what: the graph in messages.
        run: the graph, from a batch to outputs by name.
        clean: one finite input, `[1, *input_shape]` float32.
        sampled: whether verdicts are drawn at random, so that the finite input's may change by itself.

    Returns:
        The outputs for the finite input, one with NaN, one with inf and one with -inf.

    Raises:
        AgreementError: one of the two does not hold.
    """
    alone = np.repeat(clean, 4, axis=0)
    batch = alone.copy()
    flat = batch.reshape(4, -1)
    flat[1, 0], flat[2, -1], flat[3, flat.shape[1] // 2] = np.nan, np.inf, -np.inf
    outputs = run(batch)
    expected = (outputs if sampled else run(alone))["label"][0]
    if outputs["label"].tolist() != [expected, -1, -1, -1] or not outputs["rejected"][1:].all():
        raise AgreementError(
            f"{what} must reject NaN and infinity, and them only. To a finite input, one with NaN, one with inf and "
            f"one with -inf it answered {outputs['label'].tolist()} (-1 = rejected)."
        )
    return outputs


def require_classification(session: CppSession, x: np.ndarray, labels: Sequence[str], sampled: bool = False) -> None:
    """Check that the signature `classify` names the class that `serving_default` answers, and ⊥ where it rejects.

    Args:
        session: the graph in the C++ loader.
        x: finite inputs, `[n, *input_shape]` float32.
        labels: the names of the classes.
        sampled: whether verdicts are drawn at random; then only names, shapes and an input with NaN are compared.

    Raises:
        AgreementError: it does not.
    """
    from defended.serving.artefacts.tf_example import serialized_examples

    broken = np.concatenate([x, np.full_like(x[:1], np.nan)])
    found = session.run(CLASSIFY, {"inputs": serialized_examples(broken)})
    names = [text.decode() for text in found["classes"][:, 0]]
    label = session.run("serving_default", {"image": broken})["label"]
    expected = [BOTTOM if number < 0 else labels[number] for number in label]
    same = set(names) <= {*labels, BOTTOM} and names[-1] == BOTTOM if sampled else names == expected
    if not same or found["classes"].shape != (len(broken), 1) or not np.isfinite(found["scores"]).all():
        raise AgreementError(
            f"The graph's signature {CLASSIFY!r} says {names[:8]}, its default signature {expected[:8]} (the first of "
            f"{len(broken)})."
        )
