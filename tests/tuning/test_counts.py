"""Candidates for microcontrollers: exact counts decide, a crash costs only its candidate."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_net import small_net

import effc
from effc.bare.toolchain import compile_source
from effc.devices.catalog import get_target
from effc.execute import open_board
from effc.kernels.region import Op, Region, TensorType, Value
from effc.tuning.build import Compiled, CompiledStage, Content
from effc.tuning.counts import BoardHarness

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None,
    reason="qemu-system-arm is not installed (tools/install-system-packages.sh)",
)
CODE = """
void {name}(signed char *x, signed char *y, const int *turns, int begin, int end)
{{
    (void)x; (void)begin; (void)end;
    {before}
    int n = *turns;
    __asm__ volatile("0: subs %0, #1\\n bne 0b" : "+r"(n) : : "cc");
    *y = 1;
}}
"""


def candidate(number: int, turns: int, folder: Path, before: str = "") -> Compiled:
    """A candidate that takes 2 instructions per turn, as a constant says."""
    name = f"c_{number}_0"
    source = folder / f"{name}.c"
    source.write_text(CODE.format(name=name, before=before))
    compile_source(source, get_target("cortex-m4"), folder / f"{name}.o")
    (folder / f"{name}.bin").write_bytes(np.int32(turns).tobytes())
    return Compiled(
        object=str(folder / f"{name}.o"),
        stages=(CompiledStage(name, ("x", "y", "w:turns"), 1, 0, None),),
        weights=(("turns", Content(4, 0, f"{name}.bin")),),
    )


def test_counts_are_exact_and_a_crash_is_contained(tmp_path: Path) -> None:
    target = get_target("cortex-m4")
    x, y = (Value(name, TensorType((16,), "int8")) for name in "xy")
    region = Region("r", [Op("Relu", (x,), (y,))], None, [x], [y])
    some = [
        candidate(0, 1000, tmp_path),
        candidate(1, 5000, tmp_path),
        candidate(2, 10, tmp_path, "*(volatile int *)0x7fff0000 = 1;"),
    ]
    timings = BoardHarness(target, tmp_path).run(region, some, 0.0, 0)
    counts = [t.seconds and round(t.seconds * target.clock_mhz * 1e6) for t in timings]
    assert counts[0] is not None
    assert counts[1] is not None
    assert counts[1] - counts[0] == 2 * 4000
    assert timings[2].seconds is None
    assert "faulted" in timings[2].error


def test_counts_choose_kernels_and_replay(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32)
    model = effc.compress(small_net(), quantize="int8", calibration={"x": x})
    database = tmp_path / "db.jsonl"
    made = [
        effc.compile(
            model,
            target="cortex-m4",
            output=tmp_path / mode,
            name="m",
            tune=12 if mode == "measured" else "none",
            tuning_db=database,
            verify=False,
        )
        for mode in ("measured", "replayed")
    ]
    files = [artifact.library.read_bytes() for artifact in made]
    assert files[0] == files[1]
    assert made[0].manifest["tuning"]["measured_candidates"] >= 10
    with open_board(made[0], None) as board:
        counted = {layer.name: layer.instructions or 0 for layer in board.profile(1, 0)}
    clock = get_target("cortex-m4").clock_mhz * 1e6
    measured = {
        layer["name"]: layer["seconds"] * clock
        for layer in made[0].manifest["layers"]
        if layer["seconds"] is not None
    }
    assert measured
    for name, instructions in measured.items():
        assert instructions == pytest.approx(counted[name], rel=0.02, abs=64)
