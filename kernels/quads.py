"""Between plain channels and quads: ``[N, C, *S]`` and ``[N, ceil(C/4), *S, 4]``.

A parallel unit is one quad of channels of one image: four planes on the plain side, one
contiguous run on the other. Four vectors are interleaved (or dealt) in registers.
"""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import (
    T,
    bind,
    loop,
    splat,
    stage_func,
    unravel,
    vload,
    vstore,
    whole_or_rest,
)
from effc.kernels.elementwise_emit import storage_dtype
from effc.kernels.epilogue import Epilogue
from effc.kernels.lanes import concat, interleave, pick
from effc.kernels.region import DOMAIN, Op, Region, Value
from effc.kernels.strips import each_vector
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["FromQuadsTemplate", "ToQuadsTemplate", "operand"]

Expr = Any


def operand(op: Op, index: int) -> Value:
    """A required operand."""
    value = op.inputs[index]
    assert value is not None
    return value


def _anchor(region: Region, op_type: str) -> Op | None:
    op = region.anchor
    return op if op is not None and (op.domain, op.op_type) == (DOMAIN, op_type) else None


class ToQuadsTemplate(Template):
    """Plain channels to quads."""

    name: ClassVar[str] = "to_quads"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = _anchor(region, "ToQuads")
        if op is None:
            return "the anchor is not ToQuads"
        return _to_quads_epilogue(region, op)[0].refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """Positions per step."""
        size = region.outputs[0].type.size
        return [({"lanes": n}, size / n) for n in (4 * target.lanes, target.lanes)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        x, y = operand(op, 0), op.outputs[0]
        last = bool(op.attrs.get("last"))
        channels = x.shape[-1] if last else x.shape[1]
        batch, quads, plane = x.shape[0], y.shape[1], x.type.size // (x.shape[0] * channels)
        epilogue, merged = _to_quads_epilogue(region, op)
        lanes = max(int(config["lanes"]) // 4, 1) if merged else 1
        dtype = storage_dtype(x.dtype)
        fill = tirx.const(int(op.attrs.get("fill", 0)), dtype)
        params = [("x", dtype, x.type.size), *epilogue.params]
        params.append(("y", epilogue.out_dtype, y.type.size))

        def rows(source: Any, start: Expr, width: int, present: int) -> Expr:
            if last and present == channels:
                return _side_by_side(source, start, width, present, fill)
            if last:
                parts = [
                    source[start + p * channels + c] if c < present else fill
                    for p in range(width)
                    for c in range(4)
                ]
                return bind(_vector(parts))
            planes = [bind(vload(source, start + p * plane, width)) for p in range(present)]
            planes += [splat(fill, width)] * (4 - present)
            return bind(interleave(planes, width) if width > 1 else _vector(planes))

        def body(source: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments
            with loop(begin, end) as unit:
                n, quad = unravel(unit, (batch, quads))
                base = bind((n * channels + quad * 4) * plane)
                if last:
                    base = bind(n * (channels * plane) + quad * 4)

                def emit(present: int) -> None:
                    def vector(at: Expr, width: int) -> None:
                        start = base + (at * channels if last else at)
                        value = rows(source, start, width, present)
                        place = [at * 4] if merged else [at, T.int32(0)]
                        value = epilogue.apply(
                            value,
                            [n, quad, *place],
                            operands,
                            axis=len(place) + 1,
                            lanes=4 * width,
                        )
                        vstore(out, (unit * plane + at) * 4, value, 4 * width)

                    whole = 0
                    if last and _in_words(region, target, channels):
                        whole = plane // 4
                        with loop(whole) as group:
                            _four_positions(source, base + group * 12, out, group * 16, fill)
                    each_vector(plane - 4 * whole, lanes, lambda at, n: vector(at + 4 * whole, n))

                _by_remainder(quad, channels, emit)

        args = (x.name, *epilogue.args, region.outputs[0].name)
        stage = Stage(stage_func(params, body), args, batch * quads)
        return Kernel((stage,), epilogue.weights, inplace=epilogue.inplace)


def _in_words(region: Region, target: Target, channels: int) -> bool:
    """Whether three bytes per position become quads by shifts of words.

    That is less than moving bytes where lanes of vectors are moved one by one; words must be
    readable at any address (not so on Armv6-M).
    """
    data = operand(region.ops[0], 0)
    plain = len(region.ops) == 1 and data.shape[0] == 1 and data.dtype in ("int8", "uint8")
    return plain and channels == 3 and target.arch == "thumb" and target.has("dsp")


def _four_positions(source: Any, at: Expr, out: Any, to: Expr, fill: Expr) -> None:
    """Twelve bytes as four quads: three words, cut anew."""

    def const(value: int) -> Expr:
        return tirx.const(value, "uint32")

    words = [bind(T.reinterpret("uint32", vload(source, at + 4 * i, 4))) for i in range(3)]
    last = const((int(fill) & 0xFF) << 24)
    low = [
        words[0],
        (words[0] >> const(24)) | (words[1] << const(8)),
        (words[1] >> const(16)) | (words[2] << const(16)),
        words[2] >> const(8),
    ]
    for i, word in enumerate(low):
        quad = (word & const(0xFFFFFF)) | last
        vstore(out, to + 4 * i, T.reinterpret(f"{out.dtype}x4", quad), 4)


def _side_by_side(source: Any, start: Expr, width: int, channels: int, fill: Expr) -> Expr:
    """Quads of ``width`` positions whose channels, four at most, are all there is."""
    lanes = width * channels
    whole = bind(vload(source, start, lanes))
    if channels == 4:
        return whole
    order = [p * channels + c if c < channels else lanes for p in range(width) for c in range(4)]
    filler = fill if lanes == 1 else bind(splat(fill, lanes))
    return bind(concat([whole, *[filler] * 3], order))


def _vector(scalars: list[Expr]) -> Expr:
    return tirx.Shuffle(scalars, [tirx.const(i, "int32") for i in range(len(scalars))])


def _to_quads_epilogue(region: Region, op: Op) -> tuple[Epilogue, bool]:
    """The epilogue, and whether its lanes may run over positions and channels alike."""
    y = op.outputs[0]
    batch, quads, *sizes, _ = y.shape
    wide = Epilogue(region, y, (batch, quads, prod(sizes) * 4))
    if wide.refusal is None:
        return wide, True
    return Epilogue(region, y, (batch, quads, prod(sizes), 4)), False


def _by_remainder(quad: Expr, channels: int, emit: Any) -> None:
    """Call ``emit(channels present)`` for the last quad and for the others."""
    rest = channels % 4
    whole_or_rest(quad, channels // 4, rest, lambda: emit(4), lambda: emit(rest))


class FromQuadsTemplate(Template):
    """Quads to plain channels."""

    name: ClassVar[str] = "from_quads"

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = _anchor(region, "FromQuads")
        if op is None:
            return "the anchor is not FromQuads"
        return _plain_epilogue(region, op).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """Positions per step."""
        size = region.outputs[0].type.size
        return [({"lanes": n}, size / n) for n in (target.lanes, max(target.lanes // 2, 1))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        x, y = operand(op, 0), op.outputs[0]
        batch, channels, plane = *y.shape[:2], prod(y.shape[2:])
        quads = x.shape[1]
        epilogue = _plain_epilogue(region, op)
        params = [("x", storage_dtype(x.dtype), x.type.size), *epilogue.params]
        params.append(("y", epilogue.out_dtype, y.type.size))

        def body(source: Any, *arguments: Any) -> None:
            *operands, out, begin, end = arguments
            with loop(begin, end) as unit:
                n, quad = unravel(unit, (batch, quads))
                base = bind((n * channels + quad * 4) * plane)

                def emit(present: int) -> None:
                    def vector(at: Expr, width: int) -> None:
                        whole = bind(vload(source, (unit * plane + at) * 4, 4 * width))
                        for p in range(present):
                            value = bind(pick(whole, range(p, 4 * width, 4), 4 * width))
                            value = epilogue.apply(
                                value, [n, quad * 4 + p, at], operands, axis=2, lanes=width
                            )
                            vstore(out, base + p * plane + at, value, width)

                    each_vector(plane, int(config["lanes"]), vector)

                _by_remainder(quad, channels, emit)

        args = (x.name, *epilogue.args, region.outputs[0].name)
        stage = Stage(stage_func(params, body), args, batch * quads)
        return Kernel((stage,), epilogue.weights, inplace=epilogue.inplace)


def _plain_epilogue(region: Region, op: Op) -> Epilogue:
    y = op.outputs[0]
    return Epilogue(region, y, (*y.shape[:2], prod(y.shape[2:])))
