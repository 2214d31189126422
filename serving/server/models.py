"""One served version of a model: a verified artefact, its signatures, and the batches of each."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager

import numpy as np

from defended.exceptions import Code, CppLoaderError, ServingError
from defended.serving.artefacts.allowed_ops import read_saved_model
from defended.serving.artefacts.artefact import Artefact
from defended.serving.artefacts.tensor_info import SignatureInfo, TensorInfo, word_of
from defended.serving.server.batching import Batcher
from defended.serving.server.errors import invalid, wrong_shape, wrong_type
from defended.serving.server.metrics import Metrics
from defended.serving.server.units import UnitsCheck
from defended_settings.server import ServerSettings

DEFAULT_SIGNATURE = "serving_default"

# What is offered where radii are withheld.
_PUBLIC_SIGNATURES = {DEFAULT_SIGNATURE, "classify"}


class ModelVersion:
    """A loaded version. It is `held` while it runs, and freed when nothing holds it after `retire`."""

    def __init__(
        self,
        name: str,
        version: int,
        artefact: Artefact,
        settings: ServerSettings,
        executor: Executor,
        metrics: Metrics,
        hide_radii: bool,
    ) -> None:
        self.name, self.version, self.artefact = name, version, artefact
        self.signatures: Mapping[str, SignatureInfo] = {
            signature: info
            for signature, info in artefact.manifest.signatures.items()
            if not hide_radii or signature in _PUBLIC_SIGNATURES
        }
        definitions = read_saved_model(artefact.path).meta_graphs[0].signature_def
        self.definitions = {signature: definitions[signature] for signature in self.signatures}
        self._settings, self._executor, self._metrics = settings, executor, metrics
        self._batchers: dict[str, Batcher] = {}
        self._units = UnitsCheck(name, version, artefact.manifest, metrics, settings.reject_out_of_range)
        self._holders = 0
        self._retired = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the version in memory for the block."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._retired:
                self._free()

    def retire(self) -> None:
        """Free the version once nothing holds it."""
        self._retired = True
        self._free()

    @property
    def queued_rows(self) -> int:
        """The number of inputs that wait for this version."""
        return sum(batcher.queued_rows for batcher in self._batchers.values())

    async def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run inputs that `check_inputs` accepted, in a batch with those of other requests.

        Raises:
            ServingError: RESOURCE_EXHAUSTED; INVALID_ARGUMENT, the graph refused the inputs.
        """
        rows = len(next(iter(inputs.values())))
        if rows > self._settings.max_rows:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {self._settings.max_rows}")
        return await self._batcher(signature).submit(inputs, rows)

    def check_inputs(self, signature: str, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuse inputs that are not what a signature takes, and look at the units of the others.

        Raises:
            ServingError: INVALID_ARGUMENT, in TensorFlow Serving's words where it has any.
        """
        wanted = self.signatures[signature].inputs
        if set(inputs) != set(wanted):
            raise invalid(_other_names(set(inputs), set(wanted)))
        for name, info in wanted.items():
            _check_tensor(name, info, inputs[name])
        if len({len(array) for array in inputs.values()}) > 1:
            raise invalid("Batching input tensors supplied in a given request must have equal 0th-dimension size")
        self._units.check(inputs)

    def _batcher(self, signature: str) -> Batcher:
        if signature not in self._batchers:
            # The noise of a sampled verdict costs thousands of evaluations per input: a batch would delay all of it to
            # the time of the slowest, and gain nothing.
            sampled = self.artefact.manifest.sampling is not None
            self._batchers[signature] = Batcher(
                functools.partial(self._run_session, signature),
                self._executor,
                parallel=self._settings.threads,
                max_batch=1 if sampled else self._settings.max_batch,
                max_latency=self._settings.max_latency,
                max_queued_rows=self._settings.max_queued_rows,
                observe=functools.partial(self._metrics.observe_batch, self.name, signature),
            )
        return self._batchers[signature]

    def _run_session(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            return self.artefact.run(signature, inputs)
        except CppLoaderError as error:
            # The loader's message names the folder of the artefact.
            reason = str(error).partition("C++ loader: ")[2] or "the inputs do not fit the graph"
            raise ServingError(Code.INVALID_ARGUMENT, reason) from error

    def _free(self) -> None:
        if self._holders == 0 and all(batcher.is_idle for batcher in self._batchers.values()):
            self.artefact.close()
        elif self._holders == 0:  # a run whose requests were all cancelled ends unheard
            asyncio.get_running_loop().call_later(0.1, self._free)


def _check_tensor(name: str, info: TensorInfo, array: np.ndarray) -> None:
    dtype = "string" if array.dtype == object else array.dtype.name
    if dtype != info.dtype:
        raise wrong_type(info, word_of(dtype))
    if not info.accepts(array.shape):
        raise wrong_shape(name, info, array.shape)


def _other_names(sent: set[str], wanted: set[str]) -> str:
    def names(some: set[str]) -> str:
        return "{" + ",".join(sorted(some)) + "}"

    if len(sent) != len(wanted):
        return (
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({names(sent)}) != "
            f"len({names(wanted)}). Sent extra: {names(sent - wanted)}. Missing but required: {names(wanted - sent)}."
        )
    alias = min(sent - wanted)
    return f"input tensor alias not found in signature: {alias}. Inputs expected to be in the set {names(wanted)}."
