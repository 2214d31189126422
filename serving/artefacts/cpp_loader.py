"""SavedModels run by TensorFlow's C++ loader, the code that TensorFlow Serving uses.

A SavedModel that `tf.saved_model.load` accepts can still fail in a server ("Could not find variable …"). This loader
is `LoadSavedModel` and a `Session`, reached through the C API in TensorFlow's wheel, so it fails where a server fails.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from defended.exceptions import CppLoaderError
from defended.serving.artefacts.closing import Closing
from defended.serving.artefacts.cpp_library import TEXT_BYTES, Buffer, Output, load_library
from defended.serving.artefacts.inputs import run_in_batches
from defended.serving.artefacts.tensor_info import BY_DTYPE, BY_NUMBER, TYPES, SignatureInfo, TensorInfo


class CppSession(Closing):
    """A SavedModel in TensorFlow's C++ loader; a context manager, to be closed.

    Args:
        directory: the SavedModel's directory (the one that holds `saved_model.pb`).

    Raises:
        CppLoaderError: the library is missing, or the loader refuses the model.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._session: int | None = None
        self._library = library = load_library()
        self._graph: int | None = library.TF_NewGraph()
        options, buffer, status = library.TF_NewSessionOptions(), library.TF_NewBuffer(), library.TF_NewStatus()
        try:
            tags = (ctypes.c_char_p * 1)(b"serve")
            session = library.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(self.directory), tags, 1, self._graph, buffer, status
            )
            self._check(status, "does not load")
            self._session = session
            content = ctypes.cast(buffer, ctypes.POINTER(Buffer)).contents
            self._read_signatures(ctypes.string_at(content.data, content.length))
        except BaseException:
            self.close()
            raise
        finally:
            library.TF_DeleteBuffer(buffer)
            library.TF_DeleteSessionOptions(options)
            library.TF_DeleteStatus(status)

    @property
    def signatures(self) -> Mapping[str, SignatureInfo]:
        """The model's signatures by name, the initialiser's own (`__saved_model_…`) left out."""
        return self._signatures

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one signature.

        Args:
            signature: a name in `signatures`.
            inputs: one array for each input, in exactly the dtype and shape that the signature states; for a `string`
                input, `bytes` in an array of objects.

        Returns:
            The outputs by name, as arrays with their own memory.

        Raises:
            CppLoaderError: there is no such signature, an input does not fit, or the run fails.
        """
        if self._session is None:
            raise CppLoaderError(f"The session on {self.directory} is closed: open a new one.")
        if signature not in self._signatures:
            raise CppLoaderError(f"No signature {signature!r} in {self.directory}; it has {sorted(self._signatures)}.")
        info = self._signatures[signature]
        if set(inputs) != set(info.inputs):
            raise CppLoaderError(
                f"Signature {signature!r} takes the inputs {sorted(info.inputs)}. Received: {sorted(inputs)}."
            )
        arrays = {name: np.ascontiguousarray(inputs[name]) for name in info.inputs}
        for name, array in arrays.items():
            wanted = info.inputs[name]
            if _name_of(array) != wanted.dtype or not wanted.accepts(array.shape):
                raise CppLoaderError(
                    f"Input {name!r} of signature {signature!r} takes {wanted.dtype} of shape {wanted.shape}. "
                    f"Received: {_name_of(array)} of shape {array.shape}."
                )
        return self._run(signature, arrays)

    def run_batches(self, signature: str, image: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        """Run a signature with input `image` on any number of inputs, `batch_size` at a time; errors as for `run`."""
        return run_in_batches(lambda batch: self.run(signature, {"image": batch}), image, batch_size)

    def close(self) -> None:
        """Free the session, its graph and its variables; a second call does nothing."""
        library = self._library
        if self._session is not None:
            status = library.TF_NewStatus()
            library.TF_CloseSession(self._session, status)
            library.TF_DeleteSession(self._session, status)
            library.TF_DeleteStatus(status)
            self._session = None
        if self._graph is not None:
            library.TF_DeleteGraph(self._graph)
            self._graph = None

    def __del__(self) -> None:
        if getattr(self, "_graph", None) is not None and not sys.is_finalizing():
            self.close()

    def _check(self, status: int, what: str) -> None:
        if self._library.TF_GetCode(status):
            message = self._library.TF_Message(status).decode(errors="replace")
            raise CppLoaderError(f"{self.directory} {what} in TensorFlow's C++ loader: {message}")

    def _read_signatures(self, meta_graph: bytes) -> None:
        from tensorflow.core.protobuf import meta_graph_pb2

        proto = meta_graph_pb2.MetaGraphDef.FromString(meta_graph)
        self._endpoints: dict[str, tuple[dict[str, Output], dict[str, Output]]] = {}
        self._signatures: dict[str, SignatureInfo] = {}
        for name, definition in proto.signature_def.items():
            if name.startswith("__saved_model_"):
                continue
            self._signatures[name] = SignatureInfo(_describe(definition.inputs), _describe(definition.outputs))
            self._endpoints[name] = (self._locate(definition.inputs), self._locate(definition.outputs))

    def _locate(self, tensors: Mapping[str, Any]) -> dict[str, Output]:
        located = {}
        for name in sorted(tensors):
            operation, _, index = tensors[name].name.partition(":")
            pointer = self._library.TF_GraphOperationByName(self._graph, operation.encode())
            if pointer is None:
                raise CppLoaderError(f"{self.directory} names the operation {operation!r}, which its graph lacks.")
            located[name] = Output(pointer, int(index or 0))
        return located

    def _run(self, signature: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        library = self._library
        sources, sinks = self._endpoints[signature]
        fed = (ctypes.c_void_p * len(sources))()
        fetched = (ctypes.c_void_p * len(sinks))()
        status = library.TF_NewStatus()  # one per run: several threads may share a session
        try:
            for position, name in enumerate(sources):
                array = arrays[name]
                dimensions = (ctypes.c_int64 * array.ndim)(*array.shape)
                is_text = array.dtype == object
                size = array.size * TEXT_BYTES if is_text else array.nbytes
                fed[position] = library.TF_AllocateTensor(BY_DTYPE[array.dtype].number, dimensions, array.ndim, size)
                data = library.TF_TensorData(fed[position])
                if is_text:
                    for number, text in enumerate(array.flat):
                        library.TF_StringInit(data + number * TEXT_BYTES)
                        library.TF_StringCopy(data + number * TEXT_BYTES, text, len(text))
                else:
                    ctypes.memmove(data, array.ctypes.data, array.nbytes)
            library.TF_SessionRun(
                self._session, None, (Output * len(sources))(*sources.values()), fed, len(sources),
                (Output * len(sinks))(*sinks.values()), fetched, len(sinks), None, 0, None, status,
            )  # fmt: skip
            self._check(status, f"fails to run {signature!r}")
            return {name: self._read(tensor) for name, tensor in zip(sinks, fetched, strict=True)}
        finally:
            library.TF_DeleteStatus(status)
            for tensor, array in zip(fed, arrays.values(), strict=True):
                if tensor and array.dtype == object:  # a tensor made here does not free long texts
                    data = library.TF_TensorData(tensor)
                    for number in range(array.size):
                        library.TF_StringDealloc(data + number * TEXT_BYTES)
            for tensor in (*fed, *fetched):
                if tensor:
                    library.TF_DeleteTensor(tensor)

    def _read(self, tensor: int) -> np.ndarray:
        library = self._library
        shape = [library.TF_Dim(tensor, axis) for axis in range(library.TF_NumDims(tensor))]
        dtype = BY_NUMBER[library.TF_TensorType(tensor)].dtype
        if dtype.hasobject:
            data, found = library.TF_TensorData(tensor), np.empty(shape, object)
            for number in range(found.size):
                text = data + number * TEXT_BYTES
                pointer = library.TF_StringGetDataPointer(text)
                found.flat[number] = ctypes.string_at(pointer, library.TF_StringGetSize(text))
            return found
        content = ctypes.string_at(library.TF_TensorData(tensor), library.TF_TensorByteSize(tensor))
        return np.frombuffer(bytearray(content), dtype).reshape(shape)


def _describe(tensors: Mapping[str, Any]) -> dict[str, TensorInfo]:
    described = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype not in BY_NUMBER:
            raise CppLoaderError(
                f"Tensor {name!r} has the TensorFlow type {tensor.dtype}, which is not read here; "
                f"signatures carry {', '.join(kind.name for kind in TYPES)}."
            )
        if tensor.tensor_shape.unknown_rank:
            raise CppLoaderError(f"Tensor {name!r} has no known rank; state the signature's shapes.")
        shape = tuple(None if axis.size < 0 else int(axis.size) for axis in tensor.tensor_shape.dim)
        described[name] = TensorInfo(BY_NUMBER[tensor.dtype].name, shape)
    return described


def _name_of(array: np.ndarray) -> str:
    """Return the array's dtype by the name that a signature gives it; objects are text where all of them are bytes."""
    if array.dtype != object or not all(isinstance(item, bytes) for item in array.flat):
        return array.dtype.name
    return "string"
