"""Channels without effect go, and the function stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from channel_graphs import Builder, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import run
from test_remove_channels import choose, integer_feeds

from effc.frontend import import_model
from effc.passes.pruning.channel_groups import find_channels
from effc.passes.pruning.remove_channels import mask_channels
from effc.passes.pruning.remove_dead_channels import RemoveDeadChannels


def zero_filters(model: ir.Model, seed: int, share: float) -> None:
    """Set some filters (rows of weights) to zero."""
    rng = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.ndim == 4 and array.dtype.kind == "f":
            array = np.where(rng.random((len(array), 1, 1, 1)) < share, np.float32(0), array)
            value.const_value = ir.tensor(array, name=value.name)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(graphs(), st.integers(0, 2**16), st.booleans())
def test_graphs_with_dead_channels_compute_the_same(
    proto: onnx.ModelProto, seed: int, filters: bool
) -> None:
    model = import_model(proto)
    if filters:
        zero_filters(model, seed, 0.5)
    else:
        channels = find_channels(model.graph)
        mask_channels(model.graph, channels, choose(channels, seed))
    feeds = integer_feeds(model)
    expected = run(model, feeds)
    RemoveDeadChannels().run(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for a, b in zip(expected, run(model, feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not RemoveDeadChannels().run(model).modified


def test_masked_channels_are_recognised() -> None:
    model = import_model(Builder(1).example())
    channels = find_channels(model.graph)
    removed = choose(channels, 0)
    mask_channels(model.graph, channels, removed)
    left = sum(len(group.channels) for group in channels.groups) - len(removed)
    result = RemoveDeadChannels().run(model)
    assert result.modified
    assert sum(len(group.channels) for group in find_channels(model.graph).groups) == left


def test_constants_go_into_the_readers_bias() -> None:
    """A filter without weights: its bias passes an activation and pooling, and is folded."""
    b = Builder(4)
    b.weight = lambda *shape: b.const(np.ones(shape, np.float32))  # type: ignore[method-assign]
    first = b.conv("x", 4, 1)
    pooled = b.op("GlobalMaxPool", [b.op("Relu", [first], (1, 4, 6, 6))], (1, 4, 1, 1))
    model = import_model(b.model([b.classify(pooled)]))
    conv = model.graph[0]
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = np.array(weight.const_value.numpy())
    array[[0, 2]] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    feeds = integer_feeds(model)
    expected = run(model, feeds)[0]
    result = RemoveDeadChannels().run(model)
    assert result.applied == (conv.name,)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    assert gemm.inputs[1] is not None
    assert gemm.inputs[2] is not None
    assert gemm.inputs[2].const_value is not None
    assert list(gemm.inputs[1].shape or ()) == [5, 2]
    np.testing.assert_array_equal(gemm.inputs[2].const_value.numpy(), np.full(5, 3))
    np.testing.assert_array_equal(run(model, feeds)[0], expected)


def test_constants_that_meet_padding_stay() -> None:
    b = Builder(4)
    b.weight = lambda *shape: b.const(np.ones(shape, np.float32))  # type: ignore[method-assign]
    model = import_model(b.model([b.conv(b.conv("x", 4, 1), 3, 3)]))
    weight = model.graph[0].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    array = np.array(weight.const_value.numpy())
    array[1] = 0
    weight.const_value = ir.tensor(array, name=weight.name)
    assert not RemoveDeadChannels().run(model).modified
