"""Unfolded inputs and Hessians; running on many samples, whole or in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference import run
from small_net import images, small_net

from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner, free_batch
from effc.passes.pruning.calibration import hessians, unfold
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.walk import Walk, live_bytes
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]


def samples(count: int) -> list[dict[str, Array]]:
    return [{"x": x[None]} for x in images(count)]


def model(batch: int = 1) -> ir.Model:
    return simplify(import_model(small_net(batch)), ("fold_batch_norm", "canonicalize_gemm"))[0]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.sampled_from([(3, 3), (1, 1), (2, 3), (5,), (1, 2, 2)]),
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
)
def test_weights_times_unfolded_inputs_is_the_convolution(
    groups: int, kernel: tuple[int, ...], stride: int, dilation: int, padded: bool
) -> None:
    rng = np.random.default_rng(0)
    rank = len(kernel)
    weight = rng.standard_normal((4 * groups, 3, *kernel)).astype(np.float32)
    x = rng.standard_normal((2, 3 * groups, *[11] * rank)).astype(np.float32)
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        "conv",
        group=groups,
        strides=[stride] * rank,
        dilations=[dilation] * rank,
        pads=[2] * rank + [1] * rank if padded else [0] * 2 * rank,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (rank + 2))],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (layer,) = find_layers(import_model(proto))[0]
    columns = unfold(layer, x)
    rows = weight.reshape(groups, 4, -1)
    got = rows @ columns.transpose(0, 2, 1)  # [groups, filters, columns]
    expected = np.moveaxis(run(proto, {"x": x})[0], 1, 0).reshape(groups, 4, -1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_hessians_are_second_moments() -> None:
    net = model()
    layers = find_layers(net)[0]
    data = samples(7)
    runner = SampleRunner(net, data)
    assert runner.batched
    whole = dict(hessians(runner, layers))
    alone = dict(hessians(runner, layers, memory=1))  # a run of the model for every layer
    assert list(whole) == list(alone) == layers
    for layer in layers:
        name = layer.node.inputs[0].name
        values = np.concatenate([batch[name] for batch in runner.values([name])])
        columns = unfold(layer, values).astype(np.float64)
        expected = 2 * columns.transpose(0, 2, 1) @ columns / columns.shape[1]
        np.testing.assert_allclose(whole[layer], expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(whole[layer], alone[layer], rtol=1e-5, atol=1e-7)


def test_a_share_of_the_positions() -> None:
    net = model()
    layer = find_layers(net)[0][0]
    x = images(4)
    rng = np.random.default_rng(0)
    part = unfold(layer, x, 0.25, rng)
    assert part.shape == (1, 64, 27)
    rows = {row.tobytes() for row in unfold(layer, x)[0]}
    assert all(row.tobytes() in rows for row in part[0])


def test_batches_give_what_single_runs_give() -> None:
    net = model()
    data = samples(5)
    names = ["r1", "flat", "x"]
    together = SampleRunner(net, data)
    single = SampleRunner(net, data[:1])
    assert together.batched
    assert not single.batched
    batched = {n: np.concatenate([b[n] for b in together.values(names)]) for n in names}
    for index, sample in enumerate(data):
        one = next(SampleRunner(net, [sample]).values(names))
        for name in names:
            np.testing.assert_allclose(batched[name][index], one[name][0], rtol=1e-4, atol=1e-5)


def test_graphs_that_mix_samples_stay_as_they_are() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4] x) => (float[1,4] y) {
          m = ReduceMean<axes=[0], keepdims=1>(x)  y = Sub(x, m) }"""
    )
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 4)).astype(np.float32)} for _ in range(3)]
    net = import_model(proto)
    assert free_batch(net, data) is None
    runner = SampleRunner(net, data)
    assert [batch["x"].shape for batch in runner.inputs()] == [(1, 4)] * 3


@pytest.mark.parametrize("batch", [1, 2])
def test_walk_computes_what_the_whole_model_does(batch: int) -> None:
    net = model(batch)
    data = [{"x": images(batch, seed)} for seed in range(3)]
    stops = [layer.node.outputs[0].name or "" for layer in find_layers(net)[0]]
    runner = SampleRunner(net, data)
    walk = Walk(runner, stops)
    for stop in stops:
        assert walk.advance() == stop
        expected = np.concatenate([b[stop] for b in runner.values([stop])])
        np.testing.assert_allclose(
            np.concatenate(walk.values[stop]), expected, rtol=1e-4, atol=1e-5
        )
    assert set(walk.values) == {stops[-1]}
    assert max(live_bytes(net)) >= 2 * 4 * 16 * 64 * batch
