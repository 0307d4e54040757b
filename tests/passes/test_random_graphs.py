"""Random graphs of transposes, element-wise operators, reductions and joins.

The simplified graph computes what the original does, transposes never cost
more than before, and a second simplification changes nothing.
"""

from __future__ import annotations

from math import prod

import onnx
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from reference import assert_equivalent, assert_origins

from effc.frontend import import_model
from effc.passes.registry import PASSES, simplify

PERMS = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3))
UNARY = ("Relu", "Neg", "Abs", "Sigmoid")


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A graph in which every operator reads any earlier values of a fitting shape."""
    nodes: list[onnx.NodeProto] = []
    shapes: dict[str, tuple[int, ...]] = {"x": (1, 2, 3, 4), "z": (1, 3, 4, 2)}
    for step in range(draw(st.integers(3, 14))):
        name = f"v{step}"
        source = draw(st.sampled_from(sorted(shapes)))
        shape = shapes[source]
        alike = [n for n, s in shapes.items() if s == shape]
        kind = draw(st.sampled_from(["t", "t", "t", "u", "u", "b", "b", "c", "s", "p"]))
        if kind == "t":
            perm = draw(st.sampled_from(PERMS))
            nodes.append(helper.make_node("Transpose", [source], [name], perm=perm))
            shapes[name] = tuple(shape[axis] for axis in perm)
        elif kind == "u":
            nodes.append(helper.make_node(draw(st.sampled_from(UNARY)), [source], [name]))
            shapes[name] = shape
        elif kind == "b":
            other = draw(st.sampled_from(alike))
            nodes.append(helper.make_node("Add", [source, other], [name]))
            shapes[name] = shape
        elif kind == "c":
            axis = draw(st.integers(0, 3))
            other = draw(st.sampled_from(alike))
            nodes.append(helper.make_node("Concat", [source, other], [name], axis=axis))
            shapes[name] = tuple(2 * d if a == axis else d for a, d in enumerate(shape))
        elif kind == "s":
            axis = draw(st.integers(-4, 3))
            nodes.append(helper.make_node("Softmax", [source], [name], axis=axis))
            shapes[name] = shape
        else:
            axes = sorted(draw(st.sets(st.integers(0, 3), min_size=1, max_size=2)))
            nodes.append(helper.make_node("ReduceMax", [source], [name], axes=axes, keepdims=1))
            shapes[name] = tuple(1 if a in axes else d for a, d in enumerate(shape))
        if prod(shapes[name]) > 4096:
            break
    read = {name for node in nodes for name in node.input}
    finals = [n for n in shapes if n not in read and n.startswith("v")]
    infos = [helper.make_tensor_value_info(n, 1, shapes[n]) for n in ("x", "z")]
    outs = [helper.make_tensor_value_info(n, 1, shapes[n]) for n in finals]
    graph = helper.make_graph(nodes, "g", infos, outs)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def cost(model: ir.Model) -> int:
    """What transpose placement minimizes: bytes moved, and calls."""
    return sum(
        4096 + 4 * prod(int(d) for d in node.outputs[0].shape or ())
        for node in model.graph
        if node.op_type == "Transpose"
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(graphs())
def test_simplified_random_graphs_compute_the_same(proto: onnx.ModelProto) -> None:
    model = import_model(proto)
    PASSES["remove_dead_code"].run(model)
    PASSES["merge_common_subexpressions"].run(model)
    before = cost(model)
    simplify(model)
    assert_equivalent(proto, model)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert cost(model) <= before
    assert_origins(proto, model)
    _, reports = simplify(model)
    assert not any(r.applied for r in reports)
