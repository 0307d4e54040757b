"""Thin helpers over TVM's IR builder for stage functions on raw pointers.

A stage function is a PrimFunc whose parameters are raw pointers followed by
``begin`` and ``end`` (int32). Inside, every buffer is flat (one dimension).
Vectors are explicit: ``vload``/``vstore`` at an element offset, ``splat`` to
broadcast. Loops that the template wants unrolled are Python loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

__all__ = [
    "Param",
    "T",
    "bind",
    "local",
    "loop",
    "prefetch",
    "splat",
    "stage_func",
    "tiles",
    "unravel",
    "vload",
    "vstore",
    "whole_or_rest",
]

Param = tuple[str, str, int]  # name, dtype, number of elements
Expr = Any  # tvm.tirx expressions have no useful static types
_LINE = 64  # bytes of a cache line


def stage_func(params: Sequence[Param], body: Callable[..., None]) -> tirx.PrimFunc:
    """Build a stage function.

    Args:
        params: Pointer parameters as (name, dtype, elements), in call order.
        body: Called as ``body(*buffers, begin, end)`` inside the builder.

    Returns:
        PrimFunc ``(handle..., int32 begin, int32 end)`` without a global symbol.
    """
    with IRBuilder() as ib, T.prim_func():
        T.func_name("stage")
        pointers = [T.arg(name, T.handle(dtype)) for name, dtype, _ in params]
        begin = T.arg("begin", T.int32())
        end = T.arg("end", T.int32())
        buffers = [
            T.decl_buffer((max(size, 1),), dtype, data=pointer)
            for (_, dtype, size), pointer in zip(params, pointers, strict=True)
        ]
        body(*buffers, begin, end)
    return ib.get()


def loop(begin: Expr, end: Expr | None = None) -> Any:
    """Serial loop frame: ``with loop(n) as i`` or ``with loop(a, b) as i``."""
    return T.serial(0, begin) if end is None else T.serial(begin, end)


def whole_or_rest(
    index: Expr, full: int, rest: object, whole: Callable[[], None], remainder: Callable[[], None]
) -> None:
    """Emit ``whole()`` for indices below ``full``, and ``remainder()`` for the one behind them.

    Args:
        index: Of a part: one of ``full`` whole ones, or of the smaller one behind them.
        full: Whole parts.
        rest: True if there is a smaller one.
        whole, remainder: Emit the code of one part.
    """
    if not rest:
        whole()
    elif not full:
        remainder()
    else:
        with T.If(index < full):
            with T.Then():
                whole()
            with T.Else():
                remainder()


def tiles(
    first: Expr, last: Expr, count: int, size: int, emit: Callable[[Expr, int], None]
) -> None:
    """``emit(tile, size)`` for the tiles ``[first, last)`` that cut ``count``; the last is smaller.

    Args:
        first, last: Range of tiles.
        count: What all tiles together cover.
        size: Of a whole tile.
        emit: Emits the code of one tile.
    """
    whole, rest = divmod(count, size)
    if whole:
        with loop(first, tirx.min(last, whole) if rest else last) as tile:
            emit(tile, size)
    if rest:
        with T.If(last > whole), T.Then():
            emit(T.int32(whole), rest)


def local(size: int, dtype: str = "float32") -> Any:
    """A small stack buffer; accesses at constant offsets become registers."""
    return T.alloc_buffer((size,), dtype, scope="local")


def bind(value: Expr) -> Expr:
    """Evaluate once and use many times.

    Index values are named (``T.Bind``), so that TVM can simplify addresses. Floats and
    vectors go through a stack cell that LLVM turns into a register: TVM substitutes
    named arithmetic into its uses, where shared terms grow exponentially, and
    simplifies float arithmetic as if it were exact; loads it leaves alone.
    """
    if isinstance(value, int | float):
        return value
    dtype = value.ty.dtype
    is_index = dtype.lanes == 1 and str(dtype) in ("int32", "int64")
    if is_index:
        return T.Bind(value)
    lanes = int(dtype.lanes)
    cell = local(lanes, str(dtype).split("x")[0])
    vstore(cell, 0, value, lanes)
    return vload(cell, 0, lanes)


def vload(buffer: Any, offset: Expr, lanes: int, stride: int = 1) -> Expr:
    """Load ``lanes`` elements from ``offset`` on (a scalar if ``lanes`` is 1)."""
    return buffer[offset] if lanes == 1 else buffer[T.Ramp(offset, stride, lanes)]


def vstore(buffer: Any, offset: Expr, value: Expr, lanes: int) -> None:
    """Store ``lanes`` contiguous elements at ``offset``."""
    T.buffer_store(buffer, value, [offset if lanes == 1 else T.Ramp(offset, 1, lanes)])


def prefetch(buffer: Any, offset: Expr, elements: int, *, write: bool) -> None:
    """Ask for the cache lines of ``elements`` of a buffer; may point past it.

    One line per 64 bytes from ``offset`` on: an unaligned end is left to the next request.
    """
    for start in range(0, elements, _LINE // np.dtype(str(buffer.dtype)).itemsize):
        address = T.address_of(buffer[offset + start])
        flags = [tirx.const(v, "int32") for v in (int(write), 3, 1)]
        T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *flags))


def splat(value: Expr, lanes: int) -> Expr:
    """Broadcast a scalar to a vector."""
    return value if lanes == 1 else T.Broadcast(value, lanes)


def unravel(index: Expr, shape: Sequence[int]) -> list[Expr]:
    """Coordinates of a non-negative flat index, outermost first; each is named once."""
    found: list[Expr] = []
    for size in reversed(shape[1:]):
        if size == 1:
            found.append(tirx.const(0, "int32"))
            continue
        found.append(bind(tirx.truncmod(index, size)))
        index = bind(tirx.truncdiv(index, size))
    found.append(index)
    return found[::-1]
