"""Inputs outside of the range that a model was trained on: counted, said in the log, and refused on request."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import numpy as np

from defended.serving.artefacts.manifest import Manifest
from defended.serving.artefacts.tf_example import inputs_of
from defended.serving.server.errors import invalid
from defended.serving.server.metrics import Metrics

_LOG = logging.getLogger(__name__)

_SECONDS = 60.0  # between two lines of the log about one version


class UnitsCheck:
    """Looks at a version's inputs, which clients may have sent in other units than the training's.

    An input counts if it lies further than epsilon outside of the range in the manifest (`InputRange.outside`), so that
    no attack within epsilon on an input of the training's kind does. Where the range is not recorded, nothing is said.

    A request is refused, in place of ⊥ from the graph: the availability radius promises that nothing nearer forces ⊥,
    and a client that is told why can mend its units.
    """

    def __init__(self, name: str, version: int, manifest: Manifest, metrics: Metrics, refuses: bool) -> None:
        self._name, self._version = name, version
        self._manifest, self._metrics, self._refuses = manifest, metrics, refuses
        self._range = None if manifest.training_range is None else manifest.training_range.range()
        self._shape = manifest.signatures["serving_default"].inputs["image"].shape[1:]
        self._next_line = -np.inf
        self._unsaid = 0

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Count the inputs of one request, and say in the log what they reach, at most once a minute.

        Raises:
            ServingError: INVALID_ARGUMENT, where such inputs are refused and this request holds some.
        """
        if self._range is None or len(inputs) != 1:
            return
        x = next(iter(inputs.values()))
        x = inputs_of(x, self._shape) if x.dtype == object else x
        manifest = self._manifest
        found = self._range.outside(x, manifest.epsilon, manifest.norm)
        if not found.any():
            return
        self._metrics.out_of_range.labels(self._name, str(self._version)).inc(int(found.sum()))
        self._unsaid += int(found.sum())
        now = time.monotonic()
        if not self._refuses and now < self._next_line:
            return
        said = self._range.complaint(x, manifest.epsilon, manifest.norm)
        if now >= self._next_line:
            since = f"{self._unsaid} since the last such line"
            _LOG.warning("%s, version %d: %s (%s)", self._name, self._version, said, since)
            self._next_line, self._unsaid = now + _SECONDS, 0
        if self._refuses:
            raise invalid(f"{said} The server refuses such requests.")
