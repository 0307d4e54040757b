"""Whole quantized models: the same bits natively, under QEMU and in NumPy; near ONNX Runtime."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from shared_data import SHARED_DATA

import effc
from effc.execute import open_executor
from effc.imported import import_and_simplify
from effc.options import CompileOptions
from effc.passes.integer.reference import run

MODELS = SHARED_DATA / "models"
needs_data = pytest.mark.skipif(not MODELS.exists(), reason="needs ../shared/data")


def without_softmax(path: Path) -> onnx.ModelProto:
    """A classifier up to its scores, which are integers: Softmax is computed with floats."""
    model = onnx.load(path)
    made = {name: node for node in model.graph.node for name in node.output}
    end = model.graph.output[0]
    quantize = made[end.name]
    if made[quantize.input[0]].op_type != "Softmax":
        return model
    scores = made[made[quantize.input[0]].input[0]].input[0]
    for node in (made[quantize.input[0]], quantize):
        model.graph.node.remove(node)
    end.name = scores
    return model


def samples(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    value = model.graph.input[0]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
    limits = np.iinfo(dtype)
    x = np.random.default_rng(0).integers(limits.min, limits.max + 1, shape).astype(dtype)
    return {value.name: x}


@needs_data
@pytest.mark.parametrize("target", ["host", "android", "android-armv7", "cortex-m4"])
@pytest.mark.parametrize("name", ["mlperf_tiny_ic01_resnet8_int8", "mlperf_tiny_kws01_dscnn_int8"])
def test_same_bits_everywhere(name: str, target: str, tmp_path: Path) -> None:
    emulator = {
        "android": "qemu-aarch64",
        "android-armv7": "qemu-arm",
        "cortex-m4": "qemu-system-arm",
    }.get(target)
    if emulator is not None and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed (tools/install-system-packages.sh)")
    model = without_softmax(MODELS / f"{name}.onnx")
    feeds = samples(model)
    prepared = import_and_simplify(model, CompileOptions(target=target)).model
    assert not {"Conv", "Gemm", "MatMul"} & {node.op_type for node in prepared.graph}
    expected = run(prepared, feeds)
    artifact = effc.compile(model, target=target, output=tmp_path / "m", verify=False)
    layers: list[dict[str, Any]] = artifact.manifest["layers"]
    assert {"ConvInteger", "MatMulInteger"} <= {layer["op"] for layer in layers}
    assert all(layer["macs"] for layer in layers if layer["op"] == "ConvInteger")
    with open_executor(artifact, None, 1) as executor:
        results = executor.run(feeds)
    for output, got in results.items():
        np.testing.assert_array_equal(got, expected[output])
