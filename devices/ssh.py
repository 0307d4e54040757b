"""ssh devices, through the system's OpenSSH: its keys, agent, known hosts and configuration hold.

One connection per session: the keeper's process is the master of a connection that all others
share (``ControlMaster``); its socket is a file in a private folder, no port is opened. Files
travel as tar streams, for which the other side needs ``tar`` and neither scp nor an sftp server.
"""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from effc.devices.address import Address
from effc.devices.links import BROKEN, UNKNOWN, ConnectionLost, command_line
from effc.devices.process import Finished, converse, start
from effc.errors import DeviceError, ToolError

__all__ = ["SshLink"]

# Whatever the user's configuration says: no questions, no terminal, nothing forwarded.
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ConnectionAttempts": "1",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlPersist": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "LogLevel": "ERROR",
}

_COMPLAINTS: tuple[tuple[str, str, str, bool], ...] = (
    # pattern, what, hint, whether trying again may help
    (
        r"Permission denied \(|Too many authentication failures|Load key",
        "the device refuses the login",
        "effc asks no questions: log in by key ('ssh-copy-id HOST', 'ssh-add')",
        False,
    ),
    (
        r"Host key verification failed|IDENTIFICATION HAS CHANGED",
        "the device's host key is unknown or has changed",
        "connect once with 'ssh HOST' and accept the key, if it is the right one",
        False,
    ),
    (
        r"Could not resolve hostname",
        "the host name is unknown",
        "check the name, or add it to ~/.ssh/config",
        False,
    ),
    (r"Bad (configuration|owner|port)|bad configuration", "ssh refuses its settings", "", False),
    (r"No space left on device", "the device's storage is full", "free some space there", False),
    (r"Connection refused|No route to host|Network is unreachable|timed out", "the device does "
     "not answer", "is it switched on, and sshd running?", True),
)  # fmt: skip


class SshLink:
    """A machine that the user can log into.

    Args:
        address: Of kind ``ssh``.

    Raises:
        ToolError: There is no ``ssh`` here.
    """

    base = ""

    def __init__(self, address: Address) -> None:
        program = shutil.which("ssh")
        if program is None:
            hint = "install OpenSSH's client (Debian: apt-get install openssh-client)"
            raise ToolError("ssh is missing", where="--device ssh", hint=hint)
        self.device = str(address)
        self._folder = tempfile.TemporaryDirectory(prefix="effc-ssh-")
        options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        options += ["-l", address.user] if address.user else []
        options += ["-p", str(address.port)] if address.port else []
        options += ["-S", f"{self._folder.name}/s"]
        self._master = [program, "-T", "-o", "ControlMaster=yes", *options, "--", address.host]
        # Without the master there shall be no connection, rather than a second one.
        alone = ["-o", "ControlMaster=no", "-o", "ProxyCommand=false"]
        self._client = [program, "-T", *alone, *options, "--", address.host]

    def open(self, command: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return start([*self._master, command], stdin=pipe, stdout=pipe, stderr=pipe)

    def argv(self, command: str) -> list[str]:
        return [*self._client, command]

    def push(self, files: Mapping[str, Path], folder: str, timeout_s: float) -> Finished:
        command = command_line(["tar", "-x", "-f", "-", "-C", folder])
        with tempfile.TemporaryFile() as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for name, path in files.items():
                    entry = tarfile.TarInfo(name)
                    entry.size = path.stat().st_size
                    with path.open("rb") as content:
                        archive.addfile(entry, content)
            stream.seek(0)
            return converse(self.argv(command), timeout_s, source=stream)

    def pull(self, names: Sequence[str], source: str, folder: Path, timeout_s: float) -> Finished:
        mark = secrets.token_hex(16)  # a login shell may say something before
        command = command_line(["tar", "-c", "-h", "-f", "-", "-C", source, *names])
        with tempfile.TemporaryFile() as stream:
            argv = self.argv(f"echo; echo {mark}; exec {command}")
            done = converse(argv, timeout_s, sink=stream)
            if done.code != 0:
                return done
            stream.seek(0)
            try:
                while (line := stream.readline()) and line != f"{mark}\n".encode():
                    pass
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for entry in archive:
                        content = archive.extractfile(entry)
                        if entry.name not in names or content is None:
                            raise tarfile.ReadError(f"unexpected entry {entry.name}")
                        with (folder / entry.name).open("wb") as file:
                            shutil.copyfileobj(content, file)
            except tarfile.TarError as error:
                raise ConnectionLost(
                    "a file came back damaged", where=self.device, got=error
                ) from error
        return done

    def explain(self, done: Finished) -> DeviceError:
        for pattern, what, hint, again in _COMPLAINTS:
            if re.search(pattern, done.message):
                kind = ConnectionLost if again else DeviceError
                return kind(what, where=self.device, got=done.message, hint=hint or None)
        if done.code == 255 or done.code < 0:
            return ConnectionLost(BROKEN, where=self.device, got=done.message)
        return DeviceError(UNKNOWN, where=self.device, got=done.message)

    def close(self) -> None:
        self._folder.cleanup()
