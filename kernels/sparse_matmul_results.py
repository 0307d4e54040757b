"""What becomes of the sums of a sparse matrix product.

They go through the epilogue and to the result, or first wait in scratch for those of other
filters, so that vectors along positions become vectors along filters. ``SumResults`` lets sums
wait as they are; ``ByteResults`` requantizes them before that, four filters at a time, so that
four times fewer elements are transposed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.blocked_epilogue import BlockedEpilogue
from effc.kernels.builder import Param, T, bind, splat
from effc.kernels.epilogue import Epilogue
from effc.kernels.fixed_point import woven
from effc.kernels.lanes import load_scalars
from effc.kernels.matmul_operands import Store
from effc.kernels.matmul_problem import Problem
from effc.kernels.region import Region
from effc.kernels.vectorbase import cast

__all__ = ["ByteResults", "QuadMultipliers", "Results", "SumResults"]

Expr = Any  # tvm.tirx expressions have no useful static types
Place = tuple[Expr, Expr, Expr]
"""Batch, row and column of the result."""


class Results(ABC):
    """Finishes and stores sums that wait in scratch.

    Attributes:
        unit: Filters of an element that waits.
        params, args, weights: What the stage function needs besides y, and where it comes from.
        out_dtype: Element type of y.
        inplace: As of ``Epilogue``.
    """

    unit: ClassVar[int]
    params: list[Param]
    args: tuple[str, ...]
    weights: dict[str, np.ndarray]
    out_dtype: str
    inplace: tuple[tuple[str, str], ...]

    @abstractmethod
    def take(self, buffers: Sequence[Any], y: Any) -> None:
        """Take the buffers of ``params`` and of the result."""

    @abstractmethod
    def hold(self, sums: list[Expr], first: Expr, lanes: int) -> Expr:
        """What waits in scratch.

        Args:
            sums: A vector along positions for each of ``unit`` filters, bound.
            first: The first filter.
            lanes: Of each vector.
        """

    @abstractmethod
    def release(self, place: Place, held: Expr, valid: int, lanes: int) -> None:
        """Store what has waited.

        Args:
            place: Where the first filter belongs.
            held: Elements along filters.
            valid: Filters that exist.
            lanes: Elements.
        """


class SumResults(Results):
    """Any epilogue, behind the bias."""

    unit = 1

    def __init__(self, problem: Problem, epilogue: Epilogue, slack: int) -> None:
        self._problem, self._epilogue = problem, epilogue
        self._behind = problem.c is not None
        self.params, self.args, self.weights = [], (), {}
        if problem.c is not None:
            padded = problem.pack_c(slack)
            if padded is None:
                self.params.append(("c", problem.dtype, problem.c.elements))
                self.args = (problem.c.name,)
            else:
                self.params.append(("c", str(padded.dtype), padded.size))
                self.args, self.weights = ("w:c",), {"c": padded}
        self.params += epilogue.params
        self.args += epilogue.args
        self.weights |= epilogue.weights
        self.out_dtype, self.inplace = epilogue.out_dtype, epilogue.inplace

    def take(self, buffers: Sequence[Any], y: Any) -> None:
        c, extra = (buffers[0], buffers[1:]) if self._behind else (None, buffers)
        self._store = Store(self._problem, self._epilogue, y, list(extra), c)

    def store(self, place: Place, sums: Expr, valid: int, lanes: int) -> None:
        """Finish and store the first ``valid`` of ``lanes`` sums along a row of the result."""
        self._store.vector(*place, sums, valid, lanes)

    def hold(self, sums: list[Expr], first: Expr, lanes: int) -> Expr:
        return cast(sums[0], self._problem.dtype)

    def release(self, place: Place, held: Expr, valid: int, lanes: int) -> None:
        self.store(place, cast(held, self._problem.sums), valid, lanes)


class ByteResults(Results):
    """A Requantize first, which gives bytes; integer sums along positions only."""

    unit = 4

    def __init__(self, problem: Problem, epilogue: BlockedEpilogue, target: Target) -> None:
        self._problem, self._epilogue, self._target = problem, epilogue, target
        bias = _whole_quads(_constant(problem), problem.n)
        self.params = [("c", "int32", bias.size), *epilogue.params]
        self.args = ("w:c", *epilogue.args)
        self.weights = {"c": bias, **epilogue.weights}
        self.out_dtype, self.inplace = epilogue.out_dtype, epilogue.inplace

    def take(self, buffers: Sequence[Any], y: Any) -> None:
        self._c, *self._operands = buffers
        self._y = y

    def hold(self, sums: list[Expr], first: Expr, lanes: int) -> Expr:
        values = [
            bind(value + splat(bias, lanes))
            for value, bias in zip(sums, self._four(self._c, first), strict=True)
        ]
        scalar = self._epilogue.scalar
        if scalar is not None:
            factors = [tirx.const(scalar, "int32")] * 4
        else:
            factors = self._four(self._operands[-1], first)
        multipliers = [bind(splat(factor, lanes)) for factor in factors]
        return woven(self._epilogue.narrowed(values, multipliers), lanes)

    def _four(self, buffer: Any, first: Expr) -> list[Expr]:
        return load_scalars(buffer, bind(first), 4, self._target)

    def release(self, place: Place, held: Expr, valid: int, lanes: int) -> None:
        batch, row, column = place
        problem = self._problem
        octets = bind(T.reinterpret(f"{self._epilogue.narrow_dtype}x{4 * lanes}", held))
        start = bind((batch * problem.m + row) * problem.n + column)
        self._epilogue.store_bytes(
            (self._y, self._operands),
            start,
            lambda first: (batch, row, column + first),
            octets,
            valid,
        )


class QuadMultipliers(BlockedEpilogue):
    """The epilogue of ``ByteResults``: multipliers of whole quads of filters."""

    def __init__(self, region: Region, problem: Problem, target: Target) -> None:
        self._filters = problem.n
        super().__init__(region, problem.view, target, lambda strides: not any(strides[:2]))

    def pack(self, multipliers: np.ndarray) -> np.ndarray:
        return _whole_quads(multipliers, self._filters)


def _whole_quads(values: np.ndarray, filters: int) -> np.ndarray:
    """One int32 per filter, or the same for all, and zeros up to whole quads."""
    each = np.broadcast_to(values.reshape(-1), (filters,))
    return np.pad(each, (0, -filters % 4)).astype(np.int32)


def _constant(problem: Problem) -> np.ndarray:
    assert problem.c is not None
    assert problem.c.const is not None
    return problem.c.const
