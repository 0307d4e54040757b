"""What networks need on microcontrollers: instructions and code, all exact."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shared_data import SHARED_DATA

import effc
from effc.bare.board import BoardExecutor

LIMITS = {  # per multiply-accumulate of the dense network; bytes of code
    ("ic01_resnet8_int8", "cortex-m4", "balanced"): (1.13, 20_000),
    ("kws01_dscnn_int8", "cortex-m4", "balanced"): (1.30, 15_000),
    ("kws01_dscnn_int8", "cortex-m4", "size"): (1.47, 8_000),
    ("kws01_dscnn_int8", "cortex-m4", "speed"): (1.25, 24_000),
    ("ic01_resnet8_int8", "cortex-m55", "balanced"): (0.20, 9_000),
    ("kws01_dscnn_int8", "cortex-m55", "balanced"): (0.37, 9_000),
    ("vww01_mobilenetv1_int8", "cortex-m4", "balanced"): (1.04, 26_000),
    ("vww01_mobilenetv1_int8", "cortex-m4", "size"): (1.18, 16_000),
    ("kws01_dscnn_fp32", "cortex-m4", "balanced"): (2.85, 11_000),
}


@pytest.mark.parametrize(("name", "target", "optimize"), LIMITS)
def test_instructions_and_code(name: str, target: str, optimize: str, tmp_path: Path) -> None:
    path = SHARED_DATA / "models" / f"mlperf_tiny_{name}.onnx"
    if not path.exists() or shutil.which("qemu-system-arm") is None:
        pytest.skip(f"no {path}, or no qemu-system-arm (tools/install-system-packages.sh)")
    artifact = effc.compile(
        path, target=target, output=tmp_path / "m", name="m", optimize=optimize, verify=False
    )
    manifest = artifact.manifest
    with BoardExecutor(artifact.library, manifest) as board:
        instructions, _ = board.count()
    per_mac, code = LIMITS[name, target, optimize]
    assert instructions <= per_mac * sum(layer["macs"] for layer in manifest["layers"])
    assert manifest["flash_bytes"] - manifest["weights_bytes"] <= code
