"""Archives for firmware on emulated boards: right results, exact counts, damage found."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from processes import running
from small_net import small_net

import effc
from effc.bare.archive import link_bare
from effc.bare.board import BoardExecutor
from effc.bare.codegen import arena_bytes
from effc.bare.toolchain import compile_source
from effc.devices.catalog import get_target
from effc.errors import DeviceError
from effc.imported import import_and_simplify
from effc.kernels.region import TensorType
from effc.options import CompileOptions
from effc.passes.integer.reference import run
from effc.program import Call, Pointer, Port, Program, StorageClass

CORES = ["cortex-m0plus", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "riscv32"]


def needs_emulator(target: str) -> None:
    program = "qemu-system-riscv32" if target == "riscv32" else "qemu-system-arm"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (tools/install-system-packages.sh)")


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    """A small network in 8 bits; what goes in and comes out is float32."""
    x = np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32)
    return effc.compress(small_net(), quantize="int8", calibration={"x": x})


@pytest.mark.parametrize("core", CORES)
def test_every_core_computes_the_reference(
    core: str, quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    needs_emulator(core)
    prepared = import_and_simplify(quantized, CompileOptions(target=core)).model
    artifact = effc.compile(quantized, target=core, output=tmp_path / "m", name="m", verify=False)
    assert set(artifact.manifest["undefined_symbols"]) <= allowed(core)
    rng = np.random.default_rng(2)
    with BoardExecutor(artifact.library, artifact.manifest) as board:
        for _ in range(3):
            feeds = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
            np.testing.assert_array_equal(board.run(feeds)["y"], run(prepared, feeds)["y"])
        first, again = board.count()[0], board.count()[0]
        layers = board.profile(1, 0)
    assert first == again
    steps = len(artifact.manifest["steps"])
    inside = sum(layer.instructions or 0 for layer in layers)
    assert inside <= first <= inside + 16 * steps + 32


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7", "cortex-m55"])
def test_floats_are_within_rounding(core: str, tmp_path: Path) -> None:
    needs_emulator(core)
    artifact = effc.compile(small_net(), target=core, output=tmp_path / "m", name="m", verify=False)
    host = effc.compile(small_net(), target="host", output=tmp_path / "host", verify=False)
    feeds = {"x": np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    with BoardExecutor(artifact.library, artifact.manifest) as board, effc.load(host) as runner:
        want, got = runner.run(feeds)["y"], board.run(feeds)["y"]
    # 10 layers, sums of at most 216 terms: |error| <= 10 * 216 * eps * largest value.
    limit = 10 * 216 * np.finfo(np.float32).eps * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=limit)


def allowed(core: str) -> set[str]:
    """What may be undefined: copies of memory; helpers where the core has no floats."""
    plain = {"memcpy", "memset", "memmove"}
    if core == "cortex-m0plus":
        soft = "__aeabi_fadd __aeabi_fmul __aeabi_fsub __aeabi_fdiv __aeabi_i2f __aeabi_f2iz"
        more = "__aeabi_fcmplt __aeabi_fcmpgt __aeabi_fcmpge __aeabi_fcmple __aeabi_lmul"
        return plain | {*soft.split(), *more.split(), "__aeabi_llsl", "__aeabi_idiv"}
    if core == "riscv32":
        soft = "__addsf3 __mulsf3 __subsf3 __divsf3 __floatsisf __fixsfsi"
        return plain | {*soft.split(), "__ltsf2", "__gtsf2", "__gesf2", "__lesf2"}
    return plain


def toy(body: str, tmp_path: Path, core: str = "cortex-m4") -> tuple[Path, dict[str, Any]]:
    """An archive with one step, in C: ``body`` sees ``x``, ``y`` (4 bytes each) and ``arena``."""
    kind = StorageClass
    program = Program(
        name="toy",
        inputs=(Port("x", TensorType((4,), "int8")),),
        outputs=(Port("y", TensorType((4,), "int8")),),
        calls=(
            Call(
                "toy_f0",
                tuple(map(Pointer, (kind.INPUT, kind.OUTPUT, kind.ARENA, kind.WEIGHTS))),
                1,
                "only",
                ("node",),
            ),
        ),
        weights=np.arange(64, dtype=np.uint8),
        arena_bytes=64,
        arena_lower_bound_bytes=64,
        scratch_bytes=0,
    )
    target = get_target(core)
    source = tmp_path / "stage.c"
    source.write_text(
        "#include <stdint.h>\n"
        "void toy_f0(int8_t *x, int8_t *y, int8_t *arena, const int8_t *w, int32_t b, int32_t e)\n"
        f"{{ (void)x; (void)y; (void)arena; (void)w; (void)b; (void)e; {body} }}\n"
    )
    compile_source(source, target, tmp_path / "stage.o")
    linked = link_bare(
        program, [(tmp_path / "stage.o").read_bytes()], target, tmp_path / "libtoy.a"
    )
    port = {"dtype": "int8", "shape": [4], "bytes": 4}
    manifest = {
        "name": "toy",
        "target": core,
        "inputs": [{"name": "x", **port}],
        "outputs": [{"name": "y", **port}],
        "arena_bytes": arena_bytes(program),
        "stack_bytes": linked.stack_bytes,
        "steps": ["only"],
        "layers": [],
    }
    return linked.path, manifest


def run_toy(
    body: str, tmp_path: Path, core: str = "cortex-m4", timeout_s: float = 60.0
) -> list[int]:
    needs_emulator(core)
    with BoardExecutor(*toy(body, tmp_path, core), timeout_s=timeout_s) as board:
        y = board.run({"x": np.array([1, 2, 3, 4], np.int8)})["y"]
        return [int(value) for value in y]


@pytest.mark.parametrize("core", ["cortex-m4", "riscv32"])
def test_a_step_sees_inputs_weights_and_arena(core: str, tmp_path: Path) -> None:
    body = "for (int i = 0; i < 4; i++) { arena[i] = x[i] + w[10 * i]; y[i] = arena[i]; }"
    assert run_toy(body, tmp_path, core) == [1, 12, 23, 34]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("arena[64] = 1;", "memory around"),
        ("arena[-1] = 1;", "memory around"),
        ("y[4] = 1;", "memory around"),
        ("x[0] = 9;", "an input"),
        ("*(volatile int *)NOWHERE = 1;", "faulted"),
        ("((void (*)(void))(NOWHERE + 1))();", "faulted"),
    ],
)
@pytest.mark.parametrize("core", ["cortex-m4", "riscv32"])
def test_damage_is_found(body: str, message: str, core: str, tmp_path: Path) -> None:
    nowhere = {"cortex-m4": "0x7fff0000", "riscv32": "0x1fff0000"}[core]
    with pytest.raises(DeviceError, match=message):
        run_toy(body.replace("NOWHERE", nowhere), tmp_path, core)


def test_an_endless_step_ends_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not answer"):
        run_toy("volatile int i = 1; while (i) i = 1;", tmp_path, timeout_s=3.0)


_WAITS = """
import sys, threading
from pathlib import Path
from test_board import BoardExecutor, np, toy
artifact = toy("volatile int i = 1; while (i) i = 1;", Path(sys.argv[1]))
with BoardExecutor(*artifact) as board:
    emulator = board._link._process.pid
    threading.Timer(2.0, print, [emulator], {"flush": True}).start()  # when the model runs
    board.run({"x": np.zeros(4, np.int8)})
"""


def test_no_emulator_outlives_this_process(tmp_path: Path) -> None:
    """A model hangs in the emulator, and what runs it is killed."""
    needs_emulator("cortex-m4")
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", _WAITS, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        assert process.stdout is not None
        emulator = int(process.stdout.readline())
        assert running(emulator)
        process.kill()
    for _ in range(100):
        if not running(emulator):
            return
        time.sleep(0.1)
    os.kill(emulator, signal.SIGKILL)
    pytest.fail("the emulator still runs")


def test_counts_are_those_of_the_code(tmp_path: Path) -> None:
    """Two lengths of a loop of known code: the difference is exact, across counter wraps too."""
    needs_emulator("cortex-m4")
    counts = []
    for number, turns in enumerate((1000, 5_001_000)):
        folder = tmp_path / str(number)
        folder.mkdir()
        body = f'__asm__ volatile("ldr r0, ={turns}\\n0: subs r0, #1\\nbne 0b" ::: "r0", "cc");'
        with BoardExecutor(*toy(body, folder)) as board:
            counts.append(board.count()[0])
    assert counts[1] - counts[0] == 2 * 5_000_000
