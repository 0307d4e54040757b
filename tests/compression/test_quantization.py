"""Quantization as a step of a compression: options, recipes, together with pruning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from reference import run, snr_db
from small_net import images, small_net

import effc
from effc.compression.options import CompressOptions
from effc.compression.workflow import Compressed, compress_model
from effc.errors import ModelError, UsageError
from effc.frontend import import_model
from effc.passes.graph import const
from effc.passes.pruning.layers import find_layers
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]
DATA = {"x": images(48)}


def compress(**options: Any) -> Compressed:
    options = {"quantize": "int8", "calibration": DATA, **options}
    return compress_model(small_net("batch"), CompressOptions(**options))


def integers(model: onnx.ModelProto) -> dict[str, Array]:
    """Of the weights, by the name of the node that reads them."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node}
    return {
        n.name: constants[made[n.input[1]].input[0]]
        for n in model.graph.node
        if n.op_type in ("Conv", "Gemm") and n.input[1] in made
    }


def test_precision_of_layers(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('quantize = "int8"\n[[layer]]\nmatch = "down"\nprecision = "float"\n')
    done = compress_model(small_net(), CompressOptions(recipe=recipe, calibration=DATA))
    kinds = {layer.name: layer.precision for layer in done.layers}
    assert kinds.pop("down") == "float"
    assert set(kinds.values()) == {"int8"}
    assert "down" not in integers(done.model)
    assert len(integers(done.model)) == len(kinds)


def test_zeros_stay_zeros(tmp_path: Path) -> None:
    """One run prunes and quantizes; the mask is that of pruning alone."""
    options: dict[str, Any] = {"prune": "block-punched", "sparsity": 0.5, "block": "4x2"}
    options["work"] = tmp_path
    both = integers(compress(**options).model)
    alone = compress(**options, quantize=None).model
    pruned = 0
    for layer in find_layers(simplify(import_model(alone, shapes={"x": (1, 3, 8, 8)}))[0])[0]:
        weight = layer.node.inputs[1]
        assert weight is not None
        mask = const(weight) == 0
        assert not both[layer.name][mask].any()
        pruned += int(mask.sum())
    assert pruned > 1000


def test_same_every_time() -> None:
    first, second = (compress().model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "mse", "entropy"])
def test_ranges(ranges: str) -> None:
    x = {"x": images(32, seed=3)}
    got = run(compress(ranges=ranges).model, x)[0]
    assert snr_db(run(small_net("batch"), x)[0], got) > 25


def test_compiles() -> None:
    artifact = effc.compile(small_net(), quantize="int8", calibration=DATA)
    assert artifact.manifest["verification"]["ok"]
    assert "quantize" in [entry["name"] for entry in artifact.manifest["passes"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, "calibration data is needed"),
        ({"quantize": "int3"}, "unknown choice"),
        ({"ranges": "best"}, "unknown choice"),
        ({"rounding": "up"}, "unknown choice"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compress(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[layer]]\nmatch = "down"\nprecision = "int3"', "unknown precision"),
        ('[[layer]]\nmatch = "down"\nactivation_bits = 7', "unknown activation_bits"),
        ('[[layer]]\nmatch = "nothing"\nprecision = "float"', "no layer with weights matches"),
        ('quantise = "int8"', "unknown setting"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    with pytest.raises(UsageError, match=message):
        compress(recipe=recipe)


def test_recipe_without_data(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('quantize = "int8"')
    with pytest.raises(UsageError, match="calibration data is needed"):
        compress(recipe=recipe, quantize=None, calibration=None)


def test_values_that_are_not_finite() -> None:
    bad = images(16)
    bad[3, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        compress(calibration={"x": bad})
