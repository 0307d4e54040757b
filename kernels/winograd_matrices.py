"""Winograd's minimal filtering ``F(m, 3)`` as matrices and as vector code.

``Y = A' [(G g G') * (B' d B)] A`` computes an ``m x m`` block of outputs from an
``(m+2) x (m+2)`` block of inputs with ``(m+2)^2`` products (Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks", 2015). The matrices are
built from interpolation points by Toom-Cook in exact fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np

from effc.kernels.builder import T, bind, splat

__all__ = ["POINTS", "matrices", "transform", "transform_weights"]

Expr = Any
Matrix = tuple[tuple[Fraction, ...], ...]

# Finite interpolation points by output size m; one more lies at infinity. Pairs of opposite
# points let rows share sums. 3/4 and 3/2 are exact in f32 and lose 6 dB less than the usual
# 1 and 2 (measured on rectified normal data, 64 channels: 123.6 dB against 117.5; F(2, 3) 132.6).
POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
}


@cache
def matrices(m: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A transposed, G, B transposed) of ``F(m, 3)``."""
    points = POINTS[m]
    size = m + 2
    a = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    g: list[list[Fraction]] = []
    b: list[list[Fraction]] = []
    for i, p in enumerate(points):
        others = [q for j, q in enumerate(points) if j != i]
        scale = Fraction(1)
        poly = [Fraction(1)]
        for q in others:
            scale *= p - q
            poly = _times(poly, -q)
        # Keep B integral where it can be: the scale goes to the weights.
        g.append([p**k / scale for k in range(3)])
        b.append(poly + [Fraction(0)] * (size - len(poly)))
    g.append([Fraction(0), Fraction(0), Fraction(1)])
    last = [Fraction(1)]
    for q in points:
        last = _times(last, -q)
    b.append(last)
    return _frozen(a), _frozen(g), _frozen(b)


def _times(poly: list[Fraction], root: Fraction) -> list[Fraction]:
    """``poly * (x + root)``, coefficients from the constant up."""
    shifted = [Fraction(0), *poly]
    return [s + root * (poly[i] if i < len(poly) else 0) for i, s in enumerate(shifted)]


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


def transform_weights(weight: np.ndarray, m: int) -> np.ndarray:
    """``[cout, cin, 3, 3]`` to float32 ``[(m+2)^2, cout, cin]``, computed in float64."""
    g = np.array([[float(v) for v in row] for row in matrices(m)[1]])
    made: np.ndarray = np.einsum("ij,ocjk,lk->iloc", g, weight.astype(np.float64), g)
    flat = made.reshape(-1, *weight.shape[:2])
    return np.ascontiguousarray(flat, dtype=np.float32)


def transform(rows: Matrix, values: Sequence[Expr], lanes: int) -> list[Expr]:
    """``rows @ values`` for vectors of ``lanes``; opposite rows share their even and odd parts."""
    done: dict[int, Expr] = {}
    for i in range(len(rows)):
        if i in done:
            continue
        j = _opposite(rows, i)
        if j is None:
            done[i] = _combine(rows[i], values, lanes)
            continue
        even = [x if x == y else Fraction(0) for x, y in zip(rows[i], rows[j], strict=True)]
        odd = [x if x == -y else Fraction(0) for x, y in zip(rows[i], rows[j], strict=True)]
        e, o = _combine(even, values, lanes), _combine(odd, values, lanes)
        done[i], done[j] = bind(e + o), bind(e - o)
    return [done[i] for i in range(len(rows))]


def _opposite(rows: Matrix, i: int) -> int | None:
    """A later row with the same coefficients up to sign, both signs occurring."""
    for j in range(i + 1, len(rows)):
        pairs = [(x, y) for x, y in zip(rows[i], rows[j], strict=True) if x or y]
        same = sum(x == y for x, y in pairs)
        if all(abs(x) == abs(y) for x, y in pairs) and 0 < same < len(pairs):
            return j
    return None


def _combine(row: Sequence[Fraction], values: Sequence[Expr], lanes: int) -> Expr:
    """A linear combination; terms of weight one first, the others become fused multiply-adds."""
    terms = sorted(
        ((c, v) for c, v in zip(row, values, strict=True) if c), key=lambda term: abs(term[0]) != 1
    )
    total: Expr = None
    for c, value in terms:
        if total is None:
            total = value if c == 1 else value * splat(T.float32(float(c)), lanes)
        elif c == 1:
            total = total + value
        elif c == -1:
            total = total - value
        else:
            total = total + value * splat(T.float32(float(c)), lanes)
    return bind(total)
