"""Links: how bytes and shell commands reach a device.

A link knows one program (``adb``, ``ssh``, a shell) and its complaints; what is said over it is the
session's business (``effc.devices.session``). Scripts are text of the package's; everything that
varies is passed as their arguments, quoted for the shell at the other end.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from effc.devices.process import Finished, start
from effc.errors import DeviceError

__all__ = ["BROKEN", "UNKNOWN", "ConnectionLost", "Link", "LocalLink", "command_line"]

BROKEN = "the connection broke"
UNKNOWN = "a command failed"
"""What :meth:`Link.explain` says of a complaint that it does not know."""


class ConnectionLost(DeviceError):
    """The device went away, or does not answer: trying again may help."""


class Link(Protocol):
    """A way to one device.

    Attributes:
        device: What ``--device`` would take.
        base: Folder on the device for all of effc's; empty: below the user's cache there.
    """

    device: str
    base: str

    def open(self, command: str) -> subprocess.Popen[bytes]:
        """Connect, and start a shell command that keeps the connection.

        The process's standard input and output are pipes to the command; it ends if the connection
        does.

        Raises:
            EffcError: It cannot even be tried.
        """

    def argv(self, command: str) -> list[str]:
        """The program of this machine that runs a shell command on the device."""

    def push(self, files: Mapping[str, Path], folder: str, timeout_s: float) -> Finished:
        """Copy files to a folder of the device, under the given names."""

    def pull(self, names: Sequence[str], source: str, folder: Path, timeout_s: float) -> Finished:
        """Copy files from a folder of the device into one of this machine."""

    def explain(self, done: Finished) -> DeviceError:
        """What a complaint of the program means."""

    def close(self) -> None:
        """Forget the connection, after the command of :meth:`open` has ended."""


def command_line(words: Sequence[str]) -> str:
    """Words as text for a POSIX shell."""
    return " ".join(shlex.quote(word) for word in words)


class LocalLink:
    """This machine: the same sessions, without a connection."""

    device = "local"
    base = ""

    def open(self, command: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return start(self.argv(command), stdin=pipe, stdout=pipe, stderr=pipe)

    def argv(self, command: str) -> list[str]:
        return ["/bin/sh", "-c", command]

    def push(self, files: Mapping[str, Path], folder: str, timeout_s: float) -> Finished:
        return _copy({source: Path(folder) / name for name, source in files.items()})

    def pull(self, names: Sequence[str], source: str, folder: Path, timeout_s: float) -> Finished:
        return _copy({Path(source) / name: folder / name for name in names})

    def explain(self, done: Finished) -> DeviceError:
        return DeviceError(UNKNOWN, where=self.device, got=done.message)

    def close(self) -> None:
        """Nothing is held."""


def _copy(files: Mapping[Path, Path]) -> Finished:
    for source, destination in files.items():
        try:
            shutil.copyfile(source, destination)
        except OSError as error:
            return Finished(1, b"", os.fsencode(f"{destination.name}: {error.strerror}"))
    return Finished(0, b"", b"")
