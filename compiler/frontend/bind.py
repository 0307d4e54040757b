"""Binding of a model's inputs: shapes for dynamic dimensions, values for constants."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import ModelError, UnsupportedError, UsageError

__all__ = ["TENSOR_LIMIT", "bind_constants", "bind_shapes"]

TENSOR_LIMIT = (2 << 30) - 1
"""Bytes of the largest tensor anywhere in a model (offsets are 32-bit)."""

Dims = Sequence[int | str | None]


def _unknown(kind: str, names: Iterable[str], inputs: Sequence[ir.Value]) -> None:
    known = [v.name or "" for v in inputs]
    for name in names:
        if name not in known:
            folded = {n.lower(): n for n in known}
            near = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, 1)]
            raise UsageError(
                f"{kind} names an input that the model does not have",
                where=name,
                expected=f"one of {', '.join(known)}",
                hint=f"did you mean {near[0]}?" if near else None,
            )


def _dims(value: ir.Value) -> list[int | str | None] | None:
    """Dimensions: number, name, or None where the model says nothing (or -1)."""
    if value.shape is None:
        return None
    dims: list[int | str | None] = []
    for dim in value.shape:
        if isinstance(dim, int):
            dims.append(dim if dim >= 0 else None)
        else:
            dims.append(dim.value)
    return dims


def _bind_one(
    name: str, dims: Dims | None, given: tuple[int, ...], named: dict[str, int]
) -> list[int | str | None]:
    if any(not isinstance(d, int | np.integer) or d < 1 for d in given):
        raise UsageError("dimensions must be positive numbers", where=f"--shape {name}", got=given)
    if dims is None:
        return list(given)
    if len(given) != len(dims):
        raise UsageError(
            "wrong number of dimensions",
            where=f"--shape {name}",
            expected=f"{len(dims)} ({_spell(name, dims)})",
            got=f"{len(given)}: {given}",
        )
    for dim, size in zip(dims, given, strict=True):
        fixed = named.get(dim) if isinstance(dim, str) else dim
        if fixed is not None and fixed != size:
            raise UsageError(
                f"the model fixes dimension {dim} to {fixed}",
                where=f"--shape {name}",
                expected=_spell(name, dims),
                got=given,
            )
        if isinstance(dim, str):
            named[dim] = int(size)
    return [int(d) for d in given]


def _spell(name: str, dims: Dims) -> str:
    return f"{name}:" + ",".join("?" if d is None else str(d) for d in dims)


def bind_shapes(
    inputs: Sequence[ir.Value], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Static shape of every input.

    A dimension's name that one shape binds is bound in all inputs.

    Args:
        inputs: Inputs that get their value at run time.
        shapes: What the user gave (``--shape``).

    Raises:
        UsageError: A wrong name, rank or size, or dimensions still open; the hint
            then holds the flags to pass.
        UnsupportedError: An input that is no numeric tensor.
        ModelError: An input is absurdly large.
    """
    _unknown("--shape", shapes, inputs)
    named: dict[str, int] = {}
    bound: dict[str, list[int | str | None] | None] = {}
    for value in inputs:
        name = value.name or ""
        if not isinstance(value.type, ir.TensorType):
            raise UnsupportedError(
                "only tensors can be inputs", where=f"input {name}", got=str(value.type)
            )
        if value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) or value.dtype is None:
            raise UnsupportedError(
                "only numeric tensors can be inputs", where=f"input {name}", got=value.dtype
            )
        dims = _dims(value)
        bound[name] = _bind_one(name, dims, shapes[name], named) if name in shapes else dims
    flags = []
    result: dict[str, tuple[int, ...]] = {}
    for value in inputs:
        name = value.name or ""
        dims = bound[name]
        if dims is None:
            flags.append(f"--shape {name}:... (rank unknown)")
            continue
        dims = [named.get(d, d) if isinstance(d, str) else d for d in dims]
        if not all(isinstance(d, int) for d in dims):
            flags.append(f"--shape {_spell(name, dims)}")
            continue
        result[name] = tuple(d for d in dims if isinstance(d, int))
        size = prod(result[name]) * max(int(value.dtype.itemsize), 1) if value.dtype else 0
        if size > TENSOR_LIMIT:
            raise ModelError(
                "the tensor is too large",
                where=f"input {name}",
                expected=f"<= {TENSOR_LIMIT} bytes",
                got=f"{size} bytes {result[name]}",
            )
    if flags:
        raise UsageError(
            "the model has dynamic dimensions that must be fixed",
            where=", ".join(f.split(":")[0].removeprefix("--shape ") for f in flags),
            hint="pass, with a number for each name or question mark: " + " ".join(flags),
        )
    return result


def bind_constants(
    inputs: Sequence[ir.Value], constants: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Values of the inputs that the user fixed, in the inputs' dtypes.

    Raises:
        UsageError: Unknown name, or a value that does not fit the input's dtype or shape.
    """
    _unknown("constants", constants, inputs)
    result = {}
    for value in inputs:
        name = value.name or ""
        if name not in constants:
            continue
        array = np.asarray(constants[name])
        if value.dtype is not None and array.dtype != value.dtype.numpy():
            if not np.can_cast(array.dtype, value.dtype.numpy(), "same_kind"):
                raise UsageError(
                    "the constant has the wrong type",
                    where=name,
                    expected=value.dtype.numpy().name,
                    got=array.dtype.name,
                )
            array = array.astype(value.dtype.numpy())
        dims = _dims(value)
        if dims is not None and (
            len(dims) != array.ndim
            or any(isinstance(d, int) and d != s for d, s in zip(dims, array.shape, strict=True))
        ):
            raise UsageError(
                "the constant has the wrong shape",
                where=name,
                expected=_spell(name, dims),
                got=array.shape,
            )
        result[name] = array
    return result
