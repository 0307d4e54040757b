"""Programs on this machine that talk to devices (``adb``, ``ssh``, a shell), with time limits.

They run in process groups of their own: an interrupt of the terminal reaches effc alone, which
then ends them in order. What may hang has a keeper beside it, which ends it if effc was killed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from effc.errors import ToolError

__all__ = ["Finished", "TimedOut", "converse", "kept", "kill", "start"]


_HELD_S = 2.0
"""How long the pipes of a program that has ended may stay open without a word."""


_KEEPER = 'read -r _; kill -9 "-$1"'
"""Waits for the end of its standard input, which this process alone holds open."""


class TimedOut(Exception):
    """A program did not end in time; it was killed."""


@dataclass(frozen=True)
class Finished:
    """A program that has ended.

    Attributes:
        code: Exit code; 128 + number for a signal on a device.
        out, err: What it wrote.
    """

    code: int
    out: bytes
    err: bytes

    @property
    def message(self) -> str:
        """The end of what it complained about, as text."""
        return self.err[-500:].decode("utf-8", "replace").strip()


def start(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a group of its own.

    Raises:
        ToolError: It cannot be started.
    """
    try:
        return subprocess.Popen(list(argv), start_new_session=True, **options)
    except OSError as error:
        raise ToolError("cannot start the program", where=argv[0], got=error.strerror) from error


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it has started, if it still runs, and close its pipes."""
    kill_group(process.pid)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


@contextlib.contextmanager
def kept(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a program (of ``start``) behind the block, or as soon as this process is gone.

    Raises:
        ToolError: There is no shell.
    """
    try:
        keeper = start(
            ["sh", "-c", _KEEPER, "keeper", str(process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except ToolError:
        kill(process)
        raise
    try:
        yield
    finally:
        kill(keeper)  # first: the number of a program that has ended may be used again
        kill(process)


def converse(
    argv: Sequence[str],
    timeout_s: float,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    source: IO[bytes] | None = None,
    sink: IO[bytes] | None = None,
    on_line: Callable[[bytes], None] | None = None,
) -> Finished:
    """Run a program to its end.

    Args:
        argv: The program and its arguments.
        timeout_s: From now to its end.
        cwd, environment: Its folder and variables; this process's if ``None``.
        source: File for its standard input; nothing if ``None``.
        sink: File for its standard output, which ``out`` then lacks.
        on_line: Called in this thread with each full line of its standard output, as it comes.

    Raises:
        ToolError: It cannot be started.
        TimedOut: It took too long.
    """
    process = start(
        argv,
        cwd=cwd,
        env=environment,
        stdin=source or subprocess.DEVNULL,
        stdout=sink or subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with kept(process):
        try:
            deadline = time.monotonic() + timeout_s
            out, err = _read_all(process, deadline, on_line)
            code = process.wait(max(deadline - time.monotonic(), 1.0))
        except subprocess.TimeoutExpired:
            raise TimedOut from None
    return Finished(code, out, err)


def _read_all(
    process: subprocess.Popen[bytes], deadline: float, on_line: Callable[[bytes], None] | None
) -> tuple[bytes, bytes]:
    """What a program writes to its pipes until they end.

    Others may hold its pipes (ssh's master does) when it is dead: that is not waited for.
    """
    texts = {process.stdout: bytearray(), process.stderr: bytearray()}
    passed = 0
    silent_since: float | None = None
    with selectors.DefaultSelector() as selector:
        for stream in filter(None, texts):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            now = time.monotonic()
            if now >= deadline:
                raise TimedOut
            ready = selector.select(min(deadline - now, 0.5))
            if not ready and process.poll() is not None:
                silent_since = silent_since or now
                if now - silent_since > _HELD_S:
                    break
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                texts[key.fileobj] += data  # type: ignore[index]
                if not data:
                    selector.unregister(key.fileobj)
            out = texts[process.stdout]
            while on_line is not None and (end := out.find(b"\n", passed) + 1):
                line, passed = bytes(out[passed:end]), end
                on_line(line)
    return bytes(texts[process.stdout]), bytes(texts[process.stderr])


def kill_group(group: int) -> None:
    """End all programs of a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
