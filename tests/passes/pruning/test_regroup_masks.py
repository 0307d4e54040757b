"""Arbitrary masks become blocks of the same density, or are refused with the loss."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_net import small_net

from effc.frontend import import_model
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.project import project
from effc.passes.pruning.regroup_masks import RegroupMasks, regroup
from effc.passes.pruning.scheme import Scheme


def layers(model: ir.Model) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model)[0]}


def test_blocks_with_a_few_stray_weights() -> None:
    """A mask that nearly is of blocks becomes one, at the density it had."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 8, 3, 3)).astype(np.float32)
    blocks = project(weight, Scheme("block-punched", (8, 4)), 0.5)
    stray = np.flatnonzero(blocks == 0)[::97]
    blocks.reshape(-1)[stray] = 1e-3
    found = regroup(blocks, (8, 4))
    units = (found.weight != 0).reshape(2, 8, 2, 4, 9).sum(axis=(1, 3))
    assert set(np.unique(units)) <= {0, 32}
    assert found.loss < 1e-6
    again = regroup(found.weight, (8, 4))
    assert again.loss == 0
    np.testing.assert_array_equal(again.weight, found.weight)


def test_refusal_names_the_loss() -> None:
    model = import_model(small_net())
    chosen = layers(model)
    point, down = chosen["point"], chosen["down"]
    random = point.weight().copy()
    random[np.random.default_rng(0).random(random.shape) < 0.5] = 0
    point.set_weight(random)
    block = project(down.weight(), Scheme("block-punched", (4, 4)), 0.5)
    block[0, 0, 0, 0] = 1e-4
    down.set_weight(block)
    skipped = project(chosen["fc"].weight(), Scheme("block-punched", (1, 1)), 0.5)
    chosen["fc"].set_weight(skipped)
    task = RegroupMasks((4, 4), skip={"fc"})
    result = task.run(model)
    assert result.applied == ("down",)
    ((name, why),) = result.refused
    assert name == "point"
    assert "4x4 blocks would lose" in why
    assert "more than 5.0%" in why
    np.testing.assert_array_equal(layers(model)["point"].weight(), random)
    np.testing.assert_array_equal(layers(model)["fc"].weight(), skipped)
    assert not RegroupMasks((4, 4)).run(import_model(small_net())).modified
