"""Layer by layer comparison: what is matched, who is blamed, on which devices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_net import images, small_net
from test_report import check

import effc
from effc.comparison import LayerComparison, Noise
from effc.errors import ModelError, UsageError
from effc.float_model import FloatModel
from effc.report import render_report

DATA = {"x": images(48)}


def by_tensor(layers: list[LayerComparison]) -> dict[str, LayerComparison]:
    return {layer.tensors[0]: layer for layer in layers}


def own(layer: LayerComparison) -> float:
    assert layer.own is not None
    return layer.own.snr_db


def output(layer: LayerComparison) -> float:
    assert layer.output is not None
    return layer.output.snr_db


def test_float_artifact_is_nearly_identical() -> None:
    found = effc.compare(small_net(), effc.compile(small_net(), verify=False), inputs=DATA)
    assert found.samples == 48
    assert (found.device, found.variant, found.unmatched) == ("local", "base", [])
    assert all(own(layer) > 110 and output(layer) > 110 for layer in found.layers)
    # Convolutions with all that is fused behind them, at their last result.
    assert {"r0", "deep", "r1", "r2", "r3", "pool", "r4", "r5", "y"} <= {*by_tensor(found.layers)}
    assert found.outputs["y"].snr_db > 110


def test_views_of_inputs() -> None:
    """The first layer reads the input through a Reshape, which is no copy."""
    flat = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 24] x) => (float[1, 2, 3, 4] y) {
             shape = Constant <value: tensor = int64[4] {1, 2, 3, 4}> ()
             z = Reshape (x, shape)
             y = Softmax <axis = 2> (z)
           }"""
    )
    found = effc.compare(flat, effc.compile(flat, verify=False))
    assert [layer.tensors for layer in found.layers] == [("y",)]
    assert found.outputs["y"].snr_db > 110


def test_the_guilty_layer_is_blamed() -> None:
    """Errors of one layer's weights show in all outputs behind it, but only it adds them."""
    changed = small_net()
    weight = next(t for t in changed.graph.initializer if t.name == "down_w")
    array = numpy_helper.to_array(weight)
    noise = np.random.default_rng(3).standard_normal(array.shape).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(array + 0.01 * array.std() * noise, "down_w"))
    found = effc.compare(small_net(), effc.compile(changed, verify=False), inputs=DATA)
    worst, *others = found.by_blame
    assert worst.tensors == ("r2",)
    assert 35 < own(worst) < 50
    assert all(own(layer) > 110 for layer in others)
    layers = by_tensor(found.layers)
    assert output(layers["r1"]) > 110
    assert all(output(layers[name]) < 60 for name in ("r2", "r3", "pool", "r4", "y"))


def test_integer_layers() -> None:
    """8-bit tensors in quads are read as the real numbers that they stand for."""
    artifact = effc.compile(
        small_net(), quantize="int8", calibration=DATA, equalize=False, verify=False
    )
    stored = artifact.manifest["values"]
    assert {v["layout"] for v in stored} == {"row-major", "quads"}
    assert any(v["scale"] for v in stored)
    found = effc.compare(small_net(), artifact, inputs={"x": images(8, seed=2)})
    layers = by_tensor(found.layers)
    for name in ("r0", "deep", "r1", "r2", "r3"):
        assert layers[name].op == "ConvInteger"
        # 8 bits of uniform rounding are 48 dB for a full-scale tensor, less for a sparse one.
        assert 20 < own(layers[name]) < 60
        assert output(layers[name]) <= own(layers[name]) + 1
    assert 15 < found.outputs["y"].snr_db < 60


@pytest.mark.parametrize(
    "options", [{}, {"quantize": "int8", "calibration": DATA, "equalize": False}]
)
def test_under_qemu(options: dict[str, Any]) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")
    artifact = effc.compile(small_net(), "linux-arm64", verify=False, **options)
    found = effc.compare(small_net(), artifact)
    assert found.device == "qemu"
    assert found.outputs["y"].snr_db > (15 if options else 110)
    assert not [layer for layer in found.layers if layer.output is None]


def test_other_shapes_have_no_counterpart() -> None:
    artifact = effc.compile(small_net(), prune="channel", sparsity=0.5, verify=False)
    found = effc.compare(small_net(), artifact)
    assert found.unmatched
    assert all("another shape" in layer.why for layer in found.unmatched)
    assert all(layer.own is None for layer in found.unmatched)
    assert found.describe()["unmatched"][0]["output_snr_db"] is None


def test_another_model_is_refused() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> a (float[1,3,8,8] x) => (float[1,3,8,8] q)'
    other = onnx.parser.parse_model(f"{text} {{ q = Relu(x) }}")
    artifact = effc.compile(small_net(), verify=False)
    with pytest.raises(ModelError, match="other outputs"):
        effc.compare(other, artifact)
    with pytest.raises(UsageError, match="no variant"):
        effc.compare(small_net(), artifact, variant="dotprod")


def test_report() -> None:
    artifact = effc.compile(small_net(), quantize="int8", calibration=DATA, verify=False)
    facts = effc.compare(small_net(), artifact).describe()
    page = check(render_report(artifact.manifest, facts))
    assert "Compared with the float model" in page.text
    assert facts["layers"][0]["name"] in page.text
    assert "Compared" not in check(render_report(artifact.manifest)).text
    identical = [
        {**layer, "own_snr_db": 300.0, "output_snr_db": 300.0} for layer in facts["layers"]
    ]
    assert (
        "identical" in check(render_report(artifact.manifest, {**facts, "layers": identical})).text
    )


@pytest.mark.parametrize(
    ("want", "got", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 300.0),
        ([3.0, 4.0], [3.0, 4.05], 40.0),
        ([0.0, 0.0], [0.0, 1.0], -300.0),
        ([np.inf, np.nan, 10.0], [np.inf, np.nan, 11.0], 20.0),
        ([np.inf, 1.0], [5.0, 1.0], -300.0),
        ([], [], 300.0),
    ],
)
def test_noise(want: list[float], got: list[float], expected: float) -> None:
    noise = Noise()
    noise.add(np.array(want), np.array(got))
    assert noise.snr_db == pytest.approx(expected, abs=0.1)


def test_parts_of_a_model() -> None:
    text = """(float[2,3] x, float[2,3] z) => (float[2,3] y) {
        s = Shape(x)
        a = Relu(x)
        b = Add(a, z)
        f = Reshape(b, s)
        y = Neg(f)
    }"""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    model = FloatModel(proto, {})
    sample = {n: np.ones((2, 3), np.float32) for n in ("x", "z")}
    known = model.tensors(["a", "b", "nothing"], sample)
    assert known.keys() == {"x", "z", "y", "a", "b", "s"}
    given = np.full((2, 3), 5, np.float32)
    part = model.between({"b": given}, ["y"], known)  # the shape comes from the whole model
    assert not isinstance(part, str)
    np.testing.assert_array_equal(part["y"], -given)
    assert "depends on 'z'" in str(model.between({"a": given}, ["y"], known))
    assert "not depend on 'a'" in str(model.between({"b": given, "a": given}, ["y"], known))
    same = model.between({"b": given}, ["b"], known)
    assert not isinstance(same, str)
    assert same["b"] is given


def test_fixed_inputs_and_files(tmp_path: Path) -> None:
    text = "(float[4] x, float k) => (float[4] y) { a = Mul(x, k) y = Tanh(a) }"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g {text}')
    onnx.save(proto, tmp_path / "m.onnx")
    artifact = effc.compile(tmp_path / "m.onnx", constants={"k": 3.0}, verify=False)
    np.savez(tmp_path / "in.npz", x=np.linspace(-1, 1, 4, dtype=np.float32))
    found = effc.compare(tmp_path / "m.onnx", artifact, inputs=tmp_path / "in.npz")
    assert found.outputs["y"].snr_db > 110
    assert [own(layer) > 110 for layer in found.layers] == [True]
