"""Arithmetic of 8-bit convolutions: an element is a quad, four bytes of four channels.

``acc += w0*x0 + w1*x1 + w2*x2 + w3*x3`` is one instruction where the processor has dot products
(x86 VNNI: unsigned activations by signed weights; Arm: both signed). Without them x86 multiplies
the even and the odd bytes, widened to 16 bits, by ``pmaddwd``, whose pairs cannot overflow
(``pmaddubsw`` would saturate); Arm multiplies bytes to 16 bits and adds them up pairwise, the first
time in 16 bits if no weight is -128. The
result has the same bits everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.arithmetic import Arithmetic
from effc.kernels.builder import T, bind, splat
from effc.kernels.dot_product import DOT_FEATURES, dot4, has_dot4, multiply_pairs
from effc.kernels.lanes import pick, uses_lanes

__all__ = ["Quads", "quads_of_rows", "quads_of_weights"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class Quads(Arithmetic):
    """Quads of 8-bit activations and int8 weights.

    Attributes:
        zero_point: Activation that stands for zero.
        signed: Whether activations are ``int8``, otherwise ``uint8``.
        narrow: Whether no weight is -128.
    """

    dtype: ClassVar[str] = "int32"
    sums: ClassVar[str] = "int32"
    channels: ClassVar[int] = 4
    pinned: ClassVar[bool] = True
    features: ClassVar[frozenset[str]] = DOT_FEATURES
    zero_point: int
    signed: bool
    narrow: bool = False

    @property
    def fill(self) -> Expr:
        word = np.uint32(0x01010101 * (self.zero_point & 0xFF))
        return tirx.const(int(word.view(np.int32)), "int32")

    def narrowest(self, target: Target) -> int:
        return min(4, self.lanes(target))

    def multiply_add(
        self, acc: Expr, scalar: Expr, vector: Expr, lanes: int, target: Target, *, swapped: bool
    ) -> Expr:
        data, weights = (
            (splat(scalar, lanes), vector) if swapped else (vector, splat(scalar, lanes))
        )
        if has_dot4(target, "int8" if self.signed else "uint8", lanes):
            factors = _bytes(data, lanes), _bytes(weights, lanes)
            if swapped and uses_lanes(target):
                factors = factors[::-1]  # the second factor may be a lane of a register
            return dot4(acc, *factors, target)
        if target.arch == "x86_64" and lanes in (4, 8, 16):
            return acc + _by_pairs(data, weights, lanes, self.signed)
        if target.arch == "aarch64" and lanes == 4 and self.signed:
            return acc + (_by_pairs_of_bytes if self.narrow else _by_bytes)(data, weights)
        return acc + _plain(data, weights, self.signed)


def _bytes(x: Expr, lanes: int) -> Expr:
    return T.reinterpret(f"int8x{4 * lanes}", x)


def _by_pairs(data: Expr, weights: Expr, lanes: int, signed: bool) -> Expr:
    """x86: even and odd bytes as 16 bits; products of two neighbours are added to 32 bits."""

    def halves(x: Expr, signed: bool) -> tuple[Expr, Expr]:
        words = bind(T.reinterpret(f"int16x{2 * lanes}", x))
        eight = vm.const(8, words)
        if signed:
            low = tirx.shift_right(tirx.shift_left(words, eight), eight)
            return bind(low), bind(tirx.shift_right(words, eight))
        plain = T.reinterpret(f"uint16x{2 * lanes}", words)
        high = T.reinterpret(f"int16x{2 * lanes}", tirx.shift_right(plain, vm.const(8, plain)))
        return bind(tirx.bitwise_and(words, vm.const(255, words))), bind(high)

    sums = [
        multiply_pairs(x, w)
        for x, w in zip(halves(data, signed), halves(weights, True), strict=True)
    ]
    return sums[0] + sums[1]


def _by_bytes(data: Expr, weights: Expr) -> Expr:
    """Arm without dot products: two positions at a time."""
    pairs = [_neighbours(words) for words in _products(data, weights)]
    return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", *pairs)


def _by_pairs_of_bytes(data: Expr, weights: Expr) -> Expr:
    """The same where sums of two products fit 16 bits; the last step adds to sums (``sadalp``)."""
    products = _products(data, weights)
    name = "llvm.aarch64.neon.addp.v8i16"
    return _neighbours(bind(T.call_llvm_pure_intrin("int16x8", name, *products)))


def _products(data: Expr, weights: Expr) -> list[Expr]:
    """Products of 16 bytes: two vectors of 16 bits."""
    whole = [bind(_bytes(x, 4)) for x in (data, weights)]
    found = []
    for half in (range(8), range(8, 16)):
        x, w = (vm.cast(pick(value, half, 16), "int16") for value in whole)
        found.append(bind(x * w))
    return found


def _neighbours(words: Expr) -> Expr:
    """Sums of two neighbours of 16 bits."""
    name = "llvm.aarch64.neon.saddlp.v4i32.v8i16"
    return bind(T.call_llvm_pure_intrin("int32x4", name, words))


def _plain(data: Expr, weights: Expr, signed: bool) -> Expr:
    def byte(x: Expr, index: int, signed: bool) -> Expr:
        up = tirx.shift_left(x, vm.const(24 - 8 * index, x))
        if signed:
            return tirx.shift_right(up, vm.const(24, x))
        return tirx.bitwise_and(tirx.shift_right(x, vm.const(8 * index, x)), vm.const(255, x))

    pairs = [(byte(data, i, signed), byte(weights, i, True)) for i in range(4)]
    products = [bind(bind(a) * bind(b)) for a, b in pairs]
    return bind(products[0] + products[1]) + bind(products[2] + products[3])


def quads_of_weights(weight: np.ndarray, groups: int) -> np.ndarray:
    """int8 ``[groups*Cout, Cin, *kernel]`` as quads: int32 ``[groups*cout, cin, *kernel]``.

    Filters and channels that are missing to whole quads are 0.
    """
    filters, channels = weight.shape[0] // groups, weight.shape[1]
    grouped = weight.reshape(groups, filters, *weight.shape[1:])
    rest = [(0, 0)] * (weight.ndim - 2)
    whole = np.pad(grouped, [(0, 0), (0, -filters % 4), (0, -channels % 4), *rest])
    _, cout, cin, *kernel = whole.shape
    split = whole.reshape(groups * cout, cin // 4, 4, *kernel)
    return np.ascontiguousarray(np.moveaxis(split, 2, -1)).view(np.int32)[..., 0]


def quads_of_rows(matrix: np.ndarray) -> np.ndarray:
    """int8 ``[rows, K]``, ``K >= 4``, as quads: int32 ``[rows, ceil(K/4)]``.

    If 4 does not divide ``K``, the last quad begins earlier and is 0 where the one before it is.
    """
    rows, k = matrix.shape
    whole = k // 4 * 4
    quads = [matrix[:, :whole].reshape(rows, -1, 4)]
    if k % 4:
        last = matrix[:, k - 4 :].copy()
        last[:, : 4 - k % 4] = 0
        quads.append(last[:, None])
    return np.ascontiguousarray(np.concatenate(quads, axis=1)).view(np.int32)[..., 0]
