"""The C API of ``runtimes/core/effc.h`` in ctypes: structs, status codes, loading a library."""

from __future__ import annotations

import _ctypes
import ctypes
import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.errors import DeviceError, InternalError, UsageError

__all__ = [
    "ABI_VERSION",
    "MAX_THREADS",
    "Library",
    "MappedFile",
    "ModelInfo",
    "Options",
    "ProfileFn",
    "TensorInfo",
    "check_status",
    "tensor_infos",
    "tensors",
]

Array = npt.NDArray[Any]

ABI_VERSION = 2
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
}


class _Tensor(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _TensorInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


class _StepInfo(ctypes.Structure):
    _fields_ = (("layer", ctypes.c_char_p), ("nodes", ctypes.c_char_p))


class ModelInfo(ctypes.Structure):
    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("step_count", ctypes.c_int32),
        ("inputs", ctypes.POINTER(_TensorInfo)),
        ("outputs", ctypes.POINTER(_TensorInfo)),
        ("steps", ctypes.POINTER(_StepInfo)),
        ("arena_bytes", ctypes.c_size_t),
        ("scratch_bytes", ctypes.c_size_t),
        ("weights_bytes", ctypes.c_size_t),
        ("variants", ctypes.POINTER(ctypes.c_char_p)),
        ("variant_count", ctypes.c_int32),
    )


ProfileFn = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64)


class Options(ctypes.Structure):
    _fields_ = (
        ("threads", ctypes.c_int32),
        ("affinity", ctypes.c_uint64),
        ("arena", ctypes.c_void_p),
        ("arena_bytes", ctypes.c_size_t),
        ("profile", ProfileFn),
        ("profile_user", ctypes.c_void_p),
        ("variant", ctypes.c_char_p),
        ("weights", ctypes.c_void_p),
        ("weights_bytes", ctypes.c_size_t),
    )


# effc_status of effc.h
_STATUS = {
    1: "an argument is null or out of range",
    2: "a tensor has another size than the model expects",
    3: "a tensor or the arena is not aligned",
    4: "out of memory",
    5: "the supplied arena is too small",
    6: "cannot start the requested threads",
    7: "no CPU of the affinity mask may be used",
    8: "the instance is running on another thread",
    9: "the instance belongs to another model",
    10: "no such variant of the code, or not for this processor",
    11: "the weights are missing, or those of another model",
}
MAX_THREADS = 64


@dataclass(frozen=True)
class TensorInfo:
    """Name, static shape and NumPy dtype of an input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Library:
    """A loaded shared library, unloaded by ``close``."""

    def __init__(self, path: Path) -> None:
        """Load a library under a name of its own.

        The dynamic linker takes a path that it has seen for the library it has loaded, even
        if the file was replaced since; a new name makes it look at the file.
        """
        self._loaded: ctypes.CDLL | None = None
        try:
            with tempfile.TemporaryDirectory(prefix="effc-load-") as folder:
                link = Path(folder) / path.name
                link.symlink_to(path)
                self._loaded = ctypes.CDLL(str(link))
        except OSError as error:
            raise DeviceError(
                "this machine cannot load the library",
                where=str(path),
                got=error,
                hint="was it compiled for another target? use --device qemu, or --target host",
            ) from error

    def function(self, name: str) -> Any:
        """A C function by name; ``AttributeError`` if there is none."""
        return getattr(self._loaded, name)

    def close(self) -> None:
        """Unload the library; none of its functions may be running."""
        if self._loaded is not None:
            _ctypes.dlclose(self._loaded._handle)
            self._loaded = None


class MappedFile:
    """A file in memory, read page by page when it is used.

    Attributes:
        address: Of its first byte, aligned to a page.
        size: In bytes.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DeviceError(
                "cannot map the file of weights", where=str(path), got=error
            ) from error
        view = np.frombuffer(self._map, np.uint8)
        self.address = int(view.ctypes.data)
        self.size = view.size


def check_status(status: int, where: Path) -> None:
    """Raise the error that an ``effc_status`` stands for, if it is one.

    Raises:
        DeviceError: Out of memory or threads.
        UsageError: A mask without a usable CPU, a variant that is not there, wrong weights.
        InternalError: Anything that the loader should have prevented.
    """
    if status == 0:
        return
    message = _STATUS.get(status, f"unknown status {status}")
    kind = (
        DeviceError if status in (4, 6) else UsageError if status in (7, 10, 11) else InternalError
    )
    raise kind(message, where=str(where))


def _dtype(code: int) -> np.dtype[Any]:
    name = _DTYPES.get(code)
    if name is None:
        raise InternalError("the library has a tensor of unknown type", got=code)
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def tensor_infos(infos: Any, count: int) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            infos[i].name.decode(),
            tuple(infos[i].shape[k] for k in range(infos[i].rank)),
            _dtype(infos[i].dtype),
        )
        for i in range(count)
    )


def tensors(arrays: Sequence[Array]) -> Any:
    """C descriptors; the arrays must outlive them."""
    return (_Tensor * max(len(arrays), 1))(*(_Tensor(a.ctypes.data, a.nbytes) for a in arrays))
