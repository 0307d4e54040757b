"""Channel rules of operators that only move, join, cut or repeat elements.

Each ties labels of results to those of operands; where the operator stores sizes (target shape,
split sizes, bounds, pads, indices), a second function renews them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import attribute, const, shape_of
from effc.passes.merge_pad import pad_amounts
from effc.passes.pruning.channel_axes import Axes, Cut, Labels, Rule, fixed

__all__ = ["MOVES"]

Array = np.ndarray[Any, Any]


def _transpose(axes: Axes, node: ir.Node) -> None:
    x = axes.of(node, 0)
    perm = attribute(node, "perm", tuple(reversed(range(len(x)))))
    axes.set_result(node.outputs[0], [x[axis] for axis in perm])


def _concat(axes: Axes, node: ir.Node) -> None:
    operands = [axes.of(node, index) for index in range(len(node.inputs))]
    axis = attribute(node, "axis") % len(operands[0])
    joined = np.concatenate([x[axis] for x in operands])
    others = axes.broadcast([[*x[:axis], *x[axis + 1 :]] for x in operands])
    axes.set_result(node.outputs[0], [*others[:axis], joined, *others[axis:]])


def _split(axes: Axes, node: ir.Node) -> None:
    x = axes.of(node, 0)
    axis = attribute(node, "axis", 0) % len(x)
    ends = np.cumsum([shape_of(v)[axis] for v in node.outputs])
    for value, part in zip(node.outputs, np.split(x[axis], ends[:-1]), strict=True):
        axes.set_result(value, [*x[:axis], part, *x[axis + 1 :]])


def _split_sizes(cut: Cut, node: ir.Node) -> None:
    axis = attribute(node, "axis", 0) % len(cut.operand(node, 0))
    node.attributes.pop("num_outputs", None)
    cut.set_operand(node, 1, np.array([cut.shape(v)[axis] for v in node.outputs], np.int64))


def _bounds(node: ir.Node, sizes: Sequence[int]) -> list[tuple[int, slice]] | None:
    """(axis, slice with bounds inside the axis) of a Slice; None if they are not constant."""
    given = [const(v) for v in node.inputs[1:]]
    if any(v is not None and a is None for v, a in zip(node.inputs[1:], given, strict=True)):
        return None
    starts, ends, which, steps = [*given, None, None][:4]
    assert starts is not None
    assert ends is not None
    which = np.arange(len(starts)) if which is None else which
    steps = np.ones(len(starts), np.int64) if steps is None else steps
    found = []
    for start, end, axis, step in zip(starts, ends, which, steps, strict=True):
        axis = int(axis) % len(sizes)
        first, last, stride = slice(int(start), int(end), int(step)).indices(sizes[axis])
        found.append((axis, slice(first, None if last < 0 else last, stride)))
    return found


def _slice(axes: Axes, node: ir.Node) -> None:
    result = list(axes.of(node, 0))
    bounds = _bounds(node, list(map(len, result)))
    if bounds is None:
        axes.fix_node(node)
        return
    for axis, part in bounds:
        if part.step != 1:  # what is skipped between cannot go without changing the step
            axes.fix([result[axis]])
        result[axis] = result[axis][part]
    axes.set_result(node.outputs[0], result)


def _slice_bounds(cut: Cut, node: ir.Node) -> None:
    x = cut.operand(node, 0)
    bounds = _bounds(node, list(map(len, x)))
    assert bounds is not None
    starts, ends = (np.array(const(node.inputs[i])) for i in (1, 2))
    for position, (axis, part) in enumerate(bounds):
        kept = cut.kept(x[axis])
        if not kept.all():
            starts[position] = kept[: part.start].sum()
            ends[position] = kept[: part.stop].sum()
    cut.set_operand(node, 1, starts)
    cut.set_operand(node, 2, ends)


def _pad(axes: Axes, node: ir.Node) -> None:
    """Padding of a channel axis with a constant makes channels that can go like others."""
    amounts = pad_amounts(node)
    if amounts is None:
        axes.fix_node(node)
        return
    plain = attribute(node, "mode", "constant") == "constant"
    result = []
    for labels, start, end in zip(axes.of(node, 0), *amounts, strict=True):
        if not (start or end):
            result.append(labels)
        elif plain and start >= 0 and end >= 0 and not axes.is_fixed(labels):
            result.append(np.concatenate([axes.new(start), labels, axes.new(end)]))
        else:
            axes.fix([labels])
            result.append(fixed(start + len(labels) + end))
    axes.set_result(node.outputs[0], result)


def _pad_amounts(cut: Cut, node: ir.Node) -> None:
    amounts = pad_amounts(node)
    assert amounts is not None
    starts, ends = amounts
    for axis, labels in enumerate(cut.result(node.outputs[0])):
        kept = cut.kept(labels)
        if not kept.all():
            starts[axis] = int(kept[: starts[axis]].sum())
            ends[axis] = int(kept[len(kept) - ends[axis] :].sum())
    if len(node.inputs) > 3:  # which axes: all of them are given
        node.resize_inputs(3)
    cut.set_operand(node, 1, np.array(starts + ends, np.int64))


def _gather(axes: Axes, node: ir.Node) -> None:
    """A constant list of indices picks channels."""
    x, indices = axes.of(node, 0), const(node.inputs[1])
    axis = attribute(node, "axis", 0) % len(x)
    if indices is not None and indices.ndim == 1:
        picked = [x[axis][indices]]
    else:
        axes.fix([x[axis], *axes.of(node, 1)])
        picked = list(axes.of(node, 1))
    axes.set_result(node.outputs[0], [*x[:axis], *picked, *x[axis + 1 :]])


def _gather_indices(cut: Cut, node: ir.Node) -> None:
    x, indices = cut.operand(node, 0), const(node.inputs[1])
    if indices is not None and indices.ndim == 1:
        kept = cut.kept(x[attribute(node, "axis", 0) % len(x)])
        positions = np.arange(len(kept))[indices]  # none negative
        cut.set_operand(node, 1, (np.cumsum(kept) - 1)[positions[kept[positions]]])


def _resize(axes: Axes, node: ir.Node) -> None:
    x, size = axes.of(node, 0), shape_of(node.outputs[0])
    if attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        axes.fix_node(node)
        return
    changed = [labels for labels, n in zip(x, size, strict=True) if len(labels) != n]
    axes.fix(changed)
    same = [labels if len(labels) == n else fixed(n) for labels, n in zip(x, size, strict=True)]
    axes.set_result(node.outputs[0], same)


def _resize_sizes(cut: Cut, node: ir.Node) -> None:
    sizes = const(node.inputs[3]) if len(node.inputs) > 3 else None
    if sizes is None:
        return  # scales: 1 along channels
    shape = cut.shape(node.outputs[0])
    which = [int(axis) % len(shape) for axis in attribute(node, "axes", range(len(shape)))]
    cut.set_operand(node, 3, np.array([shape[axis] for axis in which], np.int64))


def _repeated(axes: Axes, node: ir.Node) -> None:
    """Expand and Tile: axes that keep their length pass."""
    x, size = axes.of(node, 0), shape_of(node.outputs[0])
    x = (*(fixed(1) for _ in range(len(size) - len(x))), *x)
    axes.fix(labels for labels, n in zip(x, size, strict=True) if len(labels) != n)
    axes.set_result(
        node.outputs[0],
        [labels if len(labels) == n else fixed(n) for labels, n in zip(x, size, strict=True)],
    )


def _target_shape(cut: Cut, node: ir.Node) -> None:
    cut.set_operand(node, 1, np.array(cut.shape(node.outputs[0]), np.int64))


def _reshape(axes: Axes, node: ir.Node) -> None:
    """Axes that are merged or cut: of each group of factors one axis on either side is free.

    With row-major order, removing index i of one factor removes all elements whose coordinate
    there is i; on the other side these must make up whole indices of one factor again.
    """
    assert node.inputs[0] is not None
    x, old = axes.of(node, 0), shape_of(node.inputs[0])
    new = shape_of(node.outputs[0])
    result = [fixed(size) for size in new]
    for sources, targets in _factor_groups(old, new):
        if len(sources) == len(targets) == 1:
            result[targets[0]] = x[sources[0]]
            continue
        free = next((axis for axis in sources if not axes.is_fixed(x[axis])), None)
        axes.fix(x[axis] for axis in sources if axis != free)
        if free is None or not targets:
            continue
        flat = _spread(x[free], sources, free, old)
        target = max(targets, key=lambda axis: (new[axis], axis))
        whole = np.moveaxis(flat.reshape([new[a] for a in targets]), targets.index(target), 0)
        for index in whole.reshape(new[target], -1):
            axes.merge(index)
        result[target] = whole.reshape(new[target], -1)[:, 0]
    axes.set_result(node.outputs[0], result)


def _spread(labels: Labels, sources: list[int], free: int, old: tuple[int, ...]) -> Labels:
    """For each element of the merged axes the label of its coordinate on axis ``free``."""
    sizes = [old[axis] for axis in sources]
    place = sources.index(free)
    column = labels.reshape(-1, *[1] * (len(sizes) - place - 1))
    return np.broadcast_to(column, sizes).reshape(-1)


def _factor_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes (longer than 1) of either shape with equal products."""
    left = [axis for axis, size in enumerate(old) if size != 1]
    right = [axis for axis, size in enumerate(new) if size != 1]
    groups = []
    while left:
        sources, targets = [left.pop(0)], [right.pop(0)]
        while (a := prod(old[i] for i in sources)) != (b := prod(new[i] for i in targets)):
            if a < b:
                sources.append(left.pop(0))
            else:
                targets.append(right.pop(0))
        groups.append((sources, targets))
    return groups


def _squeeze(axes: Axes, node: ir.Node) -> None:
    """With its axes given; otherwise a channel axis cut down to length 1 would vanish."""
    if node.op_type == "Squeeze" and (len(node.inputs) < 2 or const(node.inputs[1]) is None):
        axes.fix_node(node)
    else:
        _reshape(axes, node)


MOVES: dict[str, Rule] = {
    "Transpose": Rule(_transpose),
    "Concat": Rule(_concat),
    "Split": Rule(_split, _split_sizes),
    "Slice": Rule(_slice, _slice_bounds),
    "Pad": Rule(_pad, _pad_amounts),
    "Gather": Rule(_gather, _gather_indices),
    "Resize": Rule(_resize, _resize_sizes),
    "Expand": Rule(_repeated, _target_shape),
    "Tile": Rule(_repeated),
    "Reshape": Rule(_reshape, _target_shape),
    "Flatten": Rule(_reshape),
    "Squeeze": Rule(_squeeze),
    "Unsqueeze": Rule(_squeeze),
}
"""By operator type."""
