"""Boards at a serial port: the emulated board's UART on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_net import images, small_net

import effc
from effc.artifact import Artifact
from effc.bare.board import SerialExecutor
from effc.devices.address import Address, parse_device
from effc.errors import DeviceError, UsageError
from effc.execute import open_executor


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The small network in 8 bits for a Cortex-M4."""
    model = effc.compress(small_net(), quantize="int8", calibration={"x": images(32)})
    out = tmp_path_factory.mktemp("serial") / "m"
    return effc.compile(model, target="cortex-m4", output=out, name="m", verify=False)


@pytest.fixture(scope="module")
def port(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the board's serial port is."""
    emulator = shutil.which("qemu-system-arm")
    if emulator is None:
        pytest.skip("qemu-system-arm is not installed (tools/install-system-packages.sh)")
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed (tools/install-system-packages.sh)")
    project = tmp_path_factory.mktemp("monitor")
    effc.export(artifact, "monitor", project)
    subprocess.run(["make", "-s", "-C", str(project)], check=True)
    program = project / "monitor.elf"
    command = [emulator, "-M", "mps2-an386", "-display", "none", "-monitor", "none"]
    command += ["-serial", "pty", "-icount", "shift=7", "-kernel", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"redirected to (/dev/\S+)", process.stdout.readline())
            assert found is not None
            yield found[1]
        finally:
            process.kill()


def test_results_are_those_of_the_emulated_board(artifact: Artifact, port: str) -> None:
    with (
        open_executor(artifact, f"serial:{port}", None) as board,
        open_executor(artifact, "qemu", None) as emulated,
    ):
        assert board.device == f"serial:{port}"
        for x in images(3, seed=9):
            sample = {"x": x[None]}
            np.testing.assert_array_equal(board.run(sample)["y"], emulated.run(sample)["y"])
        assert [t.name for t in board.profile(1, 0)] == [t.name for t in emulated.profile(1, 0)]
        # SysTick of this board counts every 40 ns, in which no more than one instruction runs.
        assert 0 < board.bench(1, 0).median_ms < emulated.bench(1, 0).median_ms * 4


def test_commands(artifact: Artifact, port: str, tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = [sys.executable, "-c", "from effc.cli import main; main()", *arguments]
        return subprocess.run(code, capture_output=True, text=True, check=False, timeout=120)

    np.savez(tmp_path / "x.npz", x=images(1))
    given = ["--input", str(tmp_path / "x.npz"), "-o", str(tmp_path / "y.npz")]
    done = command("run", str(artifact.path), *given, "--device", f"serial:{port}")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "y.npz") as outputs:
        assert outputs["y"].shape == (1, 5)
    missing = command("run", str(artifact.path), *given, "--device", "serial:/dev/ttyEFFC9")
    assert missing.returncode == DeviceError.exit_code
    assert "/dev/ttyEFFC9" in missing.stderr


def test_another_model_on_the_board_is_refused(artifact: Artifact, port: str) -> None:
    manifest = {**artifact.manifest, "arena_bytes": artifact.manifest["arena_bytes"] + 16}
    with pytest.raises(DeviceError, match="another model"):
        SerialExecutor(parse_device(f"serial:{port}"), manifest)


@pytest.mark.parametrize("noise", [b"", b"Hello, I am no board\r\n" * 4])
def test_a_port_without_the_monitor_ends_in_an_error(artifact: Artifact, noise: bytes) -> None:
    board, user = pty.openpty()
    try:
        done = threading.Event()

        def chatter() -> None:
            while noise and not done.wait(0.05):
                os.write(board, noise)

        thread = threading.Thread(target=chatter)
        thread.start()
        address = Address("serial", path=os.ttyname(user), baud=115200)
        with pytest.raises(DeviceError, match=r"does not answer|answered nonsense"):
            SerialExecutor(address, artifact.manifest, timeout_s=1.0)
    finally:
        done.set()
        thread.join()
        os.close(board)
        os.close(user)


def test_what_is_no_port(artifact: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DeviceError, match="no serial port"):
        SerialExecutor(parse_device(f"serial:{file}"), artifact.manifest)
    board, user = pty.openpty()
    path = os.ttyname(user)
    with pytest.raises(UsageError, match="no such speed"):
        SerialExecutor(parse_device(f"serial:{path}@12345"), artifact.manifest)
    os.close(board)
    os.close(user)


@pytest.mark.parametrize("text", ["serial", "serial:", "serial:ttyACM0", "serial:/dev/x@0"])
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        parse_device(text)


def test_addresses() -> None:
    assert str(parse_device("serial:/dev/ttyACM0")) == "serial:/dev/ttyACM0"
    assert parse_device("serial:/dev/ttyACM0@921600").baud == 921600
    assert str(parse_device("serial:/dev/ttyACM0@921600")) == "serial:/dev/ttyACM0@921600"


def test_the_monitor_is_for_cortex_m(tmp_path: Path) -> None:
    artifact = effc.compile(small_net(), target="c", output=tmp_path / "c", verify=False)
    with pytest.raises(UsageError, match="for Cortex-M boards"):
        effc.export(artifact, "monitor", tmp_path / "out")


def test_only_firmware_runs_there(tmp_path: Path) -> None:
    host = effc.compile(small_net(), target="host", output=tmp_path / "h", verify=False)
    with pytest.raises(UsageError, match="microcontrollers"):
        open_executor(host, "serial:/dev/ttyACM0", None)
