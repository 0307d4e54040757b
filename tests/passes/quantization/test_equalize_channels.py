"""The float function stays, to the last bit; channels become alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from reference import run, snr_db
from small_net import images, small_net

import effc
from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner
from effc.passes.quantization.equalize_channels import (
    EqualizeChannels,
    channel_ranges,
    find_pairs,
)
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]
X = images(32)


def equalized(model: ir.Model) -> EqualizeChannels:
    runner = SampleRunner(model, [{"x": x[None]} for x in X])
    task = EqualizeChannels(channel_ranges(runner, find_pairs(model)))
    task.run(model)
    return task


def uneven(op: str, seed: int = 0) -> onnx.ModelProto:
    """Channels that differ by factors of thousands between layers that do not mind."""
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.uniform(-4, 4, 8)).astype(np.float32)
    weights: dict[str, Array] = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "b1": rng.standard_normal(8).astype(np.float32),
        "wd": rng.standard_normal((8, 1, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((6, 8, 1, 1)).astype(np.float32),
        "lo": np.float32(0),
        "hi": np.float32(6),
        "slope": rng.uniform(0, 1, (8, 1, 1)).astype(np.float32),
    }
    weights["w1"] *= spread[:, None, None, None]
    weights["b1"] *= spread
    weights["wd"] /= spread[:, None, None, None]
    extra = {"Clip": ["lo", "hi"], "PRelu": ["slope"]}.get(op, [])
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "one", pads=[1] * 4),
        helper.make_node(op, ["a", *extra], ["ra"], "f"),
        helper.make_node("Conv", ["ra", "wd"], ["d"], "deep", pads=[1] * 4, group=8),
        helper.make_node(op, ["d", *extra], ["rd"], "g"),
        helper.make_node("Conv", ["rd", "w2"], ["y"], "two"),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "uneven",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 6, 8, 8])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items() if n in used],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("op", ["Relu", "LeakyRelu", "PRelu"])
def test_function_stays(op: str) -> None:
    model = simplify(import_model(uneven(op), shapes={"x": (1, 3, 8, 8)}))[0]
    before = [run(model, {"x": x[None]})[0] for x in X[:4]]
    task = equalized(model)
    after = [run(model, {"x": x[None]})[0] for x in X[:4]]
    np.testing.assert_array_equal(after, before)
    for values in task.ranges.values():
        assert values.max() / values.min() < 100


def test_pairs() -> None:
    """Residuals, grouped convolutions and shared values keep layers apart."""
    model = simplify(import_model(small_net()))[0]
    names = {(pair.first.name, pair.second.name) for pair in find_pairs(model)}
    assert ("deep", "point") in names
    assert not any("grouped" in pair or "first" in pair for pair in names)
    before = run(model, {"x": X[:1]})[0]
    equalized(model)
    np.testing.assert_array_equal(run(model, {"x": X[:1]})[0], before)


def test_clip_is_left_alone() -> None:
    model = simplify(import_model(uneven("Clip"), shapes={"x": (1, 3, 8, 8)}))[0]
    assert not find_pairs(model)
    result = EqualizeChannels({}).run(model)
    assert not result.modified
    assert [where for where, _ in result.refused] == ["one", "deep"]


def test_it_helps() -> None:
    model = uneven("Relu")
    expected = run(model, {"x": X})[0]
    quality = {}
    for equalize in (False, True):
        made = effc.compress(model, quantize="int8", calibration={"x": X}, equalize=equalize)
        quality[equalize] = snr_db(expected, run(made, {"x": X})[0])
    assert quality[True] > quality[False] + 3
