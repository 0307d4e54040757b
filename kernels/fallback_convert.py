"""Schedulable TIR (blocks, buffer parameters) to stage functions on raw pointers.

TVM's tensor expressions and Relax legalizations give PrimFuncs whose body is a
list of loop nests over buffers, with allocations in the root block. Each nest
becomes a stage function of its own: a barrier between nests makes every nest
parallel over its first real data-parallel loop, and every allocation of the
root block becomes a workspace in the arena instead of a call of TVM's allocator.
Buffers allocated inside a nest stay on the stack and must be small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.buffer import BufferType

from effc.devices.target import Target
from effc.errors import InternalError, UnsupportedError
from effc.kernels.region import Region, TensorType
from effc.kernels.template import Kernel, Stage

__all__ = ["Call", "Lowered", "Packed", "Piece", "bind", "lower_calls", "nests"]

_STACK_BYTES = 2048
_DATA_PARALLEL = 0  # IterVar.DataPar


@dataclass(frozen=True)
class Call:
    """A PrimFunc over buffers with the name of the tensor behind each parameter.

    Names: ``i<n>`` operand n of the operator, ``o<n>`` its result n, ``c<n>`` a
    constant, ``t<n>`` an intermediate tensor, ``a<n>`` one inside a PrimFunc.
    """

    func: Any
    args: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """A stage function with the names of its tensors and its parallel units."""

    func: tirx.PrimFunc
    args: tuple[str, ...]
    extent: int = 1


@dataclass(frozen=True)
class Packed:
    """A constant operand in another layout: operand index and the packing function."""

    operand: int
    pack: Callable[[np.ndarray], np.ndarray]


@dataclass
class Lowered:
    """What one operator lowers to, independent of the names in the graph."""

    pieces: list[Piece] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    temporaries: dict[str, int] = field(default_factory=dict)  # bytes
    packed: dict[str, Packed] = field(default_factory=dict)


def lower_calls(
    calls: list[Call], temporaries: Mapping[str, TensorType], target: Target
) -> Lowered:
    """Split calls into stage functions; allocations of the functions become temporaries.

    Raises:
        UnsupportedError: See ``nests``.
    """
    result = Lowered(temporaries={name: type_.nbytes for name, type_ in temporaries.items()})
    for call in calls:
        names = dict(zip(call.func.params, call.args, strict=True))
        for nest in nests(call.func, target):
            for buffer in nest.buffers:
                if buffer not in names:
                    names[buffer] = f"a{len(result.temporaries)}"
                    result.temporaries[names[buffer]] = _nbytes(buffer)
            args = tuple(names[buffer] for buffer in nest.buffers)
            result.pieces.append(Piece(nest.func, args, nest.extent))
    return result


def bind(lowered: Lowered, region: Region) -> Kernel:
    """The kernel of a single-operator region: canonical names to those of the graph."""
    op = region.ops[0]
    refs = {name: f"w:{name}" for name in lowered.constants}
    weights = dict(lowered.constants)
    for index, value in enumerate(op.inputs):
        if value is not None and value.const is not None:
            refs[f"i{index}"] = f"w:i{index}"
            weights[f"i{index}"] = np.ascontiguousarray(value.const)
        elif value is not None:
            refs[f"i{index}"] = value.name
    for name, packed in lowered.packed.items():
        value = op.inputs[packed.operand]
        if value is None or value.const is None:
            raise InternalError("a packed operand is not constant", where=region.name)
        refs[name] = f"w:{name}"
        weights[name] = np.ascontiguousarray(packed.pack(value.const))
    refs.update((f"o{index}", value.name) for index, value in enumerate(op.outputs))
    refs.update((name, f"t:{name}") for name in lowered.temporaries)
    stages = tuple(
        Stage(piece.func, tuple(refs[arg] for arg in piece.args), piece.extent)
        for piece in lowered.pieces
    )
    used = {arg for stage in stages for arg in stage.args}
    return Kernel(
        stages,
        {name: array for name, array in weights.items() if f"w:{name}" in used},
        {name: size for name, size in lowered.temporaries.items() if f"t:{name}" in used},
    )


@dataclass(frozen=True)
class Nest:
    """One loop nest as a stage function.

    Attributes:
        func: ``void f(pointer per buffer..., int32 begin, int32 end)``.
        buffers: The buffers of the original PrimFunc behind the pointers, in order.
        extent: Parallel units, 1 if the nest cannot be split.
    """

    func: tirx.PrimFunc
    buffers: tuple[Any, ...]
    extent: int


def nests(func: tirx.PrimFunc, target: Target) -> list[Nest]:
    """Split a schedulable PrimFunc into stage functions, in execution order.

    Raises:
        UnsupportedError: The function calls TVM's runtime, has symbolic shapes
            or needs a large temporary inside a loop.
    """
    if not isinstance(func.body, s_tir.SBlockRealize):
        raise UnsupportedError("TVM's function has no root block")
    root = func.body.block
    body = root.body
    parts = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    tvm_target = tvm.target.Target(target.tvm())
    return [_nest(part, tvm_target) for part in parts]


def shape_of(buffer: Any) -> tuple[int, ...]:
    """Static shape of a TIR buffer.

    Raises:
        UnsupportedError: A dimension is symbolic.
    """
    if not all(isinstance(dim, tirx.IntImm) for dim in buffer.ty.shape):
        raise UnsupportedError("a shape depends on the data", where=buffer.name)
    return tuple(int(dim) for dim in buffer.ty.shape)


def dtype_of(buffer: Any) -> str:
    """Element type of a TIR buffer as NumPy calls it."""
    return str(buffer.ty.dtype)


def _nbytes(buffer: Any) -> int:
    return TensorType(shape_of(buffer), dtype_of(buffer)).nbytes


def _nest(part: Any, target: Any) -> Nest:
    buffers = _buffers(part)
    loop = _parallel_loop(part)
    lowered = _lower(part, buffers, target)
    _check_calls(lowered.body)
    _check_stack(lowered.body)
    return _pointer_function(lowered, buffers, loop)


def _buffers(part: Any) -> list[Any]:
    """Buffers that a nest uses and does not allocate itself."""
    used: list[Any] = []
    own: list[Any] = []

    def visit(var: Any) -> None:
        if isinstance(var.ty, BufferType) and not any(var.same_as(seen) for seen in used):
            used.append(var)

    def visit_block(block: Any) -> None:
        own.extend(block.alloc_buffers)
        own.extend(match.buffer for match in block.match_buffers)

    tvm_ffi.structural_walk(part, [(tirx.Var, visit), (s_tir.SBlock, visit_block)])
    return [buffer for buffer in used if not any(buffer.same_as(mine) for mine in own)]


def _parallel_loop(part: Any) -> Any:
    """Variable of the first loop with more than one step, if its steps are independent."""
    while isinstance(part, tirx.For) and _extent(part) == 1:
        part = part.body
    if not isinstance(part, tirx.For) or _extent(part) is None:
        return None
    blocks: list[Any] = []

    def visit(realize: Any) -> None:
        blocks.append(realize)

    tvm_ffi.structural_walk(part.body, [(s_tir.SBlockRealize, visit)])
    var = part.loop_var
    for realize in blocks:
        kinds = [
            axis.iter_type
            for axis, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)
            if isinstance(value, tirx.Var) and value.same_as(var)
        ]
        if kinds != [_DATA_PARALLEL]:
            return None
    return var if blocks else None


def _extent(loop: Any) -> int | None:
    if isinstance(loop.extent, tirx.IntImm) and isinstance(loop.min, tirx.IntImm):
        return int(loop.extent) if int(loop.min) == 0 else None
    return None


def _lower(part: Any, buffers: list[Any], target: Any) -> Any:
    """Blocks to plain loops."""
    root = s_tir.SBlock([], [], [], "root", part)
    func = tirx.PrimFunc(buffers, s_tir.SBlockRealize([], tirx.const(True, "bool"), root))
    func = func.with_attrs({"global_symbol": "stage", "s_tir": True})
    transform = s_tir.transform
    passes = tvm.transform.Sequential(
        [
            transform.CanonicalizeLoop(),
            transform.LowerInitBlock(),
            transform.PlanAndUpdateBufferAllocationLocation(),
            transform.ConvertBlocksToOpaque(),
            transform.CompactBufferAllocation(),
            transform.LowerMatchBuffer(),
            transform.StmtSimplify(),
            transform.LowerOpaqueBlock(),
        ]
    )
    with tvm.transform.PassContext(opt_level=3), target:
        return passes(tvm.IRModule({"stage": func}))["stage"]


def _check_calls(body: Any) -> None:
    def visit(call: Any) -> None:
        name = str(getattr(call.op, "name", ""))
        if "packed" in name or "extern" in name or "tvm_" in name:
            raise UnsupportedError("TVM's version calls its runtime", got=name)

    tvm_ffi.structural_walk(body, [(tvm.ir.Call, visit)])


def _check_stack(body: Any) -> None:
    def visit(node: Any) -> None:
        size = _nbytes(node.buffer)
        if size > _STACK_BYTES:
            raise UnsupportedError("TVM's version needs a large temporary", got=f"{size} bytes")

    tvm_ffi.structural_walk(body, [(tirx.AllocBuffer, visit)])


def _pointer_function(lowered: Any, buffers: list[Any], loop: Any) -> Nest:
    """Give a lowered nest pointer parameters and the range ``[begin, end)``."""
    begin, end = tirx.Var("begin", "int32"), tirx.Var("end", "int32")
    body, extent = lowered.body, 1
    if loop is not None:
        body, extent = _split(body, loop.name, begin, end)
    pointers = [
        tirx.Var(f"p{i}", PointerType(PrimType(dtype_of(buffer)), "global"))
        for i, buffer in enumerate(buffers)
    ]
    declared = [
        tirx.DeclBuffer(param, data=pointer)
        for param, pointer in zip(lowered.params, pointers, strict=True)
    ]
    stage = tirx.PrimFunc([*pointers, begin, end], tirx.SeqStmt([*declared, body]))
    stage = stage.with_attrs({"global_symbol": "stage", "tirx.noalias": True})
    return Nest(stage, tuple(buffers), extent)


def _split(body: Any, name: str, begin: Any, end: Any) -> tuple[Any, int]:
    """Run the outermost loop over ``[begin, end)``; unchanged if it is another loop by now."""
    extent = _extent(body) if isinstance(body, tirx.For) else None
    if extent is None or body.loop_var.name != name:
        return body, 1
    dtype = body.loop_var.ty.dtype
    first, last = (tirx.Cast(dtype, value) for value in (begin, end))
    loop = tirx.For(body.loop_var, first, last - first, body.kind, body.body)
    return loop, extent
