"""Layers are found with their roles; the pass puts zeros where it says."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from reference import random_feeds, run

from effc.frontend import import_model
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.prune_weights import PruneWeights, Setting
from effc.passes.pruning.scheme import Scheme

NET = """g (float[1,3,8,8] x, float[8,3,3,3] w0, float[8,1,3,3] w1, float[12,8,1,1] w2,
  float[12,6,3,3] w3, float[12,10] w4, float[10,10] w5, float[10,10] w5b, float[5,10] w6,
  float[5] b6) => (float[1,5] y) {
  n = Neg(x)
  a = Conv<pads=[1,1,1,1]>(n, w0)
  b = Conv<group=8, pads=[1,1,1,1]>(a, w1)
  c = Conv(b, w2)
  d = Conv<group=2, pads=[1,1,1,1]>(c, w3)
  e = GlobalAveragePool(d)
  f = Flatten(e)
  h = MatMul(f, w4)
  i = Relu(h)
  j = Gemm(i, w5)
  k = Gemm(j, w5b)
  y = Gemm<transB=1>(k, w6, b6)
}"""


def network() -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{NET}')
    rng = np.random.default_rng(0)
    constants = {
        value.name: rng.standard_normal(
            [d.dim_value for d in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in proto.graph.input[1:]
    }
    return import_model(proto, constants=constants)


def by_op(layers: list[Layer]) -> dict[str, Layer]:
    return {layer.node.outputs[0].name or "": layer for layer in layers}


def test_layers_and_roles() -> None:
    layers, refused = find_layers(network())
    found = {name: (layer.shape, layer.groups, layer.role) for name, layer in by_op(layers).items()}
    assert found == {
        "a": ((8, 3, 3, 3), 1, "first"),
        "b": ((8, 1, 3, 3), 8, "depthwise"),
        "c": ((12, 8, 1, 1), 1, "inner"),
        "d": ((12, 6, 3, 3), 2, "inner"),
        "h": ((10, 12), 1, "inner"),
        "j": ((10, 10), 1, "inner"),
        "k": ((10, 10), 1, "inner"),
        "y": ((5, 10), 1, "output"),
    }
    assert not refused


def test_shared_and_computed_weights_are_refused() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x, float[4,4] v) => (float[2,4] y) <float[4,4] w = {1,0,0,0, 0,1,0,0,
           0,0,1,0, 0,0,0,1}> { a = MatMul(x, w)  b = MatMul(a, w)  y = MatMul(b, v) }"""
    )
    layers, refused = find_layers(import_model(proto))
    assert not layers
    assert [why for _, why in refused] == [
        "other nodes read its weights as well",
        "other nodes read its weights as well",
        "its weights are not constant",
    ]


@pytest.mark.parametrize("value", ["c", "d", "h", "j", "y"])
def test_filters_come_first_whatever_the_operator(value: str) -> None:
    """A filter of zeros gives an output channel of nothing but the bias."""
    model = network()
    layer = by_op(find_layers(model)[0])[value]
    weight = layer.weight().copy()
    weight[3] = 0
    layer.set_weight(weight)
    shifted = layer.node.op_type != "MatMul"
    if shifted:
        layer.set_bias(np.arange(layer.shape[0], dtype=np.float64))
    tapped = model.clone()
    graph = tapped.graph
    out = next(v for n in graph for v in n.outputs if v.name == value)
    graph.outputs[:] = [out]
    result = run(tapped, random_feeds(tapped))[0]
    expected = 3.0 if shifted else 0.0
    np.testing.assert_allclose(result[:, 3], expected, atol=1e-6)
    assert np.abs(result[:, 2] - 2).max() > 1e-3


def test_zeros_and_log() -> None:
    model = network()
    layers = by_op(find_layers(model)[0])
    names = {value: layer.name for value, layer in layers.items()}
    half = Setting(Scheme("block-punched", (4, 2)), 0.5)
    settings = {
        names["c"]: half,
        names["d"]: Setting(Scheme("pattern", (1, 1))),
        names["j"]: half,
        names["h"]: Setting(Scheme("pattern", (1, 1))),
        names["k"]: Setting(Scheme("block-punched", (1, 1)), 0.0),
    }
    task = PruneWeights(settings)
    result = task.run(model)
    assert result.modified
    assert set(result.applied) == {names["c"], names["d"], names["j"]}
    assert result.refused == ((names["h"], "patterns are for 3x3 kernels, it has no kernel"),)
    after = {value: layer.weight() for value, layer in by_op(find_layers(model)[0]).items()}
    assert np.mean(after["c"] == 0) == 0.5
    assert np.mean(after["d"] == 0) == pytest.approx(5 / 9)
    assert np.mean(after["j"] == 0) == pytest.approx(0.5, abs=0.0201)
    assert np.count_nonzero(after["k"]) == 100
    assert task.results[names["c"]].sparsity == 0.5
    assert 0 < task.results[names["c"]].loss < 0.5
    assert np.isfinite(run(model, random_feeds(model))[0]).all()
    again = PruneWeights({names["c"]: half}).run(model)
    assert again.applied == (names["c"],)
    np.testing.assert_array_equal(by_op(find_layers(model)[0])["c"].weight(), after["c"])
