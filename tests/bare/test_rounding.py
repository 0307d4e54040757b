"""Rounding without a C library: the bits of NumPy for every kind of float."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import effc
from effc.bare.rounding import replace_rounding
from effc.execute import open_board

FUNCTIONS = {"Floor": np.floor, "Ceil": np.ceil, "Round": np.rint}


def values() -> np.ndarray:
    """Around integers, halves, the end of fractions, and what is no number."""
    base = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 3.4999998, 1e-45, 8388607.5, 8388608.0, 3e38]
    near = [np.nextafter(np.float32(v), np.float32(s)) for v in base for s in (-9e9, 9e9)]
    rest = np.random.default_rng(0).standard_normal(30) * 10.0 ** np.arange(30) / 1e10
    some = np.array([*base, *near, *rest, np.inf, np.nan], np.float32)
    return np.concatenate([some, -some])


@pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None,
    reason="qemu-system-arm is not installed (tools/install-system-packages.sh)",
)
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m33"])
def test_rounding_has_numpys_bits(core: str, tmp_path: Path) -> None:
    x = values()
    shape = list(x.shape)
    outputs = [helper.make_tensor_value_info(f, TensorProto.FLOAT, shape) for f in FUNCTIONS]
    graph = helper.make_graph(
        [helper.make_node(function, ["x"], [function]) for function in FUNCTIONS],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        outputs,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    artifact = effc.compile(model, target=core, output=tmp_path / "m", name="m", verify=False)
    assert set(artifact.manifest["undefined_symbols"]) <= {"memcpy", "memset", "memmove"}
    with open_board(artifact, None) as board:
        found = board.run({"x": x})
    for name, function in FUNCTIONS.items():
        want = function(x)
        numbers = ~np.isnan(x)
        assert np.isnan(found[name][~numbers]).all()
        np.testing.assert_array_equal(
            found[name][numbers].view(np.uint32), want[numbers].view(np.uint32), err_msg=name
        )


def test_a_module_without_rounding_stays() -> None:
    text = "define float @f(float %x) {\n  ret float %x\n}\n"
    assert replace_rounding(text) == text
