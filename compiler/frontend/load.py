"""Reading a model: bytes to ``ModelProto``, and external tensor data.

Nothing outside the model's folder is ever opened, and nothing larger than the
stated limits is read.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from effc.errors import ModelError, UsageError

__all__ = ["FILE_LIMIT", "external_tensor", "load_proto"]

FILE_LIMIT = (2 << 30) - 1
"""Bytes of the largest model file: protobuf's own limit. Weights beyond go to external data."""


def load_proto(source: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder its external data may lie in (None for a proto in memory).

    Raises:
        UsageError: The file cannot be read.
        ModelError: The file is not an ONNX model, or too large.
    """
    if isinstance(source, onnx.ModelProto):
        return source, None
    path = Path(source)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise UsageError("this is a folder, not a model file", where=str(path))
        if not path.is_file():
            raise UsageError("this is not a regular file", where=str(path))
        if size > FILE_LIMIT:
            raise ModelError(
                "the model file is too large",
                where=str(path),
                expected=f"<= {FILE_LIMIT} bytes",
                got=f"{size} bytes",
                hint="save the weights as external data",
            )
        data = path.read_bytes()
    except OSError as error:
        raise UsageError("cannot read the model", where=str(path), got=error.strerror) from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            "not an ONNX model, or a truncated one",
            where=str(path),
            got=f"{size} bytes that protobuf cannot decode",
        ) from None
    if not proto.HasField("graph") or (not proto.graph.node and not proto.graph.output):
        raise ModelError("not an ONNX model", where=str(path), got="no graph inside")
    return proto, path.resolve().parent


def external_tensor(tensor: ir.ExternalTensor, folder: Path | None) -> np.ndarray[Any, Any]:
    """Map an external tensor's bytes read-only.

    Raises:
        ModelError: The file is missing, outside of the model's folder, or too short.
    """
    name, location = tensor.name, os.fspath(tensor.location)
    if folder is None:
        raise ModelError(
            "the weights lie in an external file, but the model came without a folder",
            where=name,
            got=location,
            hint="pass the path of the .onnx file instead of the proto",
        )
    relative = Path(location)
    try:
        path = (folder / relative).resolve()
        found = path.is_file()
    except (OSError, ValueError) as error:
        raise ModelError("no file can have this name", where=name, got=location[:100]) from error
    if relative.is_absolute() or ".." in relative.parts or not path.is_relative_to(folder):
        raise ModelError("external data must lie in the model's folder", where=name, got=location)
    if not found:
        raise ModelError(
            "external data is missing", where=name, expected=f"a file {location} beside the model"
        )
    dtype = tensor.dtype.numpy()
    shape = tuple(int(str(d)) for d in tensor.shape)
    needed = (
        prod(shape) * dtype.itemsize
        if tensor.dtype.bitwidth >= 8
        else (-(-prod(shape) * tensor.dtype.bitwidth // 8))
    )
    offset = tensor.offset or 0
    length = needed if tensor.length is None else tensor.length
    if min(*shape, 0) < 0 or offset < 0 or length != needed:
        raise ModelError(
            "external data does not have the tensor's size",
            where=name,
            expected=f"{needed} bytes",
            got=f"{length} bytes at {offset}",
        )
    if offset + length > path.stat().st_size:
        raise ModelError(
            "external data ends too early",
            where=name,
            expected=f"{offset + length} bytes in {location}",
            got=f"{path.stat().st_size}",
        )
    if not needed:
        return np.zeros(shape, dtype)
    if tensor.dtype.bitwidth < 8:
        raise ModelError("external data of sub-byte type is not supported", where=name)
    return np.memmap(path, dtype, "r", offset, shape or (1,)).reshape(shape)
