"""Which values of a model are quantized, and which of them share one grid.

Every operator of the tables below reads and writes quantized values, so that a chain of them can be
computed in integers from end to end. A value is quantized once, behind what makes it:

* Relu and Clip behind an operator belong to it: its result is quantized behind them, as is that of
  a matrix product behind the Add of a constant vector (its bias).
* What only moves values (reshape, transpose, maximum pooling, nearest or linear resize ...) keeps
  the grid of what it reads, and all operands of a concatenation have that of the result. These are
  quantized if anything around them is.
* Softmax has a grid of its own, 1/256; where it makes a model output it stays in float unless
  integers are asked for. In float, between a DequantizeLinear and a QuantizeLinear, stay operators
  that are not listed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of, single_user

__all__ = ["Group", "Points", "Unit", "find_points", "weight_axis"]

Array = np.ndarray[Any, Any]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Min", "Max"})
_UNARY_NAMES = """
    Relu Clip LeakyRelu PRelu Sigmoid Tanh HardSigmoid HardSwish Elu Selu Celu Gelu Softplus
    Softsign Mish ThresholdedRelu Neg Abs AveragePool GlobalAveragePool ReduceMean Softmax
    LayerNormalization InstanceNormalization
"""
_UNARY = frozenset(_UNARY_NAMES.split())
_MOVING_NAMES = """
    Identity Reshape Flatten Squeeze Unsqueeze Transpose Slice Split Gather Pad Tile Expand
    DepthToSpace SpaceToDepth MaxPool GlobalMaxPool ReduceMax ReduceMin Resize Concat
"""
_MOVING = frozenset(_MOVING_NAMES.split())
_FUSED = frozenset({"Relu", "Clip"})
_BEFORE_FUSED = _WEIGHTED | _ARITHMETIC | {"AveragePool", "GlobalAveragePool", "ReduceMean"}

_SOFTMAX = (0.0, 255 / 256)


@dataclass(frozen=True, eq=False)
class Unit:
    """An operator that is computed in integers, with what belongs to it.

    Attributes:
        node: The operator.
        reads: Operands that are quantized: values, constants among them, but no weights and biases.
        results: What is quantized behind it; several for Split.
        bias: The Add of a matrix product's bias, if there is one.
        weighted: Whether its second operand is a weight with its own scales.
    """

    node: ir.Node
    reads: tuple[str, ...]
    results: tuple[str, ...]
    bias: ir.Node | None = None
    weighted: bool = False


@dataclass
class Group:
    """Values with one grid.

    Attributes:
        values: Their names, in the order of the graph; constants too.
        bits: Of the integers.
        fixed: The range, where it is known.
        holds: Numbers that the range must contain.
    """

    values: list[str]
    bits: int = 8
    fixed: tuple[float, float] | None = None
    holds: list[float] = field(default_factory=list)


@dataclass
class Points:
    """What is quantized in a model.

    Attributes:
        units: Operators, in the order of the graph.
        groups: Of values.
        refused: (node, why) for operators of the tables that stay in float.
    """

    units: list[Unit]
    groups: list[Group]
    refused: list[tuple[str, str]]

    def __post_init__(self) -> None:
        self._group = {name: group for group in self.groups for name in group.values}

    @property
    def values(self) -> list[str]:
        """All quantized values."""
        return [name for group in self.groups for name in group.values]

    def group_of(self, name: str) -> Group:
        """The group that a value belongs to."""
        return self._group[name]


def weight_axis(node: ir.Node) -> int:
    """The axis of output channels of a weight operand."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1


def find_points(
    model: ir.Model,
    skip: Collection[str] = (),
    bits: Mapping[str, int] | None = None,
    integer: Collection[str] = (),
) -> Points:
    """Decide what is quantized.

    Args:
        model: Simplified.
        skip: Names of nodes to leave in float, with what belongs to them.
        bits: By node name, bits of the values around it where they are not 8.
        integer: Names of nodes to quantize even if they are a Softmax that makes a model output.
    """
    graph = model.graph
    refused: list[tuple[str, str]] = []
    computing: list[Unit] = []
    moving: list[Unit] = []
    inside: set[ir.Node] = set()
    for node in graph:
        if node.domain or node in inside:
            continue
        if node.op_type not in _WEIGHTED | _ARITHMETIC | _UNARY | _MOVING:
            continue
        why = "asked for" if node.name in skip else _refusal(node, integer)
        if why is not None:
            if why and node.op_type not in _MOVING:
                refused.append((node.name or node.op_type, why))
            if node.name in skip:
                inside.update(_unit(node)[1])
            continue
        unit, own = _unit(node)
        inside.update(own)
        (moving if node.op_type in _MOVING else computing).append(unit)
    units = _reached(computing, moving)
    order = {node: index for index, node in enumerate(graph)}
    units.sort(key=lambda unit: order[unit.node])
    return Points(units, _groups(units, bits or {}), refused)


def _refusal(node: ir.Node, integer: Collection[str]) -> str | None:
    """Why a listed operator stays in float; empty if that needs no mention."""
    first = node.inputs[0]
    if first is None or first.dtype != ir.DataType.FLOAT:
        return ""
    if any(0 in shape_of(value) for value in (*node.outputs[:1], first)):
        return ""
    if node.op_type in _ARITHMETIC | {"MatMul", "Concat"}:
        arrays = [const(value) for value in node.inputs]
        if any(array is not None and not np.isfinite(array).all() for array in arrays):
            return "it reads a constant that is not finite"
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return _weights_refusal(node)
    if node.op_type == "Softmax" and node.outputs[0].is_graph_output():
        return None if node.name in integer else "it makes a model output"
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return "its indices are read"
    if node.op_type == "Resize":
        mode = attribute(node, "mode", "nearest")
        crop = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
        return "it may leave the range of what it reads" if mode == "cubic" or crop else None
    if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
        value = _pad_value(node)
        return None if value is not None and np.isfinite(value) else "its padding is not finite"
    return None


def _weights_refusal(node: ir.Node) -> str | None:
    weight = const(node.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return "its weights are not constant"
    if not np.isfinite(weight).all():
        return "its weights are not finite"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        array = const(bias)
        channels = shape_of(node.outputs[0])[-1 if node.op_type == "Gemm" else 1]
        if array is None or array.size != channels or array.size != max(array.shape[-1:]):
            return "its bias is no constant per output channel"
    if node.op_type == "Gemm":
        scaled = attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1
        if scaled or attribute(node, "transA", 0):
            return "it scales or transposes its operands"
    return None


def _pad_value(node: ir.Node) -> float | None:
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0.0
    array = const(value)
    return None if array is None else float(array.reshape(-1)[0])


def _unit(node: ir.Node) -> tuple[Unit, list[ir.Node]]:
    """The unit around a node, and the other nodes inside."""
    weighted = node.op_type in ("Conv", "ConvTranspose", "Gemm") or (
        node.op_type == "MatMul" and _is_matrix(const(node.inputs[1]))
    )
    operands = node.inputs[:1]
    if node.op_type in _ARITHMETIC | {"Concat"} or (node.op_type == "MatMul" and not weighted):
        operands = node.inputs
    reads = tuple(v.name or "" for v in operands if v is not None)
    results = [v for v in node.outputs if v.name]
    own: list[ir.Node] = []
    bias = None
    if node.op_type in _BEFORE_FUSED and len(results) == 1:
        if weighted and node.op_type == "MatMul":
            bias = _bias_add(results[0])
            if bias is not None:
                own.append(bias)
                results = [bias.outputs[0]]
        user = single_user(results[0])
        while user is not None and not user.domain and user.op_type in _FUSED:
            own.append(user)
            results = [user.outputs[0]]
            user = single_user(results[0])
    return Unit(node, reads, tuple(v.name or "" for v in results), bias, weighted), own


def _is_matrix(array: Array | None) -> bool:
    return array is not None and array.ndim == 2 and bool(np.isfinite(array).all())


def _bias_add(value: ir.Value) -> ir.Node | None:
    """The only reader of a matrix product, if it adds a constant per column."""
    add = single_user(value)
    if add is None or add.domain or add.op_type != "Add":
        return None
    array = const(add.inputs[1] if add.inputs[0] is value else add.inputs[0])
    columns = shape_of(value)[-1]
    if array is None or array.size != columns or array.shape[-1:] != (columns,):
        return None
    return add


def _reached(computing: list[Unit], moving: list[Unit]) -> list[Unit]:
    """The computing units, and the moving ones that touch a quantized value."""
    units = list(computing)
    quantized = {name for unit in units for name in (*unit.reads, *unit.results)}
    left = moving
    while True:
        found = [u for u in left if quantized.intersection((*u.reads, *u.results))]
        if not found:
            return units
        units += found
        quantized.update(name for unit in found for name in (*unit.reads, *unit.results))
        left = [unit for unit in left if unit not in found]


def _groups(units: list[Unit], bits: Mapping[str, int]) -> list[Group]:
    shared = _Sets()
    known: dict[str, tuple[float, float]] = {}
    padding: dict[str, list[float]] = {}
    wide: dict[str, int] = {}
    moved: set[str] = set()
    for unit in units:
        names = (*unit.reads, *unit.results)
        for name in names:
            shared.add(name)
            wide[name] = max(wide.get(name, 8), bits.get(unit.node.name or "", 8))
        if unit.node.op_type in _MOVING:
            moved.update(unit.results)
            for name in names[1:]:
                shared.join(names[0], name)
        if unit.node.op_type == "Softmax":
            known[unit.results[0]] = _SOFTMAX
        if unit.node.op_type == "Pad" and attribute(unit.node, "mode", "constant") == "constant":
            padding.setdefault(names[0], []).append(_pad_value(unit.node) or 0.0)
    groups = []
    for values in shared.all():
        holds = [number for name in values for number in padding.get(name, ())]
        alone = all(name in known for name in values if name not in moved)
        fixed = _SOFTMAX if alone and not any(holds) else None
        if fixed is None:
            holds += [number for name in values for number in known.get(name, ())]
        groups.append(Group(values, max(wide[name] for name in values), fixed, holds))
    return groups


class _Sets:
    """Disjoint sets of names that remember the order in which names came."""

    def __init__(self) -> None:
        self._sets: dict[str, list[str]] = {}

    def add(self, name: str) -> None:
        self._sets.setdefault(name, [name])

    def join(self, a: str, b: str) -> None:
        first, second = self._sets[a], self._sets[b]
        if first is not second:
            first += second
            for name in second:
                self._sets[name] = first

    def all(self) -> Iterator[list[str]]:
        seen: set[int] = set()
        for values in self._sets.values():
            if id(values) not in seen:
                seen.add(id(values))
                yield values
