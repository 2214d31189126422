"""The graph of an artefact: its signatures, and how it is saved so that a server loads it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defended.class_names import BOTTOM
from defended.serving.artefacts.allowed_ops import CLASSIFY
from defended.serving.artefacts.onnx_model import ANSWER, REASON
from defended.serving.artefacts.tf_example import FEATURE

if TYPE_CHECKING:
    from defended.defended_model import DefendedModel

_RADII = ("certified_radius", "availability_radius", "epsilon", "scores_with_bottom")


def output_names(model: DefendedModel) -> dict[str, tuple[str, ...]]:
    """Return the outputs of each signature that takes `image`: all for `audit`, those of an answer by default."""
    reason = (REASON,) if REASON in model.details else ()
    return {"serving_default": ANSWER + reason, "audit": (*ANSWER, *_RADII, *model.details)}


def save_graph(model: DefendedModel, directory: Path, labels: Sequence[str]) -> None:
    """Save the deployed graph and the variables that it reads, without the model itself.

    A module that holds a Keras model loads in Python and not in the C++ loader, which looks for variables under the
    names that Keras gave them; this one holds only the bare variables, and only those that answering needs.

    Args:
        model: a final model.
        directory: where the SavedModel goes.
        labels: the names of the classes, with which `classify` answers.

    Raises:
        OSError: the directory cannot be written, as on a full disk.
    """
    import tensorflow as tf

    image = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, name="image")

    def signature(names: tuple[str, ...]) -> Any:
        def answer(image: Any) -> dict[str, Any]:
            outputs = model.deployed(image)
            return {name: outputs[name] for name in names}

        return tf.function(answer, input_signature=[image], autograph=False).get_concrete_function()

    functions = {name: signature(outputs) for name, outputs in output_names(model).items()}
    functions[CLASSIFY] = _classify(model, labels)
    module = tf.Module()
    # Its variables are also those that were looked at while it was made; a function reads those whose handles it holds.
    read = {
        id(variable): variable
        for function in functions.values()
        for variable in function.variables
        if any(variable.handle is held for held in function.captured_inputs)
    }
    module.weights = list(read.values())
    try:
        tf.saved_model.save(module, os.fspath(directory), signatures=functions)
        # Saved as one of "predict"; TensorFlow Serving's Classify takes another name, unless its check is off.
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(os.fspath(directory))
        updater.replace_method_name(CLASSIFY, tf.saved_model.CLASSIFY_METHOD_NAME, tags=tf.saved_model.SERVING)
        updater.save()
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, f"TensorFlow cannot write there ({error.message})", os.fspath(directory)) from error


def _classify(model: DefendedModel, labels: Sequence[str]) -> Any:
    """Return TensorFlow Serving's Classify: serialized examples in, one class with its score out.

    One class, not a score for each class and ⊥: a client that takes the largest of those would answer where the model
    rejects, and the score of ⊥ reveals the slack, which shows an attacker the way to a rejection.
    """
    import tensorflow as tf

    features = {FEATURE: tf.io.FixedLenFeature(model.input_shape[1:], tf.float32)}

    def classify(inputs: Any) -> dict[str, Any]:
        outputs = model.deployed(tf.io.parse_example(inputs, features)[FEATURE])
        bottom = tf.constant(len(labels), tf.int64)
        chosen = tf.where(outputs["rejected"], bottom, outputs["label"])
        return {
            "classes": tf.gather(tf.constant([*labels, BOTTOM]), chosen)[:, None],
            "scores": tf.reduce_max(outputs["scores"], axis=1, keepdims=True),
        }

    inputs = tf.TensorSpec([None], tf.string, name="inputs")
    return tf.function(classify, input_signature=[inputs], autograph=False).get_concrete_function()
