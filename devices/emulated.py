"""Boards of QEMU's system emulator, for programs that run without an operating system.

A board is where its memories lie, and how instructions are counted: with ``-icount`` every
instruction takes the same time of the board's clock, ``2**shift`` ns. Arm's boards read that clock
by SysTick, so one instruction must last longer than a tick; RISC-V counts instructions itself.

Armv6-M code runs on a Cortex-M4, which has all of its instructions: the one board of QEMU with a
Cortex-M0 has 16 kB of memory. Unaligned accesses are made to fault there as on a Cortex-M0.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from effc.devices.process import kept, start
from effc.devices.wire import Monitor
from effc.errors import DeviceError, InternalError, ToolError

__all__ = ["BOARDS", "Board", "EmulatedBoard", "Memory", "board_command", "get_board"]

_EXIT_S = 5.0


@dataclass(frozen=True)
class Memory:
    """An address range of a board, in bytes."""

    origin: int
    length: int


@dataclass(frozen=True)
class Board:
    """What emulates a core.

    Attributes:
        program: QEMU's executable.
        machine: Its ``-M``.
        code: Where program and weights go.
        data: Where stack and variables go.
        tick_ns: What one tick of the counter takes.
        shift: One instruction takes ``2**shift`` ns of the board's clock.
        strict: Whether start-up code makes unaligned accesses fault.
    """

    program: str
    machine: str
    code: Memory
    data: Memory
    tick_ns: float
    shift: int
    strict: bool = False

    def instructions(self, ticks: int) -> int:
        """Instructions that ticks of the counter stand for, to the nearest one."""
        return round(ticks * self.tick_ns / (1 << self.shift))


_MIB = 1 << 20
_MPS2 = Board(
    "qemu-system-arm",
    "mps2-an386",
    Memory(0, 4 * _MIB),
    Memory(0x2100_0000, 16 * _MIB),
    tick_ns=40.0,
    shift=7,
)

BOARDS = {
    "mps2-an386": _MPS2,
    "mps2-an386-armv6m": replace(_MPS2, strict=True),
    "mps2-an500": replace(_MPS2, machine="mps2-an500", data=Memory(0x6000_0000, 16 * _MIB)),
    "mps2-an505": Board(
        "qemu-system-arm",
        "mps2-an505",
        Memory(0x1000_0000, 4 * _MIB),
        Memory(0x3800_0000, 4 * _MIB),
        tick_ns=50.0,
        shift=7,
    ),
    "mps3-an547": Board(
        "qemu-system-arm",
        "mps3-an547",
        Memory(0x1000_0000, _MIB // 2),
        Memory(0x3100_0000, 4 * _MIB),
        tick_ns=31.25,
        shift=7,
    ),
    "riscv32-virt": Board(
        "qemu-system-riscv32",
        "virt",
        Memory(0x8000_0000, 64 * _MIB),
        Memory(0x8400_0000, 32 * _MIB),
        tick_ns=1.0,
        shift=0,
    ),
}


def get_board(name: str) -> Board:
    """A board by the name that targets give it.

    Raises:
        InternalError: There is none.
    """
    if name not in BOARDS:
        raise InternalError("no emulated board of this name", got=name)
    return BOARDS[name]


def board_command(board: Board, program: Path) -> list[str]:
    """The command that starts a program on a board; its wire is standard input and output.

    Raises:
        ToolError: QEMU is not installed.
    """
    path = shutil.which(board.program)
    if path is None:
        package = "qemu-system-arm" if board.program.endswith("arm") else "qemu-system-misc"
        raise ToolError(
            "QEMU's system emulator is missing",
            where=board.program,
            hint=f"install it (Debian and Ubuntu: apt-get install {package}), "
            "or compile with --no-verify",
        )
    return [
        *(path, "-M", board.machine, "-display", "none", "-monitor", "none", "-serial", "none"),
        *("-nodefaults", "-no-reboot", "-icount", f"shift={board.shift}"),
        *("-semihosting-config", "enable=on,target=native"),
        *(["-bios", "none"] if board.program.endswith("riscv32") else []),
        *("-kernel", str(program)),
    ]


class EmulatedBoard:
    """A running emulator and the wire to the program on it.

    Args:
        command: See :func:`board_command`.
        where: What to call it in messages.
        timeout_s: For one answer.

    Raises:
        DeviceError: It cannot be started.
    """

    def __init__(self, command: Sequence[str], where: str, timeout_s: float) -> None:
        with ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            try:
                self._process = start(command, **pipes, bufsize=0)
                stack.enter_context(kept(self._process))
            except ToolError as error:
                what = "cannot start the emulator"
                raise DeviceError(what, where=where, got=error.got) from error
            self._close = stack.pop_all().close
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.monitor = Monitor(
            self._process.stdout.fileno(),
            self._process.stdin.fileno(),
            where,
            self._complaint,
            timeout_s,
        )

    def close(self) -> None:
        """End the emulator."""
        self._close()

    def _complaint(self) -> str:
        """Why the emulator ended."""
        try:
            code = self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            return "its wire is closed, but it still runs"
        self._errors.seek(0)
        said = self._errors.read()[-500:].decode("utf-8", "replace").strip()
        return f"exit code {code} {said}".strip()
