"""Refitted layers: least squares on what they read, zeros stay, residual sums come out right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from reference import run
from small_net import images, small_net

from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import unfold
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.prune_weights import PruneWeights, Setting
from effc.passes.pruning.refit_layers import refit_layers
from effc.passes.pruning.scheme import Scheme
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]
DATA = [{"x": x[None]} for x in images(40)]
HELD_OUT = [{"x": x[None]} for x in images(16, seed=1)]


def models(sparsity: float, *names: str) -> tuple[ir.Model, ir.Model]:
    """Dense and pruned: all inner layers or the named ones."""
    dense = simplify(import_model(small_net()), ("fold_batch_norm", "canonicalize_gemm"))[0]
    pruned = dense.clone()
    setting = Setting(Scheme("block-punched", (4, 1)), sparsity)
    chosen = names or [x.name for x in find_layers(pruned)[0] if x.role == "inner"]
    PruneWeights(dict.fromkeys(chosen, setting)).run(pruned)
    return dense, pruned


def layers_of(model: ir.Model) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model)[0]}


def whole(model: ir.Model) -> dict[str, Array]:
    return {name: np.ones(layer.shape[0], bool) for name, layer in layers_of(model).items()}


def error(model: ir.Model, dense: ir.Model) -> float:
    pairs = ((run(model, sample)[0], run(dense, sample)[0]) for sample in HELD_OUT)
    return float(np.mean([np.square(got - wanted).mean() for got, wanted in pairs]))


@pytest.mark.parametrize("sparsity", [0.03, 0.5, 0.75])
def test_zeros_stay_and_outputs_come_nearer(sparsity: float) -> None:
    dense, pruned = models(sparsity)
    zeros = {name: layer.weight() == 0 for name, layer in layers_of(pruned).items()}
    before = error(pruned, dense)
    errors = refit_layers(pruned, dense, DATA, whole(dense), zeros=zeros)
    assert all(0 <= left < 1 for left in errors.values())
    assert error(pruned, dense) < before / 2
    for name, layer in layers_of(pruned).items():
        np.testing.assert_array_equal(layer.weight() == 0, zeros[name])


def test_each_filter_is_a_least_squares_solution_on_its_columns() -> None:
    dense, pruned = models(0.5, "down")
    errors = refit_layers(pruned, dense, DATA, whole(dense), zeros=["down"])
    before, layer = layers_of(dense)["down"], layers_of(pruned)["down"]
    value = layer.node.inputs[0]
    assert value is not None
    name = value.name or ""
    inputs = np.concatenate([batch[name] for batch in SampleRunner(dense, DATA).values([name])])
    columns = unfold(layer, inputs)[0].astype(np.float64)
    rows = layer.weight().reshape(layer.shape[0], -1)
    wanted = columns @ before.weight().reshape(rows.shape).T.astype(np.float64)
    best = 0.0
    for filter_, row in enumerate(rows):
        design = np.concatenate([columns[:, row != 0], np.ones((len(columns), 1))], axis=1)
        solution = np.linalg.lstsq(design, wanted[:, filter_], rcond=None)[0]
        best += float(np.square(wanted[:, filter_] - design @ solution).sum())
    best /= float(np.square(wanted - wanted.mean(axis=0)).sum())
    assert best * 0.999 <= errors["down"] <= best * 1.02


def test_layers_before_the_first_change_stay() -> None:
    dense, pruned = models(0.5, "down")
    errors = refit_layers(pruned, dense, DATA, whole(dense), zeros=["down"])
    order = list(layers_of(dense))
    assert list(errors) == order[order.index("down") :]
    for name in order[: order.index("down")]:
        old, new = layers_of(dense)[name], layers_of(pruned)[name]
        np.testing.assert_array_equal(old.weight(), new.weight())


def test_with_little_memory_later_layers_see_more_samples() -> None:
    dense, pruned = models(0.5)
    before = error(pruned, dense)
    seen: list[int] = []
    zeros = set(layers_of(dense))
    refit_layers(
        pruned,
        dense,
        DATA * 4,
        whole(dense),
        zeros=zeros,
        memory=1 << 20,
        tick=lambda done, *_: seen.append(done),
    )
    assert seen == list(range(1, len(seen) + 1))
    assert error(pruned, dense) < before / 2


def test_accidental_zeros_do_not_matter() -> None:
    dense, pruned = models(0.5, "down")
    for model in (dense, pruned):
        layer = layers_of(model)["fc"]
        weight = np.array(layer.weight())
        weight[0, :10] = 0
        layer.set_weight(weight)
    refit_layers(pruned, dense, DATA, whole(dense), zeros=["down"])
    assert layers_of(pruned)["fc"].weight()[0, :10].any()


def test_channels_that_are_almost_constant() -> None:
    """Clipped activations: variances far below the mean squares."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,24,24] x, float[32,4,1,1] a, float[32] b, float[32,1,3,3] d,
           float[8,32,1,1] p) => (float[1,8,22,22] y) {
          s = Conv(x, a, b)  c = Constant<value_float = 0.0>()  t = Constant<value_float = 5.9>()
          r = Clip(s, c, t)  e = Conv<group = 32>(r, d)  q = Clip(e, c, t)  y = Conv(q, p) }"""
    )
    shapes = {"a": (32, 4, 1, 1), "b": (32,), "d": (32, 1, 3, 3), "p": (8, 32, 1, 1)}
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    constants["b"] = np.linspace(4, 40, 32, dtype=np.float32)
    dense = import_model(proto, constants=constants)
    pruned = dense.clone()
    layers = find_layers(pruned)[0]
    layers[0].set_weight(layers[0].weight() * (np.arange(4) < 2)[:, None, None])
    data = [{"x": rng.random((1, 4, 24, 24), np.float32)} for _ in range(64)]
    errors = refit_layers(pruned, dense, data, whole(dense), zeros=[layers[0].name])
    assert len(errors) == 3
    for layer in find_layers(pruned)[0]:
        assert np.isfinite(layer.weight()).all()
        assert np.abs(layer.weight()).max() < 100
