"""What Keras's own functions, and code written for Keras models, read of a defended model or do with its whole."""

from __future__ import annotations

import os
from typing import Any

import keras

from defended.gate import ProvingProperty


class KerasFace(keras.Model):
    """Mixed into a defended model: shapes and ends of its graph, and the ways to write it that are refused."""

    network: keras.Model
    num_classes: int

    @property
    def input_shape(self) -> Any:
        """`(None, *input shape)`."""
        return self.network.input_shape

    @property
    def output_shape(self) -> Any:
        """`(None, m + 1)`, the scores with ⊥ last."""
        return (None, self.num_classes + 1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the scores, `(batch, m + 1)`, for inputs of a shape."""
        return (input_shape[0], self.num_classes + 1)

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The network's input, as a symbolic tensor in a list."""
        return list(self.network.inputs)

    @ProvingProperty
    def outputs(self) -> list[keras.KerasTensor]:
        """The scores `[batch, m + 1]` of `inputs`, as a symbolic tensor in a list; the network's are logits."""
        return [self(self.network.inputs[0])]

    @property
    def input(self) -> keras.KerasTensor:
        """The network's input, as a symbolic tensor."""
        return self.network.inputs[0]

    @ProvingProperty
    def output(self) -> keras.KerasTensor:
        """The scores `[batch, m + 1]` of `input`, as a symbolic tensor."""
        return self.outputs[0]

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save as `keras.Model`, into a `.keras` file.

        Raises:
            ValueError: for HDF5, which Keras could not read back.
        """
        if str(os.fspath(filepath)).lower().endswith((".h5", ".hdf5")):
            raise ValueError(
                f"Keras writes a defended model into HDF5, but cannot read it back. Save it as '.keras', or its "
                f"weights with `model.save_weights('NAME.weights.h5')`. Received: {str(filepath)!r}"
            )
        super().save(filepath, *args, **kwargs)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: what Keras would write is not checked, and does not say what it guarantees.

        Raises:
            RuntimeError: always; it names the export that there is.
        """
        raise RuntimeError(
            "`model.export` would write a graph without a manifest, unchecked. Use `defended.serving.export(model, "
            "directory, name, version)` for a SavedModel with ONNX, or `defended.serving.export_onnx(model, path)`."
        )

    def save_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, as `export` does: `tf.lite.TFLiteConverter.from_keras_model` asks for this first.

        Raises:
            RuntimeError: always; it says how to come to a TFLite file.
        """
        raise RuntimeError(
            "`TFLiteConverter.from_keras_model` would write a defended model unchecked. Export it first: `path = "
            "defended.serving.export(model, directory, name, version)`, then `tf.lite.TFLiteConverter.from_saved_model("
            "str(path), signature_keys=['serving_default'])`, without quantisation: its certificate is about float32."
        )
