"""Where the quantized tensors of a model are: as what type, in which layout.

A model's own 8-bit tensor is known here by its old value. ``plain`` and ``quads`` give it as
the target's activation type, converting (once) where it is not there yet. 16-bit tensors keep their
type; ``parts`` gives their bytes.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, const, dtype_of, shape_of
from effc.passes.integer.grid import BYTES, WORDS, grid_of, is_quantized
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.reference import to_quads
from effc.passes.origin import stand_for

__all__ = ["Tensors"]


class Tensors:
    """The 8-bit and 16-bit tensors of a graph.

    Args:
        dtype: Type of activations inside the compiled model.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.type = ir.DataType.from_numpy(self.dtype)
        self._plain: dict[ir.Value, ir.Value] = {}
        self._quads: dict[ir.Value, ir.Value] = {}
        self._parts: dict[tuple[ir.Value, bool], list[ir.Value]] = {}
        self._computed: dict[ir.Value, None] = {}

    def define(
        self, old: ir.Value, *, plain: ir.Value | None = None, quads: ir.Value | None = None
    ) -> None:
        """Say what has replaced a tensor."""
        self._computed[old] = None
        for table, new in ((self._plain, plain), (self._quads, quads)):
            if new is not None:
                table[old] = new
                stand_for(new, old)

    def __contains__(self, old: ir.Value) -> bool:
        """Whether a tensor has been replaced."""
        return old in self._computed

    def forms(self, old: ir.Value) -> list[ir.Value]:
        """What there is of a tensor that has been replaced."""
        return [t[old] for t in (self._plain, self._quads) if old in t]

    def in_quads(self, old: ir.Value) -> bool:
        """Whether a tensor lies in quads already."""
        return old in self._quads

    def plain(self, old: ir.Value, writer: Writer) -> ir.Value:
        """A tensor as ``[N, C, ...]``."""
        if old not in self._plain:
            if old in self._quads:
                self._plain[old] = self._from_quads(self._quads[old], shape_of(old), writer)
            else:
                self._plain[old] = self._typed(old, writer)
            stand_for(self._plain[old], old)
        return self._plain[old]

    def quads(self, old: ir.Value, writer: Writer) -> ir.Value:
        """A tensor in quads; it must have three axes or more."""
        if old not in self._quads:
            self._quads[old] = self._to_quads(old, writer)
            stand_for(self._quads[old], old)
        return self._quads[old]

    def parts(self, old: ir.Value, writer: Writer, *, quads: bool) -> list[ir.Value]:
        """The bytes of a tensor as the type of activations, the low one first."""
        whole = self.quads(old, writer) if quads else self.plain(old, writer)
        if dtype_of(old) not in WORDS:
            return [whole]
        if (old, quads) not in self._parts:
            self._parts[old, quads] = [
                writer.op("TakeByte", whole, index=i, to=int(self.type), domain=DOMAIN)
                for i in (0, 1)
            ]
        return self._parts[old, quads]

    def original(self, old: ir.Value, writer: Writer) -> ir.Value:
        """A tensor as the model has it."""
        plain = self.plain(old, writer)
        if dtype_of(plain) == dtype_of(old):
            return plain
        return writer.op("FlipSign", plain, domain=DOMAIN)

    def _typed(self, old: ir.Value, writer: Writer) -> ir.Value:
        """A tensor that the integer part does not compute."""
        if dtype_of(old) == self.type or dtype_of(old) in WORDS:
            return old
        known = const(old)
        if known is not None:
            return writer.const(_flipped(known))
        node = old.producer()
        if node is not None and is_quantized(node, "QuantizeLinear"):
            return self._quantized(node, node.inputs[0], writer) or _flip(old, writer)
        return _flip(old, writer)

    def _quantized(self, node: ir.Node, x: ir.Value | None, writer: Writer) -> ir.Value | None:
        """What ``node`` quantizes, from ``x``, to our type."""
        grid = grid_of(node)
        if grid is None or x is None:
            return None
        zero = np.array(grid.moved(self.dtype).zero, self.dtype)
        return writer.op("QuantizeLinear", x, np.array(grid.scale, np.float32), zero)

    def _to_quads(self, old: ir.Value, writer: Writer) -> ir.Value:
        known = const(old)
        if known is not None:
            typed = _flipped(known) if dtype_of(old) in BYTES - {self.type} else known
            return writer.const(to_quads(typed))
        node = old.producer()
        if old not in self._plain and node is not None and is_quantized(node, "QuantizeLinear"):
            floats = node.inputs[0]
            if grid_of(node) is not None and floats is not None:
                made = self._quantized(node, writer.op("ToQuads", floats, domain=DOMAIN), writer)
                assert made is not None
                return made
        batch, channels, *sizes = shape_of(old)
        if prod(sizes) == 1 and channels % 4 == 0:
            shape = np.array([batch, channels // 4, *sizes, 4], np.int64)
            return writer.op("Reshape", self.plain(old, writer), shape)
        if old in self._plain or dtype_of(old) in WORDS | {self.type}:
            return _packed(self.plain(old, writer), writer)
        return _flip(_packed(old, writer), writer)

    def _from_quads(self, x: ir.Value, shape: tuple[int, ...], writer: Writer) -> ir.Value:
        if prod(shape[2:]) > 1:
            return writer.op("FromQuads", x, channels=shape[1], domain=DOMAIN)
        whole = np.array([shape[0], shape_of(x)[1] * 4, *shape[2:]], np.int64)
        flat = writer.op("Reshape", x, whole)
        if shape[1] % 4 == 0:
            return flat
        ends = [np.array([v], np.int64) for v in (0, shape[1], 1)]
        return writer.op("Slice", flat, *ends)


def _packed(x: ir.Value, writer: Writer) -> ir.Value:
    """``ToQuads``; of a model input with channels last without the Transpose behind it."""
    node, rank = x.producer(), len(shape_of(x))
    if node is not None and (node.domain, node.op_type) == ("", "Transpose"):
        source = node.inputs[0]
        first = node.attributes.get_ints("perm", ()) == (0, rank - 1, *range(1, rank - 1))
        if first and source is not None and source.producer() is None:
            return writer.op("ToQuads", source, last=1, domain=DOMAIN)
    return writer.op("ToQuads", x, domain=DOMAIN)


def _flip(value: ir.Value, writer: Writer) -> ir.Value:
    assert dtype_of(value) in BYTES
    return writer.op("FlipSign", value, domain=DOMAIN)


def _flipped(known: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    other = np.uint8 if known.dtype == np.int8 else np.int8
    bit = np.array(-128 if known.dtype == np.int8 else 128, known.dtype)
    return np.asarray((known ^ bit).view(other))
