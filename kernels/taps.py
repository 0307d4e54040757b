"""Loops over the taps of a sliding window that fall on the input, with bounds at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind, loop
from effc.kernels.window import Axis

__all__ = ["each_tap"]

Expr = Any


def each_tap(
    axes: Sequence[Axis],
    position: Sequence[Expr],
    body: Callable[[list[Expr], list[Expr]], None],
) -> None:
    """Call ``body(input indices, kernel indices)`` for the taps of one output position."""

    def nest(indices: list[Expr], kernel: list[Expr]) -> None:
        number = len(indices)
        if number == len(axes):
            body(indices, kernel)
            return
        axis, step = axes[number], axes[number].dilation
        start = bind(position[number] * axis.stride - axis.before)
        first = bind(tirx.Max(T.int32(0), tirx.truncdiv(-start + (step - 1), step)))
        stop = tirx.truncdiv(T.int32(axis.size - 1 + step) - start, step)
        stop = bind(tirx.Min(T.int32(axis.kernel), stop))
        with loop(first, stop) as k:
            nest([*indices, bind(start + k * step)], [*kernel, k])

    nest([], [])
