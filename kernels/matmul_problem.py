"""MatMul and Gemm in one form: factors with strides, batch broadcasting, packing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from tvm import tirx

from effc.kernels.builder import bind
from effc.kernels.region import Op, Value

__all__ = ["Factor", "Problem", "problem_of"]

Expr = Any


@dataclass(frozen=True)
class Factor:
    """An operand seen as ``[batch..., rows, columns]`` with element strides.

    Attributes:
        name: Name of the tensor.
        elements: Elements of the tensor.
        batch: Batch extents, aligned with the result's; 1 where it is broadcast.
        row, column: Strides of the two matrix axes; 0 where it is broadcast.
        const: The values as ``[prod(batch), rows, columns]``, if known.
    """

    name: str
    elements: int
    batch: tuple[int, ...]
    row: int
    column: int
    const: np.ndarray | None = None

    def transposed(self) -> Factor:
        """The same matrices with rows and columns exchanged."""
        const = None if self.const is None else self.const.swapaxes(-1, -2)
        return replace(self, row=self.column, column=self.row, const=const)


@dataclass(frozen=True)
class Problem:
    """``y[b, m, n] = scale * sum_k a[b, m, k] b[b, k, n] + beta * c[m, n]``.

    Attributes:
        batches: Batch extents of the result.
        swapped: m and n are exchanged against the result (a matrix times a vector).
        scale, beta: Factors that are not folded into constants.
    """

    dtype: str
    batches: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Factor
    b: Factor
    c: Factor | None = None
    scale: float = 1.0
    beta: float = 1.0
    swapped: bool = False

    @property
    def sums(self) -> str:
        """Type of results before they are stored: float16 products are added up in float32."""
        return "float32" if self.dtype == "float16" else self.dtype

    @property
    def batch(self) -> int:
        return prod(self.batches)

    @property
    def view(self) -> tuple[int, int, int]:
        """The result's shape in three groups."""
        rows, columns = (self.n, self.m) if self.swapped else (self.m, self.n)
        return (self.batch, rows, columns)

    def coordinates(self, b: Expr, m: Expr, n: Expr) -> tuple[tuple[Expr, Expr, Expr], int]:
        """Coordinates in ``view`` and the group along which n runs."""
        return ((b, n, m), 1) if self.swapped else ((b, m, n), 2)

    def batch_offset(self, factor: Factor, index: Expr) -> Expr:
        """Offset of the matrix for flat batch ``index``: in matrices if constant, else elements."""
        size = 1 if factor.const is not None else self._matrix(factor)
        strides, step = [], size
        for extent in reversed(factor.batch):
            strides.append(0 if extent == 1 else step)
            step *= extent
        offset: Expr = tirx.const(0, "int32")
        for extent, stride in zip(reversed(self.batches), strides, strict=True):
            if extent == 1:
                continue
            if stride:
                offset = offset + tirx.truncmod(index, extent) * stride
            index = bind(tirx.truncdiv(index, extent))
        return offset

    def _matrix(self, factor: Factor) -> int:
        return factor.elements // prod(factor.batch)

    def pack_a(self, rows: int) -> np.ndarray:
        """Constant ``a`` as ``[batch][m / rows][k][rows]``, zero rows at the end."""
        assert self.a.const is not None
        tiles = -(-self.m // rows)
        padded = np.zeros((len(self.a.const), tiles * rows, self.k), self.a.const.dtype)
        padded[:, : self.m] = self.a.const
        tiled = padded.reshape(-1, tiles, rows, self.k).swapaxes(2, 3)
        return np.ascontiguousarray(tiled).reshape(-1)

    def pack_b(self, panel: int) -> np.ndarray:
        """Constant ``b`` as ``[batch][n / panel][k][panel]``, zero columns at the end."""
        assert self.b.const is not None
        panels = -(-self.n // panel)
        packed = np.zeros((len(self.b.const), panels, self.k, panel), self.b.const.dtype)
        for p in range(panels):
            part = self.b.const[:, :, p * panel : (p + 1) * panel]
            packed[:, p, :, : part.shape[2]] = part
        return packed.reshape(-1)

    def pack_c(self, slack: int) -> np.ndarray | None:
        """Constant ``c`` flat with ``slack`` zeros behind it, so that vectors may overrun."""
        if self.c is None or self.c.const is None:
            return None
        flat = self.c.const.reshape(-1)
        return np.concatenate([flat, np.zeros(slack, flat.dtype)])


def problem_of(op: Op, *, collapse: bool) -> Problem:
    """Describe a MatMul or Gemm.

    Args:
        op: A valid operator with static shapes.
        collapse: Join the batch axes of A with its rows if B has none.
    """
    left, right = op.inputs[0], op.inputs[1]
    assert left is not None
    assert right is not None
    dtype = op.outputs[0].dtype
    if op.op_type == "Gemm":
        found = _gemm(op, left, right)
    else:
        found = _matmul(dtype, left, right, collapse)
    if found.n == 1 and found.m > 1:
        found = _swap(found)
    return found


def _matmul(dtype: str, left: Value, right: Value, collapse: bool) -> Problem:
    a_shape = (1, *left.shape) if len(left.shape) == 1 else left.shape
    b_shape = (*right.shape, 1) if len(right.shape) == 1 else right.shape
    rank = max(len(a_shape), len(b_shape)) - 2
    a_batch = (1,) * (rank - len(a_shape) + 2) + a_shape[:-2]
    b_batch = (1,) * (rank - len(b_shape) + 2) + b_shape[:-2]
    batches = tuple(max(x, y) for x, y in zip(a_batch, b_batch, strict=True))
    m, k, n = a_shape[-2], a_shape[-1], b_shape[-1]
    if collapse and prod(b_batch) == 1:
        m, a_batch, b_batch, batches = m * prod(a_batch), (), (), ()
    a = _factor(left, a_batch, m, k)
    b = _factor(right, b_batch, k, n)
    return Problem(dtype, batches, m, n, k, a, b)


def _gemm(op: Op, left: Value, right: Value) -> Problem:
    alpha, beta = float(op.attrs.get("alpha", 1.0)), float(op.attrs.get("beta", 1.0))
    a = _factor(left, (), *left.shape)
    b = _factor(right, (), *right.shape)
    if op.attrs.get("transA", 0):
        a = a.transposed()
    if op.attrs.get("transB", 0):
        b = b.transposed()
    m, n = op.outputs[0].shape
    k = left.type.size // m
    if b.const is not None:
        b, alpha = replace(b, const=(b.const * alpha).astype(b.const.dtype)), 1.0
    elif a.const is not None:
        a, alpha = replace(a, const=(a.const * alpha).astype(a.const.dtype)), 1.0
    bias = op.inputs[2] if len(op.inputs) > 2 else None
    dtype = op.outputs[0].dtype  # of operands and result; constant operands may be narrower
    sums = "float32" if dtype == "float16" else dtype
    c = None
    if bias is not None and beta != 0:
        rows, columns = (1, 1, *bias.shape)[-2:]
        c = Factor(
            bias.name,
            bias.type.size,
            (),
            columns if rows > 1 else 0,
            1 if columns > 1 else 0,
            None if bias.const is None else (bias.const * beta).astype(sums).reshape(rows, columns),
        )
    return Problem(dtype, (), m, n, k, a, b, c, alpha, beta)


def _factor(value: Value, batch: tuple[int, ...], rows: int, columns: int) -> Factor:
    const = None if value.const is None else value.const.reshape(-1, rows, columns)
    return Factor(value.name, value.type.size, batch, columns, 1, const)


def _swap(p: Problem) -> Problem:
    """The transposed problem: the vector becomes the single row, the matrix B."""
    return replace(
        p,
        m=p.n,
        n=p.m,
        a=p.b.transposed(),
        b=p.a.transposed(),
        c=None if p.c is None else p.c.transposed(),
        swapped=not p.swapped,
    )
