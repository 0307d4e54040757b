"""``SoftmaxInteger`` and ``LayerNormInteger``: 8-bit rows, a unit is a row.

What they compute is in docs/QUANTIZATION.md. A row is read from the first cache: maximum, then
exponentials by table into scratch with their sum, then their products with the row's factor; or
sums of the row and of its squares, then the results. One division per row (and one square
root, bit by bit), in 64 bits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels import intrinsics
from effc.kernels import vectormath as vm
from effc.kernels.builder import Param, T, bind, local, loop, splat, stage_func, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.fixed_point import bounded
from effc.kernels.quads import operand
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.strips import each_vector, reduce_strip
from effc.kernels.template import Config, Kernel, Stage, Template

__all__ = ["LayerNormInteger", "SoftmaxInteger"]

Expr = Any  # tvm.tirx expressions have no useful static types

_BITS = 31  # of roots and quotients
_WIDE = ("x86_64", "aarch64", "riscv64")  # architectures that divide 64 bits


class _Rows(Template):
    """An operator on rows of 8 bits with constant operands."""

    op_type: ClassVar[str]
    scratched: ClassVar[bool]
    cost: ClassVar[float]

    def refuse(self, region: Region, target: Target) -> str | None:
        """See ``Template.refuse``."""
        op = region.anchor
        if op is None or (op.domain, op.op_type) != (DOMAIN, self.op_type):
            return f"the anchor is not {self.op_type}"
        if any(v is None or v.const is None for v in op.inputs[1:]):
            return "an operand is computed at run time"
        if 0 in op.outputs[0].shape:
            return "the tensor is empty"
        return _epilogue(region, op).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """There is nothing to choose."""
        return [({}, self.cost * region.outputs[0].type.size)]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """See ``Template.build``."""
        op = region.ops[0]
        x, length = operand(op, 0), op.outputs[0].shape[-1]
        rows = x.type.size // length
        epilogue = _epilogue(region, op)
        weights = dict(epilogue.weights)
        params: list[Param] = [("x", x.dtype, x.type.size)]
        args = [x.name]
        for number in range(1, len(op.inputs)):
            value = operand(op, number)
            weights[f"c{number}"] = np.ascontiguousarray(value.const)
            params.append((f"c{number}", value.dtype, value.type.size))
            args.append(f"w:c{number}")
        own = len(params)
        params += [*epilogue.params, ("y", epilogue.out_dtype, x.type.size)]
        args += [*epilogue.args, region.outputs[0].name]
        if self.scratched:
            params.append(("scratch", "int32", length))
            args.append("scratch")

        def body(*arguments: Any) -> None:
            *buffers, begin, end = arguments
            scratch = buffers.pop() if self.scratched else None
            y, operands = buffers[-1], buffers[own:-1]
            with loop(begin, end) as row:
                start = bind(row * length)

                def store(at: Expr, value: Expr, width: int) -> None:
                    kept = bind(bounded(value, op.attrs, op.outputs[0].dtype))
                    result = epilogue.apply(kept, [row, at], operands, axis=1, lanes=width)
                    vstore(y, start + at, result, width)

                self.emit(op, target, start, buffers[:own], scratch, store)

        scratch = 4 * length if self.scratched else 0
        stage = Stage(stage_func(params, body), tuple(args), rows, scratch)
        return Kernel((stage,), weights, inplace=epilogue.inplace)

    @abstractmethod
    def emit(
        self,
        op: Op,
        target: Target,
        start: Expr,
        buffers: list[Any],
        scratch: Any,
        store: Callable[[Expr, Expr, int], None],
    ) -> None:
        """One row, which starts at ``start``; ``store(i, vector, width)`` finishes results."""


class SoftmaxInteger(_Rows):
    """Softmax along the last axis."""

    name: ClassVar[str] = "softmax_integer"
    op_type: ClassVar[str] = "SoftmaxInteger"
    scratched: ClassVar[bool] = True
    cost: ClassVar[float] = 4.0

    def emit(
        self,
        op: Op,
        target: Target,
        start: Expr,
        buffers: list[Any],
        scratch: Any,
        store: Callable[[Expr, Expr, int], None],
    ) -> None:
        x, table = buffers
        length, lanes = op.outputs[0].shape[-1], max(target.vector_bits // 32, 1)
        dtype = operand(op, 0).dtype
        largest = reduce_strip(
            length,
            max(target.vector_bits // 8, 1),
            lambda at, width: vload(x, start + at, width),
            tirx.Max,
            tirx.const(int(np.iinfo(dtype).min), dtype),
            dtype,
        )
        top = bind(vm.cast(largest, "int32"))
        total = local(1, "int32")
        vstore(total, 0, T.int32(0), 1)
        with loop(length) as i:
            term = bind(table[top - vm.cast(x[start + i], "int32")])
            vstore(scratch, i, term, 1)
            vstore(total, 0, total[0] + term, 1)
        dividend = int(op.attrs["multiplier"]) << int(op.attrs["shift"])
        divisor = bind(vm.cast(total[0], "int64"))
        factor = bind(vm.cast(_quotient(tirx.const(dividend, "int64"), divisor, target), "int32"))

        def finish(at: Expr, width: int) -> None:
            value = bind(vload(scratch, at, width))
            multiplier = bind(splat(factor, width))
            store(at, intrinsics.rescale(value, multiplier, int(op.attrs["right"])), width)

        each_vector(length, lanes, finish)


class LayerNormInteger(_Rows):
    """Layer normalization along the last axis."""

    name: ClassVar[str] = "layer_norm_integer"
    op_type: ClassVar[str] = "LayerNormInteger"
    scratched: ClassVar[bool] = False
    cost: ClassVar[float] = 4.0

    def emit(
        self,
        op: Op,
        target: Target,
        start: Expr,
        buffers: list[Any],
        scratch: Any,
        store: Callable[[Expr, Expr, int], None],
    ) -> None:
        x, gamma, beta = buffers
        length, lanes = op.outputs[0].shape[-1], max(target.vector_bits // 32, 1)

        def wide(at: Expr, width: int) -> Expr:
            return bind(vm.cast(vload(x, start + at, width), "int32"))

        def square(at: Expr, width: int) -> Expr:
            value = wide(at, width)
            return value * value

        total, squares = (bind(_sum(length, lanes, load)) for load in (wide, square))
        count = tirx.const(length, "int64")
        sum64, squares64 = (bind(vm.cast(v, "int64")) for v in (total, squares))
        epsilon = tirx.const(int(op.attrs["epsilon"]), "int64")
        spread = bind(count * squares64 - sum64 * sum64 + epsilon)
        inverse, shift = _inverse_root(spread, target)
        right = int(op.attrs["right"])

        def finish(at: Expr, width: int) -> None:
            value = wide(at, width)
            centred = value * vm.const(length, value) - splat(total, width)
            scaled = vm.cast(bind(centred), "int64") * splat(inverse, width)
            z = bind(tirx.shift_right(bind(scaled), splat(shift, width)))
            product = bind(z * vm.cast(vload(gamma, at, width), "int64"))
            high = bind(vm.cast(tirx.shift_right(product, vm.const(32, product)), "int32"))
            p = bind(high + vload(beta, at, width) + vm.const(1 << (right - 1), high))
            store(at, tirx.shift_right(p, vm.const(right, p)), width)

        each_vector(length, lanes, finish)


def _epilogue(region: Region, op: Op) -> Epilogue:
    result = op.outputs[0]
    length = result.shape[-1] if result.shape else 1
    return Epilogue(region, result, (result.type.size // max(length, 1), length))


def _sum(length: int, lanes: int, load: Callable[[Expr, int], Expr]) -> Expr:
    zero = tirx.const(0, "int32")
    return reduce_strip(length, lanes, load, lambda a, b: a + b, zero, "int32")


def _largest(fits: Callable[[Expr], Expr]) -> Expr:
    """The largest int64 of 31 bits that fits, bit by bit."""
    found = local(1, "int64")
    vstore(found, 0, tirx.const(0, "int64"), 1)
    with loop(_BITS + 1) as i:
        bit = tirx.shift_left(tirx.const(1, "int64"), vm.cast(_BITS - i, "int64"))
        tried = bind(tirx.bitwise_or(found[0], bit))
        vstore(found, 0, vm.select(fits(tried), tried, found[0]), 1)
    return bind(found[0])


def _quotient(dividend: Expr, divisor: Expr, target: Target) -> Expr:
    """``dividend / divisor``, both positive; the result has at most 32 bits."""
    if target.arch in _WIDE:
        return bind(tirx.truncdiv(dividend, divisor))
    return _largest(lambda q: q * divisor <= dividend)


def _inverse_root(spread: Expr, target: Target) -> tuple[Expr, Expr]:
    """``inverse * 2^-shift`` is ``2^20 / sqrt(spread)``: both int64."""
    one = tirx.const(1, "int64")
    zeros = T.call_llvm_pure_intrin("int64", "llvm.ctlz.i64", spread, tirx.const(0, "bool"))
    k = bind(tirx.shift_right(zeros - tirx.const(2, "int64"), one))
    normal = bind(tirx.shift_left(spread, bind(k * tirx.const(2, "int64"))))
    root = _largest(lambda q: q * q <= normal)
    inverse = _quotient(tirx.const(1 << 61, "int64"), root, target)
    return inverse, bind(tirx.const(41, "int64") - k)
