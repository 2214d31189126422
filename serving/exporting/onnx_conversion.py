"""A TensorFlow function as an ONNX file, by tf2onnx.

**What converters get wrong.** tf2onnx writes operations that ONNX does not have with no more than a line in its log,
and turns a selection into `mask * x + (1 - mask) * y`, which lets the NaN through that it was to replace. So selections
become `Where` here, the checker reads the file in full, onnxruntime loads it, and it must answer as the Keras model
does, NaN and infinity included, before it gets its name (`onnx_export`).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from defended.serving.artefacts.onnx_model import METADATA

OPSET = 18


def to_onnx(answer: Callable[..., Any], specification: list[Any], metadata: dict[str, Any]) -> bytes:
    """Return the ONNX file of a function of tensors, checked in full, with metadata that `OnnxModel` reads.

    Args:
        answer: the function; its outputs are a mapping.
        specification: a `tf.TensorSpec` for each of its arguments, with their names.
        metadata: anything that JSON can hold.

    Raises:
        ImportError: tf2onnx or onnx is not installed.
        ValueError: the function holds what ONNX cannot express.
    """
    import tensorflow as tf

    with _quiet():
        import onnx

        function = tf.function(answer, input_signature=specification, autograph=False)
        try:
            proto = _converted(function.get_concrete_function())
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


def _converted(function: Any) -> Any:
    """Return a concrete function as an ONNX model: tf2onnx's steps, of its optimisers only those that find something.

    It runs each of its twelve on a copy of the graph until none changes anything. Moving transpositions about takes
    half of the time, and what comes out is no faster.
    """
    import tensorflow as tf
    from tf2onnx import convert, optimizer, tf_loader, tfonnx

    inputs = [tensor.name for tensor in function.inputs if tensor.dtype != tf.resource]
    outputs = [tensor.name for tensor in function.outputs]
    with tf.device("/cpu:0"):
        frozen = tf_loader.from_function(function, inputs, outputs)
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(frozen, name="")
            converted = tfonnx.process_tf_graph(
                graph, opset=OPSET, custom_op_handlers=HANDLERS, input_names=inputs, output_names=outputs,
                tensors_to_rename=convert.tensor_names_from_structed(function, inputs, outputs),
            )  # fmt: skip
    chosen = (
        optimizer.ConstFoldOptimizer, optimizer.MergeDuplicatedNodesOptimizer, optimizer.IdentityOptimizer,
        optimizer.BackToBackOptimizer,
    )  # fmt: skip
    optimized = optimizer.optimize_graph(converted, optimizers={kind.__name__: kind for kind in chosen})
    return optimized.make_model(f"converted from {function.name}")


def with_outputs(content: bytes, names: tuple[str, ...]) -> bytes:
    """Return the same file with only these outputs; runtimes leave out what is then unused."""
    import onnx

    proto = onnx.load_from_string(content)
    kept = [output for output in proto.graph.output if output.name in names]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return bytes(proto.SerializeToString())


def _shapes(context: Any, node: Any, name: str, _: Any) -> Any:
    """Write the shapes of several tensors as one operation each; derivatives of convolutions need them."""
    inputs, outputs = list(node.input), list(node.output)
    dtypes = [context.get_dtype(output) for output in outputs]
    context.remove_node(node.name)
    for i, (value, output, dtype) in enumerate(zip(inputs, outputs, dtypes, strict=True)):
        shape = context.make_node("Shape", [value], name=f"{name}_{i}")
        context.make_node(
            "Cast", shape.output, attr={"to": dtype}, outputs=[output], name=f"{name}_cast_{i}", dtypes=[dtype]
        )


def _relu_gradient(context: Any, node: Any, name: str, _: Any) -> Any:
    """Write `gradient where features > 0`."""
    (gradient, features), outputs = list(node.input), list(node.output)
    dtype, shape = context.get_dtype(outputs[0]), context.get_shape(outputs[0])
    context.remove_node(node.name)
    zero = context.make_const(f"{name}_zero", np.zeros((), np.float32))
    above = context.make_node("Greater", [features, zero.output[0]], name=f"{name}_above")
    return context.make_node(
        "Where", [above.output[0], gradient, zero.output[0]], outputs=outputs, name=name, dtypes=[dtype], shapes=[shape]
    )


def _where(context: Any, node: Any, name: str, _: Any) -> Any:
    """Write a selection as ONNX's `Where`, which multiplies nothing, in place of tf2onnx's own handler."""
    inputs, outputs = list(node.input), list(node.output)
    dtypes, shapes = ([get(output) for output in outputs] for get in (context.get_dtype, context.get_shape))
    ranks = [len(context.get_shape(value) or ()) for value in inputs]
    if node.type == "Select" and ranks[0] != max(ranks):  # TensorFlow 1's broadcasts from the left
        raise ValueError(f"The selection {name!r} chooses rows by TensorFlow 1's rule, which ONNX does not have.")
    context.remove_node(node.name)
    return context.make_node("Where", inputs, outputs=outputs, name=name, dtypes=dtypes, shapes=shapes)


HANDLERS: dict[str, tuple[Any, list[Any]]] = {
    "SelectV2": (_where, []),
    "Select": (_where, []),
    "ShapeN": (_shapes, []),
    "ReluGrad": (_relu_gradient, []),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence tf2onnx's log and its warnings of future NumPy and protobuf; what matters is checked afterwards."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    with warnings.catch_warnings(action="ignore"):
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
