"""Products of one input row with one kernel row, four channels (a quad) at a time.

Inputs are rows of quads, 32-bit elements. Sums come four vectors at a time: lanes ``4b .. 4b+3``
of sum ``q`` are the four channels of output position ``4b + q`` of a group of ``4 * blocks``
positions, a block being 128 bits. Then one shuffle within blocks makes dot products:
the 16 bytes at the first tap of a position are four taps of four channels, and the
transposed 4x4 bytes are four channels of four taps, multiplied with the weights by one
``vpdpbusd`` or ``sdot``. ``narrow`` of ``effc.kernels.fixed_point`` puts positions back in order.

Weights are packed the same for every processor: ``[quads][ky][kx / 4][4 channels][4 taps]``,
zeros behind the last tap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import vectormath as vm
from effc.kernels.builder import T, bind, splat, vload
from effc.kernels.dot_product import dot4, has_dot4, multiply_pairs
from effc.kernels.lanes import concat, pick, repeated
from effc.kernels.shuffles import zip_quads
from effc.kernels.window import Axis

__all__ = ["DotTaps", "Taps", "WideTaps", "block_counts", "pack_taps", "taps_for"]

Expr = Any  # tvm.tirx expressions have no useful static types
_TRANSPOSE = [(i % 4) * 4 + i // 4 for i in range(16)]


def pack_taps(weight: np.ndarray) -> np.ndarray:
    """Weights [C, 1, kw] or [C, 1, kh, kw], int8, in the order above, flat."""
    channels, kw = len(weight), weight.shape[-1]
    kh = weight[0].size // kw
    quads, groups = -(-channels // 4), -(-kw // 4)
    padded = np.zeros((quads * 4, kh, groups * 4), np.int8)
    padded[:channels, :, :kw] = weight.reshape(channels, kh, kw)
    split = padded.reshape(quads, 4, kh, groups, 4)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1, 4)).reshape(-1)


@dataclass
class Row:
    """An input row from one element on, in blocks of four elements that are loaded once.

    Attributes:
        source: Flat buffer of 32-bit elements.
        first: Offset of element 0.
        dtype: Type of their bytes.
    """

    source: Any
    first: Expr
    dtype: str
    _blocks: dict[int, Expr] = field(default_factory=dict)
    _words: dict[int, list[Expr]] = field(default_factory=dict)

    def block(self, index: int) -> Expr:
        """The 16 bytes of elements ``4 * index`` and on."""
        if index not in self._blocks:
            quads = bind(vload(self.source, self.first + 4 * index, 4))
            self._blocks[index] = bind(T.reinterpret(f"{self.dtype}x16", quads))
        return self._blocks[index]

    def taps(self, start: int) -> Expr:
        """``[channel][4 taps]`` of four elements; one table look-up (``tbl``) on Arm."""
        block, offset = divmod(start, 4)
        if not offset:
            return bind(pick(self.block(block), _TRANSPOSE, 16))
        pair = [self.block(block), self.block(block + 1)]
        return bind(concat(pair, [4 * offset + i for i in _TRANSPOSE]))

    def pixel(self, index: int) -> tuple[Expr, int]:
        """A vector of eight int16, and which half of it is element ``index``."""
        block, position = divmod(index, 4)
        if block not in self._words:
            octets = self.block(block)
            self._words[block] = [
                bind(vm.cast(pick(octets, range(i, i + 8), 16), "int16")) for i in (0, 8)
            ]
        return self._words[block][position // 2], position % 2


@dataclass(frozen=True)
class Taps(ABC):
    """How one kernel row is multiplied.

    Attributes:
        x: Columns of the convolution.
        rows: Kernel rows.
        dtype: Element type of the activations.
        target: Whose instructions to use.
    """

    x: Axis
    rows: int
    dtype: str
    target: Target

    @property
    def groups(self) -> int:
        """Groups of four taps in one kernel row."""
        return -(-self.x.kernel // 4)

    @property
    def packed(self) -> int:
        """Bytes of weights of one quad."""
        return self.rows * self.groups * 16

    @abstractmethod
    def weights(self, buffer: Any, at: Expr, blocks: int) -> list[Any]:
        """Registers of weights, one entry per kernel row; ``at``: first byte of the quad."""

    @abstractmethod
    def read(self, source: Any, at: Expr, blocks: int) -> list[Any]:
        """What the four sums need of an input row whose first tap is element ``at``."""

    @abstractmethod
    def add(self, acc: Expr, data: Any, weights: Any) -> Expr:
        """``acc`` plus the products of one entry of ``read`` and one of ``weights``."""

    def _load(self, buffer: Any, at: Expr) -> list[list[Expr]]:
        """The 16 bytes of weights of every group, by kernel row."""
        return [
            [
                bind(vload(buffer, at + (row * self.groups + group) * 16, 16))
                for group in range(self.groups)
            ]
            for row in range(self.rows)
        ]

    def _windows(self, row: Row, blocks: int, group: int) -> list[Expr]:
        """Bytes ``[position][channel][4 taps]`` for each of the four sums."""
        lanes, stride, step = 4 * blocks, self.x.stride, self.x.dilation
        source, at = row.source, row.first
        if step == 1 and blocks == 1:
            return [row.taps(4 * group + q * stride) for q in range(4)]
        if step == 1:
            first = at + 4 * group
            chunks = [
                self._bytes(_strided_blocks(source, first + q * stride, blocks, stride))
                for q in range(4)
            ]
            order = [16 * block + i for block in range(blocks) for i in _TRANSPOSE]
            return [bind(pick(chunk, order, 4 * lanes)) for chunk in chunks]
        taps = [
            self._bytes(bind(vload(source, at + (4 * group + j) * step, lanes, stride)))
            for j in range(4)
        ]
        return zip_quads(taps)

    def _bytes(self, quads: Expr) -> Expr:
        return bind(T.reinterpret(f"{self.dtype}x{4 * vm.lanes_of(quads)}", quads))


class DotTaps(Taps):
    """Four taps per instruction: ``vpdpbusd`` and ``sdot``."""

    def weights(self, buffer: Any, at: Expr, blocks: int) -> list[Any]:
        return [[repeated(w, blocks) for w in row] for row in self._load(buffer, at)]

    def read(self, source: Any, at: Expr, blocks: int) -> list[Any]:
        row = Row(source, at, self.dtype)
        found = [self._windows(row, blocks, group) for group in range(self.groups)]
        return [[windows[q] for windows in found] for q in range(4)]

    def add(self, acc: Expr, data: Any, weights: Any) -> Expr:
        for x, w in zip(data, weights, strict=True):
            acc = bind(dot4(acc, x, w, self.target))
        return acc


class PairTaps(Taps):
    """Two taps per instruction, widened to 16 bits: ``pmaddwd`` of any x86."""

    def weights(self, buffer: Any, at: Expr, blocks: int) -> list[Any]:
        def words(block: Expr, first: int) -> Expr:
            taps = [4 * channel + first + i for channel in range(4) for i in (0, 1)]
            return repeated(bind(vm.cast(pick(block, taps, 16), "int16")), blocks)

        return [[(words(w, 0), words(w, 2)) for w in row] for row in self._load(buffer, at)]

    def read(self, source: Any, at: Expr, blocks: int) -> list[Any]:
        size = 16 * blocks
        zeros = splat(tirx.const(0, self.dtype), size)

        def words(window: Expr, first: int) -> Expr:
            order = [
                4 * lane + first + i if even else size
                for lane in range(size // 4)
                for i in (0, 1)
                for even in (True, False)
            ]
            return bind(T.reinterpret(f"int16x{size // 2}", concat([window, zeros], order)))

        row = Row(source, at, self.dtype)
        found = [self._windows(row, blocks, group) for group in range(self.groups)]
        return [[(words(w[q], 0), words(w[q], 2)) for w in found] for q in range(4)]

    def add(self, acc: Expr, data: Any, weights: Any) -> Expr:
        left = self.x.kernel
        for x, w in zip(data, weights, strict=True):
            acc = bind(acc + multiply_pairs(x[0], w[0]))
            if left > 2:
                acc = bind(acc + multiply_pairs(x[1], w[1]))
            left -= 4
        return acc


class WideTaps(Taps):
    """One tap of four channels per multiplication, widened to 16 bits; any processor.

    ``smlal`` on Arm, which takes either half of a register.
    """

    def weights(self, buffer: Any, at: Expr, blocks: int) -> list[Any]:
        def word(block: Expr, tap: int) -> Expr:
            four = pick(block, [4 * channel + tap for channel in range(4)], 16)
            return repeated(bind(vm.cast(four, "int16")), 2)

        return [
            [word(row[tap // 4], tap % 4) for tap in range(self.x.kernel)]
            for row in self._load(buffer, at)
        ]

    def read(self, source: Any, at: Expr, blocks: int) -> list[Any]:
        row, x = Row(source, at, self.dtype), self.x
        return [
            [row.pixel(q * x.stride + tap * x.dilation) for tap in range(x.kernel)]
            for q in range(4)
        ]

    def add(self, acc: Expr, data: Any, weights: Any) -> Expr:
        for (pair, half), w in zip(data, weights, strict=True):
            lanes = range(4 * half, 4 * half + 4)
            x, y = (vm.cast(pick(v, lanes, 8), "int32") for v in (pair, w))
            acc = bind(acc + x * y)
        return acc


def taps_for(x: Axis, rows: int, dtype: str, target: Target) -> Taps:
    """The fastest way of this target."""
    if has_dot4(target, dtype, 4):
        return DotTaps(x, rows, dtype, target)
    if target.arch == "x86_64" and dtype == "uint8":
        return PairTaps(x, rows, dtype, target)
    return WideTaps(x, rows, dtype, target)


def block_counts(taps: Taps) -> list[int]:
    """Vector widths that are worth using, in blocks of 128 bits, the widest first."""
    if isinstance(taps, WideTaps):
        return [1]
    widest = max(taps.target.vector_bits // 128, 1)
    if widest == 4 and not taps.target.has("avx512bw"):
        widest = 2
    return [count for count in (4, 2, 1) if count <= widest]


def _strided_blocks(source: Any, at: Expr, blocks: int, stride: int) -> Expr:
    """Blocks of four elements, ``4 * stride`` elements apart."""
    if blocks == 1 or stride == 1:
        return bind(vload(source, at, 4 * blocks))
    if stride == 2:
        halves = [bind(vload(source, at + i * 4 * blocks, 4 * blocks)) for i in (0, 1)]
        return bind(concat(halves, [8 * b + i for b in range(blocks) for i in range(4)]))
    apart = [bind(vload(source, at + b * 4 * stride, 4)) for b in range(blocks)]
    return bind(concat(apart, range(4 * blocks)))
