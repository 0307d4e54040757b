"""``--precision f16`` from model to artifact, on targets with half arithmetic and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import effc
from effc.errors import UsageError
from effc.execute import open_executor
from effc.half_analysis import GOAL_DB
from effc.options import CompileOptions

RNG = np.random.default_rng(7)
Array = np.ndarray[Any, Any]


def model(scale: float = 1.0) -> onnx.ModelProto:
    """A little of everything; the second convolution's results grow with ``scale``."""
    weights = {
        "w0": RNG.standard_normal((16, 3, 3, 3)) / 3,
        "b0": RNG.standard_normal(16),
        "wd": RNG.standard_normal((16, 1, 3, 3)) / 3,
        "w1": RNG.standard_normal((24, 16, 1, 1)) / 4 * scale,
        "b1": RNG.standard_normal(24),
        "wt": RNG.standard_normal((24, 4, 2, 2)) / 5 / scale,
        "wf": RNG.standard_normal((28, 10)) / 5,
        "bf": RNG.standard_normal(10),
    }
    constants = {"zero": 0.0, "six": 6.0 * scale, "sizes": [1.0, 1.0, 2.0, 2.0]}
    stored = {n: np.asarray(a, np.float32) for n, a in {**weights, **constants}.items()}
    stored["flat"] = np.array([1, -1])

    def node(op: str, inputs: str, output: str, **attrs: Any) -> onnx.NodeProto:
        names = [] if not inputs else [n if n != "-" else "" for n in inputs.split()]
        return helper.make_node(op, names, [output], name=f"n_{output}", **attrs)

    nodes = [
        node("Conv", "x w0 b0", "c0", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("HardSwish", "c0", "h"),
        node("Conv", "h wd", "d", group=16, pads=[1, 1, 1, 1]),
        node("Add", "d h", "a"),
        node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p w1 b1", "c1"),
        node("Clip", "c1 zero six", "k"),
        node("AveragePool", "k", "v", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Sigmoid", "v", "s"),
        node("Mul", "k s", "m"),
        node("ConvTranspose", "m wt", "t", strides=[2, 2]),
        node(
            "Resize", "t - sizes", "r", mode="linear", coordinate_transformation_mode="half_pixel"
        ),
        node("GlobalAveragePool", "m", "g"),
        node("GlobalAveragePool", "r", "q"),
        node("Concat", "g q", "o", axis=1),
        node("Reshape", "o flat", "f"),
        node("Gemm", "f wf bf", "e"),
        node("Softmax", "e", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 30, 34])],
        [helper.make_tensor_value_info(n, 1, None) for n in ("y", "r", "e")],
        [numpy_helper.from_array(a, n) for n, a in stored.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnx.shape_inference.infer_shapes(made)


def snr(artifact: Any, proto: onnx.ModelProto, feeds: dict[str, Array]) -> float:
    from effc.reference import Reference

    want = Reference(proto)(feeds)
    with open_executor(artifact, None, None) as executor:
        have = executor.run(feeds)
    ratios = [np.square(want[n] - have[n]).sum() / np.square(want[n]).sum() for n in want]
    assert all(have[n].dtype == np.float32 for n in want)
    return float(-10 * np.log10(max(ratios)))


def layers(artifact: Any) -> dict[str, dict[str, Any]]:
    return {node: layer for layer in artifact.manifest["layers"] for node in layer["nodes"]}


def calibration(count: int = 6) -> dict[str, Array]:
    return {"x": RNG.standard_normal((count, 3, 30, 34)).astype(np.float32)}


def test_armv82_computes_in_float16() -> None:
    proto = model()
    artifact = effc.compile(proto, "raspberry-pi-5", precision="f16")
    found = layers(artifact)
    assert {
        found[f"n_{n}"]["precision"] for n in ["c0", "d", "p", "c1", "v", "m", "g", "o", "y"]
    } == {"f16"}
    assert found["n_t"]["precision"] == ""  # transposed convolutions have no float16 kernel
    assert found["n_c1"]["terms"] == 16
    assert snr(artifact, proto, {"x": calibration(1)["x"]}) > 48
    smaller = artifact.manifest["arena_bytes"]
    assert smaller < 0.7 * effc.compile(proto, "raspberry-pi-5").manifest["arena_bytes"]


@pytest.mark.parametrize("target", ["host", "android"])
def test_other_targets_store_half_the_weights(target: str) -> None:
    proto = model()
    artifact = effc.compile(proto, target, precision="f16", calibration=calibration())
    found = layers(artifact)
    assert found["n_c1"]["precision"] == "f16 weights"
    assert found["n_m"]["precision"] in ("", "f16 weights")
    assert snr(artifact, proto, {"x": calibration(1)["x"]}) > 55
    assert {"use_half_precision", "store_half_weights"} & {
        p["name"] for p in artifact.manifest["passes"]
    } == {"store_half_weights"}


def test_calibration_finds_what_would_overflow() -> None:
    proto = model(scale=3e4)
    artifact = effc.compile(proto, "raspberry-pi-5", precision="f16", calibration=calibration())
    found = layers(artifact)
    assert found["n_c1"]["precision"] == ""
    assert found["n_c0"]["precision"] == "f16"
    (record,) = [p for p in artifact.manifest["passes"] if p["name"] == "use_half_precision"]
    assert any("n_c1: " in line and "65504" in line for line in record["refused"])
    assert snr(artifact, proto, {"x": calibration(1)["x"]}) > 50


def test_calibration_meets_the_goal() -> None:
    proto = model()
    artifact = effc.compile(proto, "raspberry-pi-5", precision="f16", calibration=calibration(20))
    (record,) = [p for p in artifact.manifest["passes"] if p["name"] == "use_half_precision"]
    assert record["settings"]["expected_db"] >= GOAL_DB
    assert any("costs too much" in line for line in record["refused"])
    assert record["applied"]
    assert snr(artifact, proto, {"x": calibration(1)["x"]}) > GOAL_DB - 2


def test_a_recipe_keeps_layers(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[layer]]\nmatch = "n_c1"\nprecision = "f32"\n')
    artifact = effc.compile(model(), "host", precision="f16", recipe=recipe)
    found = layers(artifact)
    assert found["n_c1"]["precision"] == ""
    assert found["n_c0"]["precision"] == "f16 weights"


def test_wrong_values_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown precision"):
        CompileOptions(precision="f8")


def test_samples_for_a_quantized_model_are_refused() -> None:
    quantized = effc.compress(model(), quantize="int8", calibration=calibration(4))
    with pytest.raises(UsageError, match="quantized model"):
        effc.compile(quantized, "raspberry-pi-5", precision="f16", calibration=calibration(2))
