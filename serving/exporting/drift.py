"""How far evaluations of one network differ, and how the certificate accounts for it.

Keras, the C++ loader and onnxruntime add the same numbers in different orders, so their logits differ. A certificate
computed by one of them must hold for what the others answer. There are two ways, with one interface (`DefendedModel`):

- **Paid for.** `covered_drift(x)` is what the certificate allows two evaluations of a margin to differ by: GloRo's
  rounding budget is proven for float32 sums in any order. What is measured must lie inside it; more is not rounding of
  float32, and the export is refused.
- **Folded.** Where it is None, `FOLDED` times the largest difference measured is taken off every margin, in the
  exported graphs and in the Keras model (`evaluation_drift`): once for the logits or bounds that decide, once for the
  logits at the perturbed input, and both twice, since inputs that were not measured may drift more. This is a
  measurement, not a proof; the manifest's assumptions say so.

Where verdicts are drawn at random, the certificate is about the network as it is evaluated; nothing is folded.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from defended.exceptions import AgreementError
from defended.serving.artefacts.inputs import run_in_batches
from defended.serving.artefacts.manifest import DriftRecord

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

FOLDED = 4.0

Outputs = Mapping[str, np.ndarray]


def keras_outputs(model: DefendedModel, x: np.ndarray, batch_size: int = 256) -> dict[str, np.ndarray]:
    """Return what `model.deployed` gives for inputs `[n, ...]`, evaluated by Keras."""
    import keras

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model.deployed(keras.ops.convert_to_tensor(batch))
        return {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}

    return run_in_batches(run, x, batch_size)


def measure_drift(model: DefendedModel, x: np.ndarray, evaluations: Mapping[str, Outputs]) -> DriftRecord:
    """Compare evaluations of a final model pairwise.

    Args:
        model: a final model whose verdicts are not drawn at random.
        x: float32 `[n, *input_shape]`, finite.
        evaluations: the outputs `scores` `[n, m]` and `scores_with_bottom` of each, by its name.

    Returns:
        The largest difference of a margin (of the certified slack too, where the certificate pays for nothing), its
        share of what is paid for, and what the model folds now.

    Raises:
        AgreementError: a difference exceeds what the certificate pays for, or is not a number.
    """
    covered = model.covered_drift(x)
    largest, share = 0.0, 0.0
    for (one, left), (other, right) in combinations(evaluations.items(), 2):
        apart = margin_differences(left["scores"], right["scores"])
        if covered is None:
            slack = _slack(left) - _slack(right)
            apart = np.concatenate([apart, np.abs(slack)[:, None]], axis=1)
        else:
            parts = np.where(apart == 0, 0.0, apart / np.maximum(covered, 1e-300))
            share = float(np.maximum(share, parts.max()))
        largest = float(np.maximum(largest, apart.max()))  # a NaN stays one
        if not (np.isfinite(largest) and share <= 1):
            raise AgreementError(
                f"{one} and {other} differ by up to {largest:.3g} in a difference of two logits, {share:.3g} "
                "times what the certificate's rounding budget allows two float32 evaluations. Are all of them "
                "evaluated in IEEE float32, without TF32, bfloat16 or a fast convolution?"
            )
    return DriftRecord(
        evaluators=tuple(evaluations),
        largest=largest,
        share_of_covered=None if covered is None else share,
        folded=model.evaluation_drift,
    )


def margin_differences(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return by how much `y_j - y_i` differs between logits `[n, m]`, j the top class of `left`: `[n, m]` float64."""
    difference = left.astype(np.float64) - right.astype(np.float64)
    top = left.argmax(axis=1)
    return np.abs(np.take_along_axis(difference, top[:, None], axis=1) - difference)


def fold(model: DefendedModel, x: np.ndarray, drift: DriftRecord) -> bool:
    """Make the model pay for drift that its certificate does not cover; return False where there is nothing to do.

    Raises:
        AgreementError: the model ignores `evaluation_drift`.
    """
    if drift.share_of_covered is not None or FOLDED / 2 * drift.largest <= model.evaluation_drift:
        return False
    before, old = _slack(keras_outputs(model, x)), model.evaluation_drift
    model.evaluation_drift = FOLDED * drift.largest
    fallen = before - _slack(keras_outputs(model, x))
    # Where a tie or a rejection lifts the score of ⊥ to just above the top, its slack says nothing.
    told = before > 0
    expected = (model.evaluation_drift - old) * 0.5
    if told.any() and not (fallen[told] >= np.minimum(expected, before[told])).all():
        model.evaluation_drift = old
        raise AgreementError(
            f"{type(model).__name__} neither pays for the drift of its logits (`covered_drift`) nor subtracts "
            "`evaluation_drift` from its margins, so it is not known what its certificate is worth elsewhere."
        )
    return True


def _slack(outputs: Outputs) -> np.ndarray:
    scores = outputs["scores_with_bottom"].astype(np.float64)
    return scores[:, :-1].max(axis=1) - scores[:, -1]
