"""Training in bfloat16 by oneDNN, on the processors on which it can do so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from defended.exceptions import BFloat16Warning

_CPUINFO = Path("/proc/cpuinfo")
_ABLE = {"avx512f", "avx_ne_convert"}
"""Flags of the processors on which TensorFlow gives oneDNN bfloat16 (`tensorflow/core/util/util.cc`)."""


class BFloat16Training(keras.callbacks.Callback):
    """Convolutions and matrix products of training in bfloat16, by oneDNN's rewriting of graphs; off before proofs."""

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._set(True)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._set(False)

    def _set(self, value: bool) -> None:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": value})


def supports_bfloat16(cpuinfo: Path | None = None) -> bool:
    """Return whether oneDNN computes in bfloat16 on this processor; False where Linux does not say so.

    TensorFlow rewrites the graph on any processor, and then computes many times more slowly than in float32.

    Args:
        cpuinfo: a file like `/proc/cpuinfo`, which is the default.
    """
    try:
        lines = (cpuinfo or _CPUINFO).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    flags = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    return not flags.isdisjoint(_ABLE)


def bfloat16_or_warning() -> bool:
    """Return `supports_bfloat16()`, after a `BFloat16Warning` where that is False."""
    able = supports_bfloat16()
    if not able:
        warnings.warn(
            "bfloat16 needs a processor with AVX-512 or AVX-NE-CONVERT, as Linux reports it; training in float32.",
            BFloat16Warning,
            stacklevel=3,
        )
    return able
