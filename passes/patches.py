"""The first stages of a network, some rows at a time.

The peak of most image networks lies in their first layers. ``split`` computes the feature map at
a *cut* in strips of rows: every strip goes through all layers before the cut, with the rows of
their inputs that it needs (the receptive field's halo is computed again), and is then put into its
place (MCUNetV2: Lin et al., "Memory-efficient patch-based inference for tiny deep learning", 2021).
So only strips of the large tensors exist. Exact: each element is computed by the same operations.

The result is a plain graph of Slice, the operators themselves with other padding, and Concat.
Strips in the middle have equal shapes, so they share code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from effc.errors import UsageError
from effc.passes.graph import Writer, const, dtype_of, prune, redirect, shape_of
from effc.passes.patch_rules import Reads, Rows, reads

__all__ = ["Cut", "Strips", "find_cuts", "plan_strips", "rest_peak", "split"]

_AXIS = 2  # of the rows, at cuts
_EPILOGUE = frozenset({"Requantize", "AddRescaled", "FlipSign", "Relu", "Clip", "Add", "Mul"})


@dataclass(frozen=True)
class Cut:
    """A feature map behind which the network goes on whole.

    Attributes:
        value: The feature map.
        stages: Nodes that compute it, in order; nothing but it is read behind them.
    """

    value: ir.Value
    stages: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Strips:
    """How a cut is computed in strips.

    Attributes:
        cut: What is computed.
        rows: Rows of the cut in each strip.
        needed: Per strip, the axis and rows of every tensor that it computes or reads.
        reads: Per strip, what every node reads.
        extra: Multiply-accumulates beyond those of the whole; negative where rows that no one reads
            are left out.
        peak: Estimate of the bytes alive at most, result of the cut included.
    """

    cut: Cut
    rows: tuple[Rows, ...]
    needed: tuple[dict[ir.Value, tuple[int, Rows]], ...]
    reads: tuple[dict[ir.Node, Reads], ...]
    extra: int
    peak: int


def find_cuts(graph: ir.Graph) -> list[Cut]:
    """Feature maps that split the graph in two, first ones first, as long as rules are known."""
    cuts: list[Cut] = []
    nodes = list(graph)
    position = {node: i for i, node in enumerate(nodes)}
    open_until = 0  # last reader of what has been computed so far, but for the newest value
    for i, node in enumerate(nodes):
        out = node.outputs[0]
        shape = shape_of(out)
        axis = _AXIS if len(shape) > _AXIS else None
        if axis is None or isinstance(reads(node, axis, (0, shape[axis])), str):
            if any(v is not None and const(v) is None for v in node.inputs):
                break
            continue
        alone = open_until <= i and not _fused(out) and not out.is_graph_output()
        if alone and shape[axis] > 1 and any(_is_product(n) for n in nodes[: i + 1]):
            cuts.append(Cut(out, tuple(nodes[: i + 1])))
        users = [position[use.node] for use in out.uses()]
        open_until = max([open_until, *users])
        if out.is_graph_output():
            open_until = len(nodes)
    return cuts


def plan_strips(cut: Cut, height: int) -> Strips | str:
    """Strips of ``height`` rows of a cut, or why it cannot be cut so."""
    total = shape_of(cut.value)[_AXIS]
    rows = tuple((a, min(a + height, total)) for a in range(0, total, height))
    needed, taken = [], []
    for strip in rows:
        found = _backwards(cut, strip)
        if isinstance(found, str):
            return found
        needed.append(found[0])
        taken.append(found[1])
    whole = _backwards(cut, (0, total))
    if isinstance(whole, str):
        return whole
    extra = sum(_work(cut, strip) for strip in needed) - _work(cut, whole[0])
    peak = _nbytes(cut.value) + max(_peak(cut.stages, cut.value, strip) for strip in needed)
    return Strips(cut, rows, tuple(needed), tuple(taken), extra, peak)


def split(model: ir.Model, strips: Strips) -> None:
    """Compute a cut in strips; the model is changed in place.

    Raises:
        UsageError: The strips are of another model.
    """
    graph, cut = model.graph, strips.cut
    last = cut.stages[-1]
    if last.graph is not graph:
        raise UsageError("the strips belong to another model")
    parts = []
    for number, (needed, taken) in enumerate(zip(strips.needed, strips.reads, strict=True)):
        made: dict[ir.Value, ir.Value] = {}
        for node in cut.stages:
            if node.outputs[0] in needed:
                writer = Writer(graph, last, f"{node.name or node.op_type}/strip{number}")
                made[node.outputs[0]] = _copy(writer, node, taken[node], needed, made)
        parts.append(made[cut.value])
    joined = Writer(graph, last).op("Concat", *parts, axis=_AXIS) if len(parts) > 1 else parts[0]
    redirect(cut.value, joined)
    for node in reversed(cut.stages):
        prune(graph, node)


def _backwards(
    cut: Cut, strip: Rows
) -> tuple[dict[ir.Value, tuple[int, Rows]], dict[ir.Node, Reads]] | str:
    """Rows of every tensor that a strip of the cut needs: the hull of what its readers need."""
    needed: dict[ir.Value, tuple[int, Rows]] = {cut.value: (_AXIS, strip)}
    taken: dict[ir.Node, Reads] = {}
    for node in reversed(cut.stages):
        wanted = needed.get(node.outputs[0])
        if wanted is None:
            continue
        found = reads(node, *wanted)
        if isinstance(found, str):
            return f"{node.name or node.op_type}: {found}"
        taken[node] = found
        for value, read in zip(node.inputs, found.operands, strict=True):
            if value is None or read.axis is None or const(value) is not None:
                continue
            axis, (begin, end) = needed.get(value, (read.axis, read.rows))
            if axis != read.axis:
                return f"{value.name} is read along two axes"
            hull = (min(begin, read.rows[0]), max(end, read.rows[1]))
            needed[value] = (axis, hull)
    return needed, taken


def _copy(
    writer: Writer,
    node: ir.Node,
    taken: Reads,
    needed: dict[ir.Value, tuple[int, Rows]],
    made: dict[ir.Value, ir.Value],
) -> ir.Value:
    """The node for one strip."""
    operands: list[ir.Value | None] = []
    for value, read in zip(node.inputs, taken.operands, strict=True):
        if value is None or read.axis is None:
            operands.append(value)
            continue
        have, (begin, end) = value, (0, shape_of(value)[read.axis])
        if value in made:
            have, (begin, end) = made[value], needed[value][1]
        if read.rows == (begin, end):
            operands.append(have)
            continue
        bounds = [np.array([v - begin], np.int64) for v in read.rows]
        operands.append(writer.op("Slice", have, *bounds, np.array([read.axis], np.int64)))
    kept = {name: a for name, a in node.attributes.items() if name not in taken.attrs}
    return writer.op(node.op_type, *operands, domain=node.domain, **kept, **taken.attrs)


def _work(cut: Cut, needed: dict[ir.Value, tuple[int, Rows]]) -> int:
    """Multiply-accumulates of a strip."""
    total = 0
    for node in cut.stages:
        out = node.outputs[0]
        weights = node.inputs[1] if len(node.inputs) > 1 else None
        if out in needed and weights is not None and _is_product(node):
            axis, (begin, end) = needed[out]
            shape = shape_of(out)
            total += prod(shape) * (end - begin) // shape[axis] * prod(shape_of(weights)[1:])
    return total


def rest_peak(graph: ir.Graph, cut: Cut) -> int:
    """Estimate of the bytes alive at most behind a cut, as ``Strips.peak``."""
    done = set(cut.stages)
    rest = [node for node in graph if node not in done]
    whole = {
        node.outputs[0]: (0, (0, shape_of(node.outputs[0])[0])) for node in rest if node.outputs
    }
    whole = {v: r for v, r in whole.items() if shape_of(v) and r[1][1]}
    return _peak(rest, None, whole | {cut.value: (_AXIS, (0, shape_of(cut.value)[_AXIS]))})


def _peak(
    nodes: Sequence[ir.Node],
    result: ir.Value | None,
    needed: dict[ir.Value, tuple[int, Rows]],
) -> int:
    """Bytes alive at most, with results in place of inputs that end.

    Of a chain of element-wise operators only the end is stored, as fusion will have it.

    Args:
        nodes: What runs.
        result: A value that is stored whatever reads it.
        needed: Axis and rows of what is computed.
    """
    made = {node.outputs[0] for node in nodes}
    sizes = {}
    for value, (axis, (begin, end)) in needed.items():
        if value.producer() is not None:
            rows = _nbytes(value) * (end - begin) // shape_of(value)[axis]
            sizes[value] = 0 if value is not result and value in made and _fused(value) else rows
    inside = set(nodes)
    left = {v: sum(use.node in inside for use in v.uses()) for v in sizes}
    live = peak = sum(nbytes for value, nbytes in sizes.items() if value not in made)
    for node in nodes:
        inputs = {v for v in node.inputs if v in sizes}
        for value in inputs:
            left[value] -= sum(v is value for v in node.inputs)
        freed = sum(sizes[v] for v in inputs if left[v] == 0)
        size = sizes.get(node.outputs[0], 0)
        peak = max(peak, live + max(size - freed, 0))
        live += size - freed
    return peak


def _is_product(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "ConvInteger")


def _fused(value: ir.Value) -> bool:
    """Whether only the next operator's kernel sees a value."""
    users = [use.node for use in value.uses()]
    return len(users) == 1 and users[0].op_type in _EPILOGUE


def _nbytes(value: ir.Value) -> int:
    return int(prod(shape_of(value)) * dtype_of(value).itemsize)
