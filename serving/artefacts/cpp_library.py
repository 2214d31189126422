"""TensorFlow's C API: the functions of the shared library in TensorFlow's wheel, with their types."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

from defended.exceptions import CppLoaderError

TEXT_BYTES = 24
"""The size of a `TF_TString`."""


class Output(ctypes.Structure):
    """`TF_Output`: an operation's output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class Buffer(ctypes.Structure):
    """`TF_Buffer`."""

    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p))


# The functions used, by their result and argument types: an untyped pointer would be cut to 32 bits.
_P, _S, _I, _N = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
_Outputs, _Tensors = ctypes.POINTER(Output), ctypes.POINTER(_P)
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "TF_NewStatus TF_NewGraph TF_NewBuffer TF_NewSessionOptions": (_P, []),
    "TF_DeleteStatus TF_DeleteGraph TF_DeleteBuffer TF_DeleteSessionOptions TF_DeleteTensor": (None, [_P]),
    "TF_StringInit TF_StringDealloc": (None, [_P]),
    "TF_CloseSession TF_DeleteSession": (None, [_P, _P]),
    "TF_GetCode TF_TensorType TF_NumDims": (_I, [_P]),
    "TF_TensorData TF_StringGetDataPointer": (_P, [_P]),
    "TF_TensorByteSize TF_StringGetSize": (_N, [_P]),
    "TF_Message": (_S, [_P]),
    "TF_Dim": (ctypes.c_int64, [_P, _I]),
    "TF_GraphOperationByName": (_P, [_P, _S]),
    "TF_StringCopy": (None, [_P, _S, _N]),
    "TF_AllocateTensor": (_P, [_I, ctypes.POINTER(ctypes.c_int64), _I, _N]),
    "TF_LoadSessionFromSavedModel": (_P, [_P, _P, _S, ctypes.POINTER(_S), _I, _P, _P, _P]),
    "TF_SessionRun": (
        None,
        [_P, _P, _Outputs, _Tensors, _I, _Outputs, _Tensors, _I, ctypes.POINTER(_P), _I, _P, _P],
    ),
}


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the C API of the installed TensorFlow, loaded once in a process.

    Raises:
        CppLoaderError: TensorFlow's wheel has no such library, or a different one.
    """
    import tensorflow as tf  # initialises the shared library

    folder = Path(tf.__file__).parent
    for pattern in ("libtensorflow_cc.so.2*", "libtensorflow_cc.2*.dylib"):
        for candidate in sorted(folder.glob(pattern)):
            try:
                library = ctypes.CDLL(str(candidate))
                for names, (result, arguments) in _PROTOTYPES.items():
                    for name in names.split():
                        function = getattr(library, name)
                        function.restype, function.argtypes = result, arguments
            except (OSError, AttributeError) as error:
                raise CppLoaderError(f"{candidate} does not offer TensorFlow's C API: {error}") from error
            return library
    raise CppLoaderError(
        f"libtensorflow_cc, TensorFlow's C++ loader, is not in {folder}. "
        "Install TensorFlow's wheel for Linux or macOS; a build without the C++ library cannot check an artefact."
    )
