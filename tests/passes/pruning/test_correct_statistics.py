"""After correction every layer output has the dense model's mean and deviation; zeros stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_net import images, small_net

from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.correct_statistics import CorrectStatistics, enough_samples
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.prune_weights import PruneWeights, Setting
from effc.passes.pruning.scheme import Scheme
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]
DATA = [{"x": x[None]} for x in images(40)]


def models(sparsity: float = 0.25) -> tuple[ir.Model, ir.Model]:
    """Dense and pruned."""
    dense = simplify(import_model(small_net()), ("fold_batch_norm", "canonicalize_gemm"))[0]
    pruned = dense.clone()
    setting = Setting(Scheme("block-punched", (1, 1)), sparsity)
    names = [layer.name for layer in find_layers(pruned)[0] if layer.role == "inner"]
    PruneWeights(dict.fromkeys(names, setting)).run(pruned)
    return dense, pruned


def statistics(model: ir.Model, names: list[str]) -> dict[str, tuple[Array, Array]]:
    runner = SampleRunner(model, DATA)
    found = {}
    for name in names:
        values = np.concatenate([batch[name] for batch in runner.values([name])])
        rows = np.moveaxis(values, 1, -1).reshape(-1, values.shape[1]).astype(np.float64)
        found[name] = rows.mean(axis=0), rows.std(axis=0)
    return found


@pytest.mark.parametrize("bias_only", [False, True])
def test_moments_match(bias_only: bool) -> None:
    dense, pruned = models()
    zeros = {layer.name: layer.weight() == 0 for layer in find_layers(pruned)[0]}
    result = CorrectStatistics(dense, DATA, bias_only=bias_only).run(pruned)
    layers = find_layers(pruned)[0]
    changed = [layer for layer in layers if layer.name not in ("first", "deep")]
    assert list(result.applied) == [layer.name for layer in changed]
    assert not result.refused
    names = [layer.node.outputs[0].name or "" for layer in changed]
    before, after = statistics(dense, names), statistics(pruned, names)
    for name in names:
        np.testing.assert_allclose(after[name][0], before[name][0], atol=1e-3)
        if not bias_only:
            np.testing.assert_allclose(after[name][1], before[name][1], rtol=1e-2, atol=1e-3)
    for layer in layers:
        np.testing.assert_array_equal(layer.weight() == 0, zeros[layer.name])


def test_nothing_changed_nothing_corrected() -> None:
    dense, _ = models()
    result = CorrectStatistics(dense, DATA).run(dense.clone())
    assert not result.modified
    assert not result.applied


def test_channels_that_hardly_vary_are_not_scaled() -> None:
    dense, pruned = models()
    for model in (dense, pruned):
        layer = next(found for found in find_layers(model)[0] if found.name == "down")
        weight = layer.weight().copy()
        weight[3] *= 1e-6
        layer.set_weight(weight)
    CorrectStatistics(dense, DATA).run(pruned)
    layer = next(found for found in find_layers(pruned)[0] if found.name == "down")
    assert np.abs(layer.weight()[3]).max() < 1e-4


def test_the_add_behind_a_matmul_is_its_bias() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,5,6] x, float[6,8] w, float[8] b, float[8,4] v) => (float[1,5,4] y) {
          m = MatMul(x, w)  a = Add(b, m)  r = Relu(a)  y = MatMul(r, v) }"""
    )
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 8), "b": (8,), "v": (8, 4)}
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    dense = import_model(proto, constants=constants)
    data = [{"x": rng.standard_normal((1, 5, 6)).astype(np.float32)} for _ in range(30)]
    pruned = dense.clone()
    first = find_layers(pruned)[0][0]
    weight = first.weight().copy()
    weight[:, :1] = 0
    first.set_weight(weight)
    result = CorrectStatistics(dense, data).run(pruned)
    assert result.applied == (first.name,)
    assert [why for _, why in result.refused] == ["its bias is no constant per output channel"]
    old, new = (
        np.concatenate([b["a"] for b in SampleRunner(m, data).values(["a"])])
        for m in (dense, pruned)
    )
    np.testing.assert_allclose(new.mean(axis=(0, 1)), old.mean(axis=(0, 1)), atol=1e-4)
    np.testing.assert_allclose(new.std(axis=(0, 1)), old.std(axis=(0, 1)), rtol=1e-3)


def test_samples_are_limited_by_memory() -> None:
    dense, _ = models()
    assert enough_samples(dense, 1000) == 1000
    assert enough_samples(dense, 1000, memory=1 << 20) < 100
    assert enough_samples(dense, 1000, memory=1) == 16
