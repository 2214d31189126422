"""SavedModels run by TensorFlow's C++ loader, the code that TensorFlow Serving uses.

A SavedModel that `tf.saved_model.load` accepts can still fail in a server ("Could not find variable …"). This loader
is `LoadSavedModel` and a `Session`, reached through the C API in TensorFlow's wheel, so it fails where a server fails.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from defended.exceptions import CppLoaderError

# TF_DataType codes of the types a signature of ours may carry; text is bytes in arrays of objects.
_TEXT = 7
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    9: np.dtype(np.int64),
    _TEXT: np.dtype(object),
    10: np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_NAMES = {code: "string" if code == _TEXT else dtype.name for code, dtype in _DTYPES.items()}
_TEXT_BYTES = 24  # sizeof(TF_TString)


@dataclass(frozen=True)
class TensorInfo:
    """A signature's tensor: its NumPy dtype name, or `string`, and its shape with `None` for an axis of any length."""

    dtype: str
    shape: tuple[int | None, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be fed."""
        return len(shape) == len(self.shape) and all(
            wanted in (None, got) for wanted, got in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class SignatureInfo:
    """What a signature takes and gives, by name."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p))


# The functions used, with their result and argument types: an untyped pointer would be cut to 32 bits.
_P, _S, _I, _N = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_Outputs, _Tensors = ctypes.POINTER(_Output), ctypes.POINTER(_P)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus": (_P, []),
    "TF_DeleteStatus": (None, [_P]),
    "TF_GetCode": (_I, [_P]),
    "TF_Message": (_S, [_P]),
    "TF_NewGraph": (_P, []),
    "TF_DeleteGraph": (None, [_P]),
    "TF_NewBuffer": (_P, []),
    "TF_DeleteBuffer": (None, [_P]),
    "TF_NewSessionOptions": (_P, []),
    "TF_DeleteSessionOptions": (None, [_P]),
    "TF_LoadSessionFromSavedModel": (_P, [_P, _P, _S, ctypes.POINTER(_S), _I, _P, _P, _P]),
    "TF_CloseSession": (None, [_P, _P]),
    "TF_DeleteSession": (None, [_P, _P]),
    "TF_GraphOperationByName": (_P, [_P, _S]),
    "TF_AllocateTensor": (_P, [_I, ctypes.POINTER(ctypes.c_int64), _I, _N]),
    "TF_DeleteTensor": (None, [_P]),
    "TF_TensorType": (_I, [_P]),
    "TF_NumDims": (_I, [_P]),
    "TF_Dim": (ctypes.c_int64, [_P, _I]),
    "TF_TensorByteSize": (_N, [_P]),
    "TF_TensorData": (_P, [_P]),
    "TF_StringInit": (None, [_P]),
    "TF_StringCopy": (None, [_P, _S, _N]),
    "TF_StringDealloc": (None, [_P]),
    "TF_StringGetDataPointer": (_P, [_P]),
    "TF_StringGetSize": (_N, [_P]),
    "TF_SessionRun": (
        None,
        [_P, _P, _Outputs, _Tensors, _I, _Outputs, _Tensors, _I, ctypes.POINTER(_P), _I, _P, _P],
    ),
}


@functools.cache
def _library() -> ctypes.CDLL:
    """The C API of the installed TensorFlow, loaded once in a process."""
    import tensorflow as tf  # initialises the shared library

    folder = Path(tf.__file__).parent
    for pattern in ("libtensorflow_cc.so.2*", "libtensorflow_cc.2*.dylib"):
        for candidate in sorted(folder.glob(pattern)):
            try:
                library = ctypes.CDLL(str(candidate))
                for name, (result, arguments) in _PROTOTYPES.items():
                    function = getattr(library, name)
                    function.restype, function.argtypes = result, arguments
            except (OSError, AttributeError) as error:
                raise CppLoaderError(f"{candidate} does not offer TensorFlow's C API: {error}") from error
            return library
    raise CppLoaderError(
        f"libtensorflow_cc, TensorFlow's C++ loader, is not in {folder}. "
        "Install TensorFlow's wheel for Linux or macOS; a build without the C++ library cannot check an artefact."
    )


class CppSession:
    """A SavedModel in TensorFlow's C++ loader; a context manager, to be closed.

    Args:
        directory: the SavedModel's directory (the one that holds `saved_model.pb`).

    Raises:
        CppLoaderError: the library is missing, or the loader refuses the model.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        self._session: int | None = None
        self._library = library = _library()
        self._graph: int | None = library.TF_NewGraph()
        options, buffer, status = library.TF_NewSessionOptions(), library.TF_NewBuffer(), library.TF_NewStatus()
        try:
            tags = (_S * 1)(b"serve")
            session = library.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(self.directory), tags, 1, self._graph, buffer, status
            )
            self._check(status, "does not load")
            self._session = session
            content = ctypes.cast(buffer, ctypes.POINTER(_Buffer)).contents
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
            inputs: one array for each input, in exactly the dtype and shape that the signature states; of a `string`
                input, `bytes` in an array of objects.

        Returns:
            The outputs by name, as arrays of their own memory.

        Raises:
            CppLoaderError: no such signature, an input that does not fit, or a failure in the run.
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
        """`run` of a signature with the input `image`, on any number of inputs, `batch_size` at a time."""
        starts = range(0, max(len(image), 1), batch_size)  # an empty batch runs too, for its outputs' shapes
        parts = [self.run(signature, {"image": image[start : start + batch_size]}) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

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

    def __enter__(self) -> CppSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
        self._endpoints: dict[str, tuple[dict[str, _Output], dict[str, _Output]]] = {}
        self._signatures: dict[str, SignatureInfo] = {}
        for name, definition in proto.signature_def.items():
            if name.startswith("__saved_model_"):
                continue
            self._signatures[name] = SignatureInfo(_describe(definition.inputs), _describe(definition.outputs))
            self._endpoints[name] = (self._locate(definition.inputs), self._locate(definition.outputs))

    def _locate(self, tensors: Mapping[str, Any]) -> dict[str, _Output]:
        located = {}
        for name in sorted(tensors):
            operation, _, index = tensors[name].name.partition(":")
            pointer = self._library.TF_GraphOperationByName(self._graph, operation.encode())
            if pointer is None:
                raise CppLoaderError(f"{self.directory} names the operation {operation!r}, which its graph lacks.")
            located[name] = _Output(pointer, int(index or 0))
        return located

    def _run(self, signature: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        library = self._library
        sources, sinks = self._endpoints[signature]
        fed = (_P * len(sources))()
        fetched = (_P * len(sinks))()
        status = library.TF_NewStatus()  # one a run: a session may be used by several threads at once
        try:
            for position, name in enumerate(sources):
                array = arrays[name]
                dimensions = (ctypes.c_int64 * array.ndim)(*array.shape)
                is_text = array.dtype == object
                size = array.size * _TEXT_BYTES if is_text else array.nbytes
                fed[position] = library.TF_AllocateTensor(_CODES[array.dtype], dimensions, array.ndim, size)
                data = library.TF_TensorData(fed[position])
                if is_text:
                    for number, text in enumerate(array.flat):
                        library.TF_StringInit(data + number * _TEXT_BYTES)
                        library.TF_StringCopy(data + number * _TEXT_BYTES, text, len(text))
                else:
                    ctypes.memmove(data, array.ctypes.data, array.nbytes)
            library.TF_SessionRun(
                self._session, None, (_Output * len(sources))(*sources.values()), fed, len(sources),
                (_Output * len(sinks))(*sinks.values()), fetched, len(sinks), None, 0, None, status,
            )  # fmt: skip
            self._check(status, f"fails to run {signature!r}")
            return {name: self._read(tensor) for name, tensor in zip(sinks, fetched, strict=True)}
        finally:
            library.TF_DeleteStatus(status)
            for tensor, array in zip(fed, arrays.values(), strict=True):
                if tensor and array.dtype == object:  # a tensor of one's own does not free long texts
                    data = library.TF_TensorData(tensor)
                    for number in range(array.size):
                        library.TF_StringDealloc(data + number * _TEXT_BYTES)
            for tensor in (*fed, *fetched):
                if tensor:
                    library.TF_DeleteTensor(tensor)

    def _read(self, tensor: int) -> np.ndarray:
        library = self._library
        shape = [library.TF_Dim(tensor, axis) for axis in range(library.TF_NumDims(tensor))]
        if library.TF_TensorType(tensor) == _TEXT:
            data, found = library.TF_TensorData(tensor), np.empty(shape, object)
            for number in range(found.size):
                text = data + number * _TEXT_BYTES
                pointer = library.TF_StringGetDataPointer(text)
                found.flat[number] = ctypes.string_at(pointer, library.TF_StringGetSize(text))
            return found
        content = ctypes.string_at(library.TF_TensorData(tensor), library.TF_TensorByteSize(tensor))
        return np.frombuffer(bytearray(content), _DTYPES[library.TF_TensorType(tensor)]).reshape(shape)


def _describe(tensors: Mapping[str, Any]) -> dict[str, TensorInfo]:
    described = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES:
            raise CppLoaderError(
                f"Tensor {name!r} has the TensorFlow type {tensor.dtype}, which is not read here; "
                f"signatures carry {', '.join(_NAMES.values())}."
            )
        if tensor.tensor_shape.unknown_rank:
            raise CppLoaderError(f"Tensor {name!r} has no known rank; state the signature's shapes.")
        shape = tuple(None if axis.size < 0 else int(axis.size) for axis in tensor.tensor_shape.dim)
        described[name] = TensorInfo(_NAMES[tensor.dtype], shape)
    return described


def _name_of(array: np.ndarray) -> str:
    """The array's dtype by the name that a signature gives it; objects are text where all of them are bytes."""
    if array.dtype != object or not all(isinstance(item, bytes) for item in array.flat):
        return array.dtype.name
    return "string"
