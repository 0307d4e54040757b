"""How each operator ties the channels of its operands and results, and what it stores of them.

A rule has two parts. ``tie`` gives the results their labels (``effc.passes.pruning.channel_axes``);
``rewrite`` renews what the operator stores about sizes once channels are gone: groups, target
shapes, split sizes, slice bounds, pads, indices. Labelled constants are cut elsewhere. An operator
without a rule is fixed: nothing around it is removed. The dependency graph is that of DepGraph
(Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023), at single indices.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.pruning.channel_axes import Axes, Cut, Labels, Rule, Use, fixed
from effc.passes.pruning.channel_moves import MOVES
from effc.passes.transpose_rules import ELEMENTWISE

__all__ = ["RULES", "tie_node"]


def tie_node(axes: Axes, node: ir.Node) -> None:
    """Label the results of a node whose operands are labelled."""
    values = [v for v in (*node.inputs, *node.outputs) if v is not None and v.name]
    empty = any(0 in shape_of(v) for v in values)
    rule = None if node.domain or empty else RULES.get(node.op_type)
    if rule is None:
        axes.fix_node(node)
    else:
        rule.tie(axes, node)


def _weight(axes: Axes, node: ir.Node, index: int, in_axis: int, out_axis: int) -> None:
    labels = axes.of(node, index)
    axes.uses.append(Use(node, index, in_axis, "in", labels[in_axis]))
    axes.uses.append(Use(node, index, out_axis, "out", labels[out_axis]))


def _conv(axes: Axes, node: ir.Node) -> None:
    """Conv and ConvTranspose; of a grouped one (depthwise: one channel) whole groups go."""
    transposed = node.op_type == "ConvTranspose"
    weight = node.inputs[1]
    if const(weight) is None:
        axes.fix_node(node)
        return
    batch, channels, *space = axes.of(node, 0)
    axes.fix(space)
    w = axes.of(node, 1)
    axes.fix(w[2:])
    group = attribute(node, "group", 1)
    if group == 1:
        out = w[1] if transposed else w[0]
        axes.tie(channels, w[0] if transposed else w[1])
        _weight(axes, node, 1, *((0, 1) if transposed else (1, 0)))
    else:
        axes.fix([w[1]])
        for block in channels.reshape(group, -1):
            axes.merge(block)
        first = channels.reshape(group, -1)[:, 0]
        out = np.repeat(first, shape_of(node.outputs[0])[1] // group)
        axes.tie(w[0], channels if transposed else out)
    axes.tie_operand(node, 2, [out])
    size = shape_of(node.outputs[0])
    axes.set_result(node.outputs[0], [batch, out, *map(fixed, size[2:])])


def _conv_groups(cut: Cut, node: ir.Node) -> None:
    group = attribute(node, "group", 1)
    if group > 1:
        kept = cut.kept(cut.operand(node, 0)[1])
        node.attributes["group"] = ir.AttrInt64("group", int(kept.reshape(group, -1)[:, 0].sum()))


def _gemm(axes: Axes, node: ir.Node) -> None:
    sides = [axes.of(node, 0), axes.of(node, 1)]
    flipped = [bool(attribute(node, name, 0)) for name in ("transA", "transB")]
    (rows, inner), (inner_b, columns) = (
        side[::-1] if flip else side for side, flip in zip(sides, flipped, strict=True)
    )
    _contract(axes, node, inner, inner_b, (int(not flipped[0]), int(flipped[1])))
    operands: list[tuple[Labels, ...]] = [(rows, columns)]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        operands.append(axes.of(node, 2))
    axes.set_result(node.outputs[0], axes.broadcast(operands))


def _contract(
    axes: Axes, node: ir.Node, left: Labels, right: Labels, position: tuple[int, int]
) -> None:
    """The summed axis of a product: a weight's inputs if one operand is constant, else fixed."""
    constant = [const(v) is not None for v in node.inputs[:2]]
    axes.tie(left, right)
    if constant[0] == constant[1]:
        axes.fix([left])
        return
    index = constant.index(True)
    rank = len(axes.of(node, index))
    axis = position[index]
    other = rank - 1 if axis == rank - 2 else rank - 2
    _weight(axes, node, index, axis, other)


def _matmul(axes: Axes, node: ir.Node) -> None:
    a, b = axes.of(node, 0), axes.of(node, 1)
    if len(a) < 2 or len(b) < 2:
        axes.fix_node(node)
        return
    _contract(axes, node, a[-1], b[-2], (len(a) - 1, len(b) - 2))
    batch = axes.broadcast([a[:-2], b[:-2]])
    axes.set_result(node.outputs[0], [*batch, a[-2], b[-1]])


def _elementwise(axes: Axes, node: ir.Node) -> None:
    operands = [axes.of(node, i) for i, v in enumerate(node.inputs) if v is not None]
    axes.set_result(node.outputs[0], axes.broadcast(operands))


def _per_channel(axes: Axes, node: ir.Node) -> None:
    """BatchNormalization and InstanceNormalization."""
    x = axes.of(node, 0)
    axes.fix(x[2:])
    for index in range(1, len(node.inputs)):
        axes.tie_operand(node, index, [x[1]])
    axes.set_result(node.outputs[0], x)


def _pool(axes: Axes, node: ir.Node) -> None:
    if len(node.outputs) > 1 and node.outputs[1].name:
        axes.fix_node(node)
        return  # indices count elements of all channels
    x = axes.of(node, 0)
    axes.fix(x[2:])
    size = shape_of(node.outputs[0])
    axes.set_result(node.outputs[0], [*x[:2], *map(fixed, size[2:])])


def _reduce(axes: Axes, node: ir.Node) -> None:
    x = axes.of(node, 0)
    given = const(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None or not given.size:
        axes.fix_node(node)
        return
    reduced = {int(axis) % len(x) for axis in given.reshape(-1)}
    axes.fix(x[axis] for axis in reduced)
    keep = attribute(node, "keepdims", 1)
    left = [
        fixed(1) if i in reduced else labels
        for i, labels in enumerate(x)
        if keep or i not in reduced
    ]
    axes.set_result(node.outputs[0], left)


def _softmax(axes: Axes, node: ir.Node) -> None:
    """The normalized axis stays whole, others pass."""
    x = axes.of(node, 0)
    axes.fix([x[attribute(node, "axis", -1) % len(x)]])
    axes.set_result(node.outputs[0], x)


RULES: dict[str, Rule] = {
    **MOVES,
    **dict.fromkeys((*ELEMENTWISE, "Identity"), Rule(_elementwise)),
    "Conv": Rule(_conv, _conv_groups),
    "ConvTranspose": Rule(_conv, _conv_groups),
    "Gemm": Rule(_gemm),
    "MatMul": Rule(_matmul),
    "BatchNormalization": Rule(_per_channel),
    "InstanceNormalization": Rule(_per_channel),
    **dict.fromkeys(
        (
            "AveragePool",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "LpPool",
            "MaxPool",
        ),
        Rule(_pool),
    ),
    **dict.fromkeys(
        (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ),
        Rule(_reduce),
    ),
    "Softmax": Rule(_softmax),
    "LogSoftmax": Rule(_softmax),
}
"""By operator type of the default domain."""
