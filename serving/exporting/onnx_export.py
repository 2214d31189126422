"""A defended model as an ONNX file.

**Noise is an input.** A smoothed model's file takes its noise from the caller, chunk by chunk, and holds the votes and
the gate. The other way would be onnxruntime's own `RandomNormal`: its generator has 31 bits of state, so the noise of a
hundred thousand draws would repeat itself within a few answers and could be guessed; and other runtimes have another
generator or none. `defended.serving.load_onnx` runs the loop, with fresh entropy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from defended._io import atomic_write_bytes
from defended._version import __version__
from defended.exceptions import AgreementError
from defended.serving.artefacts.onnx_model import OnnxModel
from defended.serving.exporting.agreement import SCORE_DRIFT_BOUND, check_rejection, require_agreement
from defended.serving.exporting.arguments import check_backend, check_sample
from defended.serving.exporting.drift import fold, keras_outputs, measure_drift
from defended.serving.exporting.onnx_conversion import to_onnx, with_outputs
from defended.serving.exporting.saved_model import output_names

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

_DRAWS = 64


def export_onnx(
    model: DefendedModel,
    path: str | os.PathLike[str],
    *,
    sample: np.ndarray | None = None,
    audit: bool = False,
) -> Path:
    """Write a model as an ONNX file (opset 18), check it in onnxruntime, and rename it into place.

    The file takes `image` (float32 `[batch, *input_shape]`) and gives `label` (int64, -1 where rejected), `rejected`
    and `scores`; with `audit`, also the radii and the scores with ⊥. A smoothed model's file is one step of its
    sampling, with the noise as an input (`defended.smoothing.step_function`); `load_onnx` runs either. Epsilon, norm,
    what is certified and on which assumptions are in the file's metadata.

    onnxruntime's arithmetic is not TensorFlow's to the bit. It is float32 in some order, which GloRo's rounding budget
    covers; a smoothed model's certificate is about the network as onnxruntime evaluates it.

    Args:
        model: a defended model; it is finalized if it is not final yet.
        path: the file, `something.onnx`; never overwritten.
        sample: float32 `[n, *input_shape]`, inputs to compare on; by default random ones in [0, 1].
        audit: whether the file gives radii too; they help attackers.

    Returns:
        The file's path.

    Raises:
        FileExistsError: the file exists.
        ImportError: the extra is not installed: `pip install 'keras-defended[onnx]'`.
        TypeError, ValueError: an argument does not fit, or the network holds what ONNX cannot express.
        AgreementError: onnxruntime does not answer as the model does.
    """
    from defended.defended_model import DefendedModel

    if not isinstance(model, DefendedModel):
        raise TypeError(f"`model` must be a defended model. Received: {type(model).__name__}.")
    check_backend()
    target = Path(path)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "exists and is never overwritten: choose another name", str(target))
    sample = check_sample(model, sample)
    model.verify()
    converted = convert(model, sample)
    if model.sampling is None:
        ours = keras_outputs(model, sample)
        drift = measure_drift(model, sample, {"keras": ours, "onnxruntime": converted.outputs})
        if fold(model, sample, drift):
            converted = convert(model, sample)
    return atomic_write_bytes(target, converted.whole if audit else converted.content)


class Converted(NamedTuple):
    """A model that was converted and compared."""

    content: bytes
    """The file: the default signature or, for random verdicts, one step of sampling."""
    whole: bytes
    """The file that also has the radii and the scores with ⊥, where verdicts are not drawn; otherwise the same."""
    outputs: dict[str, np.ndarray]
    """What the whole file gave for the sample in onnxruntime; empty where verdicts are drawn."""


def convert(model: DefendedModel, sample: np.ndarray) -> Converted:
    """Convert a final model, and compare what onnxruntime makes of it with what Keras makes of it.

    Args:
        model: a final model.
        sample: float32 `[n, *input_shape]`, finite.

    Raises:
        ImportError: the extra is not installed: `pip install 'keras-defended[onnx]'`.
        ValueError: the network holds what ONNX cannot express.
        AgreementError: onnxruntime does not answer as the model does.
    """
    import tensorflow as tf

    if model.sampling is not None:
        from defended.smoothing.step import step_function

        answer, specification = step_function(model)
        content = to_onnx(answer, specification, _metadata(model))
        compiled = tf.function(answer, input_signature=specification, autograph=False)
        _require_same_votes(model, OnnxModel(content), compiled, sample)
        return Converted(content, content, {})

    names = output_names(model)
    specification = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")]

    def judge(image: Any) -> dict[str, Any]:
        outputs = model.deployed(image)
        return {name: outputs[name] for name in names["audit"]}

    whole = to_onnx(judge, specification, _metadata(model))
    converted = OnnxModel(whole)
    outputs = converted.run(sample)
    require_agreement(model, sample, outputs)
    rejected = check_rejection("The ONNX model", converted.run, sample[:1])
    if not all(np.isfinite(value).all() for value in rejected.values() if value.dtype.kind == "f"):
        raise AgreementError("The ONNX model must reject NaN and infinity with finite outputs. Its are not finite.")
    content = with_outputs(whole, names["serving_default"])
    found = OnnxModel(content).run(sample)
    if any(not np.array_equal(found[name], outputs[name]) for name in ("label", "rejected")):
        raise AgreementError("The ONNX file without its radii answers differently: onnxruntime changed its plan.")
    return Converted(content, whole, outputs)


def _metadata(model: DefendedModel) -> dict[str, Any]:
    sampling = model.sampling
    return {
        "defended": __version__,
        "defence": type(model).__name__,
        "norm": model.norm,
        "epsilon": float(model.epsilon),
        "num_classes": model.num_classes,
        "certificate_method": model.certificate_method,
        "certificate_assumptions": list(model.certificate_assumptions),
        "sampling": None if sampling is None else {**sampling, "checkpoints": model.gate.checkpoints.tolist()},
    }


def _require_same_votes(model: Any, converted: OnnxModel, step: Callable[..., Any], sample: np.ndarray) -> None:
    """Check that the same noise gives the same votes, up to draws that rounding may turn, and the same gate."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    image = np.concatenate([sample[:4], np.full_like(sample[:1], np.nan)])
    noise = rng.standard_normal((_DRAWS, *sample.shape[1:])).astype(np.float32)
    noisy = (image[:, None] + np.float32(model.sigma) * noise).reshape(-1, *sample.shape[1:])
    logits = np.sort(np.asarray(model.undefended_logits(noisy)).reshape(len(image), _DRAWS, -1), axis=-1)
    size = max(1.0, float(np.abs(logits[:-1]).max()))
    close = (logits[:-1, :, -1] - logits[:-1, :, -2] <= 2 * SCORE_DRIFT_BOUND * size).sum()

    def both(counts: np.ndarray, candidate: np.ndarray, drawn: int) -> tuple[dict[str, np.ndarray], ...]:
        fed = {"image": image, "noise": noise, "counts": counts, "candidate": candidate, "drawn": np.array(drawn)}
        expected = step(**{name: tf.constant(value) for name, value in fed.items()})
        return converted.step(fed), {name: value.numpy() for name, value in expected.items()}

    zeros, nobody = np.zeros((len(image), model.num_classes), np.int64), np.full(len(image), -1)
    ours, theirs = (found["new_counts"] for found in both(zeros, nobody, 0))
    if np.abs(ours - theirs).sum() > 2 * close:
        raise AgreementError(
            f"The ONNX model's votes under the same noise differ from the Keras model's: "
            f"{np.abs(ours - theirs).sum() // 2} of {ours.sum()}, where rounding may turn {close}."
        )
    # The gate, at every checkpoint and around its thresholds.
    for t, answer, futile in zip(*model.gate[:3], strict=True):
        for own in {int(futile), int(futile) + 1, int(answer) - 1, int(answer)}:
            if not 0 <= own <= t:
                continue
            counts = np.zeros_like(zeros)
            counts[:, 1] = own
            # This chunk's votes come on top: take them off first.
            found, expected = both(counts - theirs, np.ones(len(image), np.int64), int(t) - _DRAWS)
            same = np.array_equal(ours, theirs)
            if same and any(not np.array_equal(found[name], expected[name]) for name in expected):
                raise AgreementError(f"The ONNX model's gate decides differently on {own} votes of {t} draws.")
            if not found["rejected"][-1] or found["certified_radius"][-1] != 0 or not found["decided"][-1]:
                raise AgreementError("The ONNX model must reject an image with NaN at once.")
