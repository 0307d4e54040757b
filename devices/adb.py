"""Android devices, through the ``adb`` program: any number of phones, rooted or not.

Everything happens below ``/data/local/tmp``, where the shell's user may write and execute.
``adb`` keeps a server of its own on this machine; effc asks it for no forwarded ports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effc.devices.address import Address
from effc.devices.links import BROKEN, UNKNOWN, ConnectionLost
from effc.devices.process import Finished, TimedOut, converse, start
from effc.errors import DeviceError, ToolError

__all__ = ["AdbLink", "Phone", "adb_program", "list_phones"]

_START_S = 20.0
_STATES = {
    "unauthorized": "unlock the phone and accept this computer's key",
    "offline": "plug the phone in again, or 'adb reconnect'",
    "no permissions": "the USB device belongs to another user; see Android's udev rules",
}

_COMPLAINTS: tuple[tuple[str, str, str, bool], ...] = (
    # pattern, what, hint, whether trying again may help
    (r"device unauthorized", "the phone does not trust this computer", _STATES["unauthorized"],
     False),
    (r"more than one (device|emulator)", "several phones are connected",
     "name one: --device adb:SERIAL ('effc devices' lists them)", False),
    (r"no devices/emulators found|no devices found", "no phone is connected",
     "plug one in with USB debugging switched on ('effc devices' lists them)", False),
    (r"device '.*' not found", "this phone is not connected", "'effc devices' lists those that are",
     False),
    (r"insufficient permissions|no permissions", "the phone may not be opened",
     _STATES["no permissions"], False),
    (r"No space left on device|couldn't create file: No space", "the device's storage is full",
     "free some space on the phone", False),
    (r"only supports allocating a pty|target doesn't support", "the phone's Android is too old",
     "effc needs the shell protocol of Android 7 and newer", False),
    (r"device offline|device (still )?(authorizing|connecting)", "the phone is offline",
     _STATES["offline"], True),
    (r"closed|protocol fault|EOF|[Cc]onnection reset|cannot connect to daemon|couldn't read|"
     r"failed to (read|check|get|send)|Broken pipe", BROKEN, "", True),
)  # fmt: skip


@dataclass(frozen=True)
class Phone:
    """A line of ``adb devices``.

    Attributes:
        serial: What ``--device adb:`` takes.
        state: ``device`` if it can be used.
    """

    serial: str
    state: str

    @property
    def hint(self) -> str:
        """What to do if it cannot be used."""
        return next((hint for name, hint in _STATES.items() if self.state.startswith(name)), "")


def adb_program() -> str | None:
    """``$ADB``, ``adb`` of the path, or that of the Android SDK."""
    for home in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        sdk = os.environ.get(home)
        if sdk and os.access(f"{sdk}/platform-tools/adb", os.X_OK) and shutil.which("adb") is None:
            return f"{sdk}/platform-tools/adb"
    return shutil.which(os.environ.get("ADB") or "adb")


def _require_adb() -> str:
    program = adb_program()
    if program is None:
        hint = "install Android's platform tools (Debian: apt-get install adb), or set ADB"
        raise ToolError("adb is missing", where="--device adb", hint=hint)
    return program


def _start_server(program: str) -> None:
    """Start adb's server, apart: it inherits pipes, and reading them would not end."""
    with tempfile.TemporaryFile() as complaints:
        process = start(
            [program, "start-server"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=complaints,
        )
        try:
            code: int | None = process.wait(_START_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if code != 0:
            complaints.seek(0)
            raise DeviceError(
                "adb's server does not answer",
                where="adb start-server",
                got=complaints.read().decode("utf-8", "replace").strip()[-300:] or None,
                hint="try 'adb kill-server'",
            )


def list_phones() -> list[Phone]:
    """What is connected, usable or not.

    Raises:
        ToolError: There is no ``adb``.
        DeviceError: Its server does not answer.
    """
    program = _require_adb()
    _start_server(program)
    try:
        done = converse([program, "devices"], _START_S)
    except TimedOut as error:
        raise DeviceError("adb's server does not answer", where="adb devices") from error
    lines = done.out.decode("utf-8", "replace").splitlines()[1:]
    fields = [line.split("\t", 1) for line in lines if "\t" in line]
    return [Phone(serial, state.split(";")[0].strip()) for serial, state in fields]


class AdbLink:
    """A phone.

    Args:
        address: Of kind ``adb``.

    Raises:
        ToolError: There is no ``adb``.
    """

    base = "/data/local/tmp/effc"

    def __init__(self, address: Address) -> None:
        self.device = str(address)
        self._program = _require_adb()
        self._adb = [self._program, *(["-s", address.serial] if address.serial else [])]

    def open(self, command: str) -> subprocess.Popen[bytes]:
        _start_server(self._program)
        pipe = subprocess.PIPE
        return start([*self._adb, "shell", "-T", command], stdin=pipe, stdout=pipe, stderr=pipe)

    def argv(self, command: str) -> list[str]:
        return [*self._adb, "shell", "-T", "-n", command]

    def push(self, files: Mapping[str, Path], folder: str, timeout_s: float) -> Finished:
        with tempfile.TemporaryDirectory(prefix="effc-adb-") as staged:
            sources = [Path(staged) / name for name in files]
            for source, path in zip(sources, files.values(), strict=True):
                source.symlink_to(path.absolute())
            return converse([*self._adb, "push", *map(str, sources), f"{folder}/"], timeout_s)

    def pull(self, names: Sequence[str], source: str, folder: Path, timeout_s: float) -> Finished:
        sources = [f"{source}/{name}" for name in names]
        return converse([*self._adb, "pull", *sources, f"{folder}/"], timeout_s)

    def explain(self, done: Finished) -> DeviceError:
        message = done.message or done.out[-500:].decode("utf-8", "replace").strip()
        for pattern, what, hint, again in _COMPLAINTS:
            if re.search(pattern, message):
                kind = ConnectionLost if again else DeviceError
                return kind(what, where=self.device, got=message, hint=hint or None)
        if "error" not in message and not done.err:  # adb pull says nothing about a broken one
            return ConnectionLost(BROKEN, where=self.device)
        return DeviceError(UNKNOWN, where=self.device, got=message)

    def close(self) -> None:
        """Nothing is held: the server is the user's."""
