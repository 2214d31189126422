"""Training in bfloat16 by oneDNN."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class BFloat16Training(keras.callbacks.Callback):
    """Convolutions and matrix products of training in bfloat16, by oneDNN's rewriting of graphs; off before proofs."""

    def on_train_begin(self, logs: Any = None) -> None:
        self._set(True)

    def on_train_end(self, logs: Any = None) -> None:
        self._set(False)

    def _set(self, value: bool) -> None:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": value})
