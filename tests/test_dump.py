"""What phases leave behind with ``--dump``, and where ``--stop-after`` ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import onnx
import pytest
from small_net import small_net

from effc.dump import Stopped
from effc.errors import UsageError
from effc.options import PHASES, CompileOptions
from effc.pipeline import compile_model


def dumped(folder: Path, target: str, stop_after: str) -> set[str]:
    options = CompileOptions(target=target, dump=folder, stop_after=stop_after)
    with pytest.raises(Stopped):
        compile_model(small_net(), options)
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("phase", PHASES[:5])
def test_it_stops_there(tmp_path: Path, phase: str) -> None:
    files = dumped(tmp_path, "host", phase)
    assert {PHASES[int(file[0]) - 1] for file in files} == set(PHASES[: PHASES.index(phase) + 1])
    for file in files:
        if file.endswith(".onnx"):
            onnx.checker.check_model(onnx.load(tmp_path / file))
        if file.endswith(".json"):
            assert json.loads((tmp_path / file).read_text())


def test_regions_kernels_and_calls_fit_together(tmp_path: Path) -> None:
    dumped(tmp_path, "host", "storage")
    regions = {r["name"] for r in json.loads((tmp_path / "3-regions.json").read_text())}
    kernels = json.loads((tmp_path / "4-kernels.json").read_text())
    calls = json.loads((tmp_path / "5-storage.json").read_text())["calls"]
    symbols = {stage["symbol"] for kernel in kernels for stage in kernel["stages"]}
    assert {kernel["region"] for kernel in kernels} == regions
    assert {call["symbol"] for call in calls} <= symbols
    assert {path.stem for path in (tmp_path / "4-kernels").iterdir()} == symbols


def test_every_kernel_is_a_program_that_times_itself(tmp_path: Path) -> None:
    files = dumped(tmp_path, "host", "lower")
    assert {"6-lower/0.o", "6-lower/base.ll"} <= files
    programs = sorted((tmp_path / "6-lower" / "bench").iterdir())
    assert len(programs) > 3
    for program in programs:
        command = [program, "--warmup", "1", "--runs", "3"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout)["runs"] == 3


@pytest.mark.parametrize(("target", "file"), [("cortex-m4", "6-lower/0.o"), ("c", ".c")])
def test_firmware(tmp_path: Path, target: str, file: str) -> None:
    files = dumped(tmp_path, target, "lower")
    assert any(name.endswith(file) for name in files)
    assert not any("bench" in name for name in files)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="import, passes, regions"):
        CompileOptions(stop_after="link")
    with pytest.raises(UsageError, match="one ABI"):
        CompileOptions(dump=tmp_path, abis=("arm64-v8a", "x86_64"))
