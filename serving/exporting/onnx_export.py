"""A defended model as an ONNX file.

**Noise is an input.** A smoothed model's file takes its noise from the caller, chunk by chunk, and holds the votes and
the gate. The other way would be onnxruntime's own `RandomNormal`: its generator has 31 bits of state, so the noise of a
hundred thousand draws would repeat itself within a few answers and could be guessed; and other runtimes have another
one or none. `defended.serving.load_onnx` runs the loop, with fresh entropy.

**What converters get wrong.** tf2onnx writes operations that ONNX does not have with no more than a line in its log,
and turns a selection into `mask * x + (1 - mask) * y`, which lets the NaN through that it was to replace. So selections
become `Where` here, the checker reads the file in full, onnxruntime loads it, and it must answer as the Keras model
does, NaN and infinity included, before it gets its name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from defended._io import atomic_write_bytes
from defended._version import __version__
from defended.exceptions import AgreementError
from defended.serving.artefacts.onnx_model import METADATA, OnnxModel
from defended.serving.exporting.agreement import SCORE_DRIFT_BOUND, require_agreement
from defended.serving.exporting.drift import fold, keras_outputs, measure_drift
from defended.serving.exporting.sample import check_sample
from defended.serving.exporting.saved_model import output_names

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

OPSET = 18
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
    and `scores`; with `audit` also the radii and the scores with ⊥. A smoothed model's file is one step of its
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
        TypeError, ValueError: an argument does not fit, or the network holds what ONNX cannot say.
        AgreementError: onnxruntime does not answer as the model does.
    """
    from defended.defended_model import DefendedModel

    if not isinstance(model, DefendedModel):
        raise TypeError(f"`model` must be a defended model. Received: {type(model).__name__}.")
    target = Path(path)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, "exists and is never overwritten: choose another name", str(target))
    sample = check_sample(model, sample)
    model.verify()
    if model.sampling is not None:
        return atomic_write_bytes(target, convert(model, sample).content)
    converted = convert(model, sample)
    ours = keras_outputs(model, sample)
    drift = measure_drift(model, sample, {"keras": ours, "onnxruntime": converted.outputs})
    if fold(model, sample, drift):
        converted = convert(model, sample)
    return atomic_write_bytes(target, converted.content if not audit else converted.whole)


class Converted(NamedTuple):
    """A model converted and compared."""

    content: bytes
    """The file: the default signature, or of random verdicts one step of sampling."""
    whole: bytes
    """The file with the radii and the scores with ⊥ too, where verdicts are not drawn; else the same."""
    outputs: dict[str, np.ndarray]
    """What the whole file gave for the sample in onnxruntime; empty where verdicts are drawn."""


def convert(model: DefendedModel, sample: np.ndarray) -> Converted:
    """Convert a final model, and compare what onnxruntime makes of it with what Keras does.

    Args:
        model: a final model.
        sample: float32 `[n, *input_shape]`, finite.

    Raises:
        ImportError: the extra is not installed: `pip install 'keras-defended[onnx]'`.
        ValueError: the network holds what ONNX cannot say.
        AgreementError: onnxruntime does not answer as the model does.
    """
    import tensorflow as tf

    if model.sampling is not None:
        from defended.smoothing.step import step_function

        answer, specification = step_function(model)
        content = _convert(answer, specification, _metadata(model))
        compiled = tf.function(answer, input_signature=specification, autograph=False)
        _require_same_votes(model, OnnxModel(content), compiled, sample)
        return Converted(content, content, {})

    names = output_names(model)
    specification = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")]

    def judge(image: Any) -> dict[str, Any]:
        outputs = model.deployed(image)
        return {name: outputs[name] for name in names["audit"]}

    whole = _convert(judge, specification, _metadata(model))
    converted = OnnxModel(whole)
    outputs = _require_same_verdicts(model, converted, sample)
    content = _only(whole, names["serving_default"])
    found = OnnxModel(content).run(sample)
    if any(not np.array_equal(found[name], outputs[name]) for name in ("label", "rejected")):
        raise AgreementError("The ONNX file without its radii answers differently: onnxruntime changed its plan.")
    return Converted(content, whole, outputs)


def _only(content: bytes, names: tuple[str, ...]) -> bytes:
    """The same file with these outputs only; runtimes leave out what then goes nowhere."""
    import onnx

    proto = onnx.load_from_string(content)
    kept = [output for output in proto.graph.output if output.name in names]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return bytes(proto.SerializeToString())


def _metadata(model: DefendedModel) -> dict[str, Any]:
    content: dict[str, Any] = {
        "defended": __version__,
        "defence": type(model).__name__,
        "norm": model.norm,
        "epsilon": float(model.epsilon),
        "num_classes": model.num_classes,
        "certificate_method": model.certificate_method,
        "certificate_assumptions": list(model.certificate_assumptions),
        "sampling": None,
    }
    if model.sampling is not None:
        checkpoints = model.gate.checkpoints.tolist()
        content["sampling"] = {**model.sampling, "checkpoints": checkpoints}
    return content


def _convert(answer: Callable[..., Any], specification: list[Any], metadata: dict[str, Any]) -> bytes:
    import tensorflow as tf

    with _quiet():
        import onnx
        import tf2onnx

        function = tf.function(answer, input_signature=specification, autograph=False)
        try:
            proto, _ = tf2onnx.convert.from_function(function, specification, opset=OPSET, custom_op_handlers=HANDLERS)
        except Exception as error:  # of any kind, from a rewriter that met what it did not expect
            raise ValueError(
                f"The network cannot be written as ONNX, opset {OPSET}: {type(error).__name__}: {error}"
            ) from error
        entry = proto.metadata_props.add()
        entry.key, entry.value = METADATA, json.dumps(metadata, sort_keys=True)
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ValueError(
                f"The network cannot be written as ONNX, opset {OPSET}: {str(error).strip().splitlines()[0]} "
                f"Build it from layers that ONNX has, or export a SavedModel."
            ) from error
    return bytes(proto.SerializeToString())


def _shapes(context: Any, node: Any, name: str, _: Any) -> Any:
    """The shapes of several tensors, one operation each; derivatives of convolutions ask for them."""
    inputs, outputs = list(node.input), list(node.output)
    dtypes = [context.get_dtype(output) for output in outputs]
    context.remove_node(node.name)
    for i, (value, output, dtype) in enumerate(zip(inputs, outputs, dtypes, strict=True)):
        shape = context.make_node("Shape", [value], name=f"{name}_{i}")
        context.make_node(
            "Cast", shape.output, attr={"to": dtype}, outputs=[output], name=f"{name}_cast_{i}", dtypes=[dtype]
        )


def _relu_gradient(context: Any, node: Any, name: str, _: Any) -> Any:
    """`gradient where features > 0`, written as a product."""
    (gradient, features), outputs = list(node.input), list(node.output)
    dtype, shape = context.get_dtype(outputs[0]), context.get_shape(outputs[0])
    context.remove_node(node.name)
    zero = context.make_const(f"{name}_zero", np.zeros((), np.float32))
    above = context.make_node("Greater", [features, zero.output[0]], name=f"{name}_above")
    return context.make_node(
        "Where", [above.output[0], gradient, zero.output[0]], outputs=outputs, name=name, dtypes=[dtype], shapes=[shape]
    )


def _where(context: Any, node: Any, name: str, _: Any) -> Any:
    """tf2onnx's handler of a selection, replaced by ONNX's `Where`, which multiplies nothing."""
    inputs, outputs = list(node.input), list(node.output)
    dtypes, shapes = ([get(output) for output in outputs] for get in (context.get_dtype, context.get_shape))
    ranks = [len(context.get_shape(value) or ()) for value in inputs]
    if node.type == "Select" and ranks[0] != max(ranks):  # TensorFlow 1's broadcasts from the left
        raise ValueError(f"The selection {name!r} chooses rows by TensorFlow 1's rule, which ONNX does not have.")
    context.remove_node(node.name)
    return context.make_node("Where", inputs, outputs=outputs, name=name, dtypes=dtypes, shapes=shapes)


def _require_same_verdicts(model: DefendedModel, converted: OnnxModel, sample: np.ndarray) -> dict[str, np.ndarray]:
    outputs = converted.run(sample)
    require_agreement(model, sample, outputs)
    broken = np.repeat(sample[:1], 3, axis=0)
    broken.reshape(3, -1)[np.arange(3), [0, -1, broken[0].size // 2]] = np.nan, np.inf, -np.inf
    found = converted.run(np.concatenate([sample[:1], broken]))
    if (found["label"][1:] != -1).any() or not found["rejected"][1:].all() or not _finite(found):
        raise AgreementError(
            f"The ONNX model must reject NaN and infinity. To a finite input, one with NaN, one with inf and one with "
            f"-inf it answered {found['label'].tolist()} (-1 = rejected)."
        )
    return outputs


def _finite(outputs: dict[str, np.ndarray]) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind == "f")


def _require_same_votes(model: Any, converted: OnnxModel, step: Callable[..., Any], sample: np.ndarray) -> None:
    """The same noise must give the same votes, but for draws that rounding may turn, and the same gate."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    image = np.concatenate([sample[:4], np.full_like(sample[:1], np.nan)])
    noise = rng.standard_normal((_DRAWS, *sample.shape[1:])).astype(np.float32)
    noisy = (image[:, None] + np.float32(model.sigma) * noise).reshape(-1, *sample.shape[1:])
    logits = np.sort(np.asarray(model.undefended_logits(noisy)).reshape(len(image), _DRAWS, -1), axis=-1)
    size = max(1.0, float(np.abs(logits[:-1]).max()))
    close = (logits[:-1, :, -1] - logits[:-1, :, -2] <= 2 * SCORE_DRIFT_BOUND * size).sum()

    def both(counts: np.ndarray, candidate: np.ndarray, drawn: int) -> tuple[dict[str, np.ndarray], ...]:
        fed: dict[str, Any] = {
            "image": image,
            "noise": noise,
            "counts": counts,
            "candidate": candidate,
            "drawn": np.int64(drawn),
        }
        return converted.step(fed), {
            k: v.numpy() for k, v in step(**{k: tf.constant(v) for k, v in fed.items()}).items()
        }

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


HANDLERS: dict[str, tuple[Any, list[Any]]] = {
    "SelectV2": (_where, []),
    "Select": (_where, []),
    "ShapeN": (_shapes, []),
    "ReluGrad": (_relu_gradient, []),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """tf2onnx warns of NumPy's and protobuf's future, and logs each step; what matters is checked afterwards."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
