"""Integer weights of float layers: errors within half a step, sizes, what others can read."""

from __future__ import annotations

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
from effc.errors import UsageError
from effc.frontend import import_model
from effc.passes.pruning.layers import find_layers
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]
DATA = {"x": images(64)}
MODES: list[dict[str, Any]] = [
    {"quantize": "int8-weights"},
    {"quantize": "int8-weights", "group": 16},
    {"quantize": "int4-weights"},
    {"quantize": "int4-weights", "group": 5},
]


def compress(**options: Any) -> Compressed:
    return compress_model(small_net("batch"), CompressOptions(**options))


def weights(model: onnx.ModelProto) -> dict[str, Array]:
    """What layers compute with, by name, as matrices of filters."""
    imported = simplify(import_model(model, shapes={"x": (1, 3, 8, 8)}))[0]
    return {x.name: x.weight().reshape(x.shape[0], -1) for x in find_layers(imported)[0]}


@pytest.mark.parametrize("options", MODES)
def test_rounded_alone(options: dict[str, Any]) -> None:
    """Without samples each weight is within half a step, or clipped to lessen the error."""
    exact = weights(small_net("batch"))
    found = weights(compress(**options, rounding="nearest").model)
    most = 127 if options["quantize"] == "int8-weights" else 7
    size = options.get("group", 32 if most == 7 else 10**6)
    for name, matrix in exact.items():
        for start in range(0, matrix.shape[1], size):
            part = slice(start, start + size)
            steps = np.abs(matrix[:, part]).max(axis=1, keepdims=True) / most
            error = np.abs(found[name][:, part] - matrix[:, part])
            assert (error <= steps * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("options", MODES)
def test_samples_help(options: dict[str, Any]) -> None:
    x = {"x": images(64, seed=5)}
    expected = run(small_net("batch"), x)[0]
    alone = compress(**options, rounding="nearest").model
    fitted = compress(**options, calibration=DATA).model
    onnx.checker.check_model(fitted, full_check=True)
    quality = [snr_db(expected, run(model, x)[0]) for model in (alone, fitted)]
    assert quality[1] > quality[0] + 3
    assert quality[1] > (40 if options["quantize"] == "int8-weights" else 18)
    assert fitted.opset_import[0].version == (20 if options == MODES[0] else 21)


@pytest.mark.parametrize(("options", "share"), [(MODES[0], 0.27), (MODES[2], 0.16)])
def test_sizes(options: dict[str, Any], share: float) -> None:
    """A quarter of float weights, or an eighth and a scale per 32."""
    model = compress(**options).model
    tensors = {t.name: t for t in model.graph.initializer}
    stored = plain = 0
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            stored += sum(len(tensors[name].raw_data) for name in node.input)
            plain += 4 * int(np.prod(tensors[node.input[0]].dims))
    assert plain > 20_000
    assert stored < share * plain + 4 * 200  # scales of small filters


def test_zeros_stay_and_layers_stay_float(tmp_path: Any) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[layer]]\nmatch = "down"\nprecision = "float"\n')
    options: dict[str, Any] = {"prune": "unstructured", "sparsity": 0.6, "work": tmp_path}
    options |= {"calibration": DATA, "recipe": recipe}
    pruned = weights(compress(**options).model)
    both = compress(**options, quantize="int4-weights")
    for name, matrix in weights(both.model).items():
        assert not matrix[pruned[name] == 0].any()
    precisions = {layer.name: layer.precision for layer in both.layers}
    assert precisions.pop("down") == "float"
    assert set(precisions.values()) == {"int4-weights"}


def test_compiles() -> None:
    for options in MODES[::2]:
        model = compress(**options).model
        artifact = effc.compile(model, shapes={"x": (1, 3, 8, 8)})
        assert artifact.manifest["verification"]["ok"]


def test_integers_are_stored() -> None:
    model = compress(quantize="int4-weights").model
    kinds = {t.data_type for t in model.graph.initializer if len(t.dims) == 2}
    assert onnx.TensorProto.INT4 in kinds
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT4:
            assert np.abs(numpy_helper.to_array(tensor).astype(int)).max() == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4-weights", "max_drop": 1.0}, "needs quantize int8"),
        ({"quantize": "int4-weights", "ranges": "mse"}, "needs quantize int8"),
        ({"quantize": "int4-weights", "group": 1}, "out of range"),
        ({"quantize": "int8", "group": 8, "calibration": DATA}, "needs quantize int8-weights"),
        ({"prune": "unstructured", "sparsity": 0.5, "group": 8}, "needs quantize"),
    ],
)
def test_settings_without_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compress(**options)
