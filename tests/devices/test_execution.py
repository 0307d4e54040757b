"""Runners as processes: natively and under QEMU, several samples, failures."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_model import toy_object, toy_program, toy_reference

from effc import zig
from effc.devices.catalog import get_target
from effc.devices.execution import Execution, Piece, Process, execute
from effc.devices.qemu import qemu_command
from effc.errors import DeviceError, ToolError, UsageError
from effc.link import link_runner
from effc.program import Call, Pointer, Port, StorageClass
from effc.samples import Tensor

UNITS = 6
X = 'in "x"'


def specs(ports: tuple[Port, ...]) -> list[Tensor]:
    return [Tensor(p.name, p.type.dtype, p.type.shape) for p in ports]


INPUTS, OUTPUTS = specs(toy_program(units=UNITS).inputs), specs(toy_program(units=UNITS).outputs)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("host", tmp_path_factory.mktemp("runner"))


def build(name: str, folder: Path) -> Path:
    target = get_target(name)
    stages = toy_object(target, folder, units=UNITS)
    return link_runner(toy_program(units=UNITS), [stages], target, folder / "runner")


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{X: rng.standard_normal((UNITS, 4), dtype=np.float32)} for _ in range(count)]


def check(done: Execution, inputs: list[dict[str, np.ndarray]]) -> None:
    assert len(done.outputs) == len(inputs)
    for given, got in zip(inputs, done.outputs, strict=True):
        expected = toy_reference(given[X])
        # tanh of another C library: a few ulp of the product's terms
        bound = 8 * np.finfo(np.float32).eps * (np.abs(expected) + 4 * UNITS)
        assert np.all(np.abs(got["out"] - expected) <= bound)
        assert got["sum"].shape == ()


def test_native(runner: Path) -> None:
    inputs = samples(3)
    done = execute(
        Process([str(runner)]), inputs, INPUTS, OUTPUTS, runs=4, warmup=1, threads=2, profile=True
    )
    check(done, inputs)
    assert len(done.times_ns) == 4
    assert done.steps_ns is not None
    assert len(done.steps_ns) == 3


def test_timing_without_samples(runner: Path) -> None:
    done = execute(Process([str(runner)]), [], INPUTS, OUTPUTS, runs=2)
    assert done.outputs == ()
    assert len(done.times_ns) == 2
    assert done.steps_ns is None


@pytest.mark.parametrize("name", ["android", "android-armv7", "linux-armv7", "android-x86_64"])
def test_emulated(name: str, tmp_path: Path) -> None:
    """The first run on a machine builds zig's C library for the target (half a minute)."""
    target = get_target(name)
    program = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "x86_64": "qemu-x86_64"}[target.arch]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    inputs = samples(2)
    command = [*qemu_command(target), str(build(name, tmp_path))]
    done = execute(Process(command), inputs, INPUTS, OUTPUTS, runs=1, threads=2)
    check(done, inputs)


def test_wrong_samples(runner: Path) -> None:
    with pytest.raises(UsageError, match="missing"):
        execute(Process([str(runner)]), [{}], INPUTS, OUTPUTS)
    with pytest.raises(UsageError, match="expected float32"):
        execute(Process([str(runner)]), [{X: np.zeros((UNITS, 4))}], INPUTS, OUTPUTS)
    other = [Tensor(X, "float32", (UNITS, 5))]
    with pytest.raises(DeviceError, match="another size"):
        execute(Process([str(runner)]), [{X: np.zeros((UNITS, 5), np.float32)}], other, OUTPUTS)


def test_access_behind_the_end_is_caught(tmp_path: Path) -> None:
    """A stage that reads one element too far dies, but only where nothing is timed."""
    target = get_target("host")
    source = tmp_path / "far.c"
    source.write_text("void far_k0(volatile float *x, int b, int e) { (void)x[e * 4]; (void)b; }\n")
    flags = [f"--target={target.clang_target}", "-O1", "-fPIC", "-c", str(source)]
    zig.clang([*flags, "-o", str(tmp_path / "far.o")])
    program = toy_program("far", UNITS)
    program.calls = (Call("far_k0", (Pointer(StorageClass.INPUT),), UNITS, "r", ()),)
    built = link_runner(program, [tmp_path / "far.o"], target, tmp_path / "far")
    with pytest.raises(DeviceError, match="SIGSEGV"):
        execute(Process([str(built)]), samples(1), INPUTS, OUTPUTS)
    assert execute(Process([str(built)]), [], INPUTS, OUTPUTS, runs=1).times_ns


def script(folder: Path, text: str) -> list[str]:
    path = folder / "fake"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("kill -SEGV $$", "SIGSEGV"),
        ("exit 139", "SIGSEGV"),
        ("echo oops >&2; exit 3", "exit code 3 oops"),
        ("echo nonsense", "nonsense"),
        ("exec sleep 20", "did not finish"),
    ],
)
def test_failing_programs(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DeviceError, match=match):
        execute(Process(script(tmp_path, text)), [], INPUTS, OUTPUTS, timeout_s=0.5)


def test_missing_program(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot start"):
        execute(Process([str(tmp_path / "none")]), [], INPUTS, OUTPUTS)


def test_missing_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="apt-get install qemu-user"):
        qemu_command(get_target("android"))


def piece(**changes: object) -> Piece:
    """The toy's product in the arena after its first step."""
    return replace(Piece("y", "float32", (UNITS, 4), 0, None, 64), **changes)  # type: ignore[arg-type]


def test_trace(runner: Path) -> None:
    """Tensors as they are after their steps, of every sample."""
    inputs = samples(3)
    pieces = [piece(), piece(name="part", shape=(4,), step=1, output=0, offset=16)]
    done = execute(Process([str(runner)]), inputs, INPUTS, OUTPUTS, trace=pieces)
    check(done, inputs)
    for given, traced, outputs in zip(inputs, done.traced, done.outputs, strict=True):
        np.testing.assert_array_equal(traced["part"], outputs["out"][1])
        np.testing.assert_array_equal(traced["y"] + given[X], outputs["out"])


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(step=3)],
        [piece(offset=68)],
        [piece(output=2)],
        [piece(output=1, offset=0)],
        [piece(step=1), piece()],
    ],
)
def test_wrong_traces(runner: Path, pieces: list[Piece]) -> None:
    with pytest.raises(DeviceError, match="not a plan for this model"):
        execute(Process([str(runner)]), samples(1), INPUTS, OUTPUTS, trace=pieces)


def test_a_trace_is_not_timed(runner: Path) -> None:
    with pytest.raises(DeviceError, match="times nothing"):
        execute(Process([str(runner)]), samples(1), INPUTS, OUTPUTS, trace=[piece()], runs=1)
    with pytest.raises(DeviceError, match="one thread"):
        execute(Process([str(runner)]), samples(1), INPUTS, OUTPUTS, trace=[piece()], threads=2)
