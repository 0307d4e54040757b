"""Grouping of nodes into regions: coverage, single exits, order, refusals."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.kernels.region import Region
from effc.regions import Graph, partition

ELEMENTWISE = ("Add", "Mul", "Relu", "Sigmoid", "Softplus", "Tanh")


def graph_of(text: str) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> agraph {text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def group(text: str, accepts: object = None) -> Graph:
    return partition(graph_of(text), ELEMENTWISE, accepts or (lambda region: True))


def kinds(graph: Graph) -> list[list[str]]:
    return [[op.op_type for op in region.ops] for region in graph.regions]


def test_mish_behind_a_pool_is_one_region() -> None:
    graph = group(
        """(float[1,2,8,8] x) => (float[1,2,4,4] y) {
            p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
            s = Softplus(p)
            t = Tanh(s)
            y = Mul(p, t)
        }"""
    )
    assert kinds(graph) == [["MaxPool", "Softplus", "Tanh", "Mul"]]
    region = graph.regions[0]
    assert region.anchor is region.ops[0]
    assert [v.name for v in region.inputs] == ["x"]
    assert [v.name for v in region.outputs] == ["y"]


def test_the_last_branch_takes_the_sum() -> None:
    graph = group(
        """(float[1,2,4,4] x) => (float[1,2,4,4] y) {
            a = MaxPool<kernel_shape=[1,1]>(x)
            b = AveragePool<kernel_shape=[1,1]>(x)
            c = Add(a, b)
            y = Relu(c)
        }"""
    )
    assert kinds(graph) == [["MaxPool"], ["AveragePool", "Add", "Relu"]]
    assert [v.name for v in graph.regions[1].inputs] == ["x", "a"]


def test_a_value_used_outside_ends_the_region() -> None:
    graph = group(
        """(float[1,2,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z) {
            a = MaxPool<kernel_shape=[1,1]>(x)
            z = Relu(a)
            y = Sigmoid(z)
        }"""
    )
    assert kinds(graph) == [["MaxPool", "Relu"], ["Sigmoid"]]
    assert graph.regions[1].anchor is None


def test_a_branch_that_leaves_and_comes_back_is_not_fused() -> None:
    # Add needs the pool of the first region's own result: fusing it would be a cycle.
    graph = group(
        """(float[1,2,4,4] x) => (float[1,2,4,4] y) {
            a = MaxPool<kernel_shape=[1,1]>(x)
            b = AveragePool<kernel_shape=[1,1]>(a)
            y = Add(a, b)
        }"""
    )
    assert kinds(graph) == [["MaxPool"], ["AveragePool", "Add"]]


def test_broadcast_that_enlarges_is_not_an_epilogue() -> None:
    graph = group(
        """(float[1,2,4,4] x, float[1,2,1,1] w) => (float[1,2,4,4] y) {
            a = MaxPool<kernel_shape=[1,1]>(w)
            y = Mul(x, a)
        }"""
    )
    assert kinds(graph) == [["MaxPool"], ["Mul"]]


def test_refused_groups_shrink() -> None:
    def accepts(region: Region) -> bool:
        return all(op.op_type != "Tanh" for op in region.ops)

    graph = group(
        """(float[1,2,4,4] x) => (float[1,2,4,4] y) {
            a = MaxPool<kernel_shape=[1,1]>(x)
            b = Relu(a)
            y = Tanh(b)
        }""",
        accepts,
    )
    assert kinds(graph) == [["MaxPool", "Relu"], ["Tanh"]]


def test_outputs_that_are_inputs_or_doubled_get_an_identity() -> None:
    graph = group(
        """(float[2,2] x) => (float[2,2] y, float[2,2] x, float[2,2] y) {
            y = Relu(x)
        }"""
    )
    assert graph.outputs[0].name == "y"
    assert len({id(v) for v in graph.outputs}) == 3
    assert kinds(graph).count(["Identity"]) == 2


def test_signature_ignores_names_and_weights() -> None:
    graph = group(
        """(float[1,2,4,4] x) => (float[1,2,4,4] y) {
            a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)
            b = Relu(a)
            c = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(b)
            y = Relu(c)
        }"""
    )
    first, second = graph.regions
    assert first.signature == second.signature
    assert first.key == second.key
    assert first.name != second.name


@st.composite
def random_dags(draw: st.DrawFn) -> str:
    """A model of unary and binary operators over one shape, with random wiring."""
    names = ["x"]
    lines = []
    for i in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from([*ELEMENTWISE, "Pool"]))
        first, second = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        if kind == "Pool":
            lines.append(f"v{i} = MaxPool<kernel_shape=[1,1]>({first})")
        elif kind in ("Add", "Mul"):
            lines.append(f"v{i} = {kind}({first}, {second})")
        else:
            lines.append(f"v{i} = {kind}({first})")
        names.append(f"v{i}")
    shape = "float[1,2,4,4]"
    return f"({shape} x) => ({shape} {names[-1]}) {{ {chr(10).join(lines)} }}"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(random_dags())
def test_regions_cover_every_node_once_in_a_valid_order(text: str) -> None:
    model = graph_of(text)
    graph = partition(model, ELEMENTWISE, lambda region: True)
    names = [op.outputs[0].name for region in graph.regions for op in region.ops]
    assert sorted(names) == sorted(v.name for node in model.graph for v in node.outputs)
    written = {v.name for v in graph.inputs}
    for region in graph.regions:
        assert all(v.name in written for v in region.inputs)
        assert len(region.outputs) == 1
        written.update(v.name for v in region.outputs)
    assert all(v.name in written for v in graph.outputs)


@pytest.mark.parametrize("count", [3, 80])
def test_long_chains_are_cut(count: int) -> None:
    lines = "\n".join(f"v{i + 1} = Relu(v{i})" for i in range(count))
    graph = group(f"(float[2] v0) => (float[2] v{count}) {{ {lines} }}")
    assert sum(len(region.ops) for region in graph.regions) == count
    assert len(graph.regions) == -(-count // 32)
