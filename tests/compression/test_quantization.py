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
        ({"widen": "int12"}, "unknown choice"),
        ({"max_drop": -1.0}, "out of range"),
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
        ("max_drop = 101", "out of range"),
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


def hard_net() -> onnx.ModelProto:
    """Whose ``point`` has one channel of huge results, which ``down`` hardly reads."""
    model = small_net("batch")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "s":
            array[3] *= 1000
        elif tensor.name == "down_w":
            array[:, 3] *= 1e-3
        elif tensor.name == "first_w":
            array[3] = 0
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    graph = model.graph
    del graph.node[9:]  # up to the Relu behind down
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("r2", 1, ["batch", 24, 4, 4]))
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model


@pytest.mark.parametrize("widen", ["float", "int16"])
def test_few_operators_are_widened(widen: str) -> None:
    options: dict[str, Any] = {
        "quantize": "int8",
        "calibration": {"x": images(96)},
        "max_drop": 1.0,
    }
    done = compress_model(hard_net(), CompressOptions(**options, widen=widen))
    record = next(entry for entry in done.passes if entry.name == "quantize").settings
    assert record["loss_percent_int8"] > 10
    assert record["loss_percent"] <= 1
    assert record["loss_samples"] == 24
    assert 0 < len(record["widened"]) < (4 if widen == "float" else 6)
    assert {"int8", "int8, values int16"} & {layer.precision for layer in done.layers}
    assert done.model.opset_import[0].version == (20 if widen == "float" else 21)
    x = images(64, seed=5)
    expected, got = run(hard_net(), {"x": x})[0], run(done.model, {"x": x})[0]
    assert snr_db(expected, got) > 18
    effc.compile(done.model, shapes={"x": (1, 3, 8, 8)})


def test_nothing_is_widened_without_need() -> None:
    done = compress(max_drop=60.0)
    record = next(entry for entry in done.passes if entry.name == "quantize").settings
    assert record["widened"] == []


def test_max_drop_needs_samples() -> None:
    with pytest.raises(UsageError, match="too few samples"):
        compress(max_drop=1.0, samples=16)


def test_values_that_are_not_finite() -> None:
    bad = images(16)
    bad[3, 0, 0, 0] = np.inf
    with pytest.raises(ModelError, match="not finite"):
        compress(calibration={"x": bad})
