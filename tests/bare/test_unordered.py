"""Tests for NaN on Helium, whose comparisons LLVM inverts wrongly."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import effc
from effc.bare.board import BoardExecutor
from effc.bare.unordered import replace_nan_tests


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nan_is_found(dtype: type, tmp_path: Path) -> None:
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed (tools/install-system-packages.sh)")
    x = np.array([-1.2, np.nan, np.inf, -np.nan, -np.inf, 0, -0.0, 6e-8, np.nan], dtype)
    value = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
    result = helper.make_tensor_value_info("y", TensorProto.BOOL, x.shape)
    graph = helper.make_graph([helper.make_node("IsNaN", ["x"], ["y"])], "g", [value], [result])
    artifact = effc.compile(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        target="cortex-m55",
        output=tmp_path / "m",
        name="m",
        verify=False,
    )
    with BoardExecutor(artifact.library, artifact.manifest) as board:
        np.testing.assert_array_equal(board.run({"x": x})["y"], np.isnan(x))


def test_only_tests_of_one_value_are_replaced() -> None:
    text = "  %c = fcmp uno <4 x float> %a, %b\n  %d = fcmp uno float %a, %a\n"
    assert replace_nan_tests(text) == text
    assert "fcmp" not in replace_nan_tests("  %7 = fcmp uno <4 x float> %a.1, %a.1, !dbg !3\n")
