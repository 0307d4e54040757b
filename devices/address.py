"""What ``--device`` takes: this machine, an emulator, a phone, another machine, a board.

``local``, ``qemu``, ``adb[:SERIAL]``, ``ssh:[USER@]HOST[:PORT]`` or ``serial:PORT[@BAUD]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from effc.errors import UsageError

__all__ = ["FORMS", "Address", "parse_device"]

FORMS = "local, qemu, adb[:SERIAL], ssh:[USER@]HOST[:PORT] or serial:PORT[@BAUD]"

# Nothing that a program could take for an option, and no white space or control characters.
_SERIAL = re.compile(r"(?!-)[\x21-\x7e]+")
_PORT = re.compile(r"(?P<path>/[\x21-\x3f\x41-\x7e]+)(?:@(?P<baud>[1-9][0-9]{2,7}))?")
_BAUD = 115200
_SSH = re.compile(
    r"(?:(?P<user>(?!-)[A-Za-z0-9_.+-]+)@)?"
    r"(?:\[(?P<literal>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>(?!-)[A-Za-z0-9_.-]+))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)


@dataclass(frozen=True)
class Address:
    """A device as the user named it.

    Attributes:
        kind: ``local``, ``qemu``, ``adb``, ``ssh`` or ``serial``.
        serial: Of a phone, empty: the only one.
        host, user, port: For ssh; user empty and port 0: as ssh's configuration says.
        path, baud: Of a serial port.
    """

    kind: str
    serial: str = ""
    host: str = ""
    user: str = ""
    port: int = 0
    path: str = ""
    baud: int = 0

    @property
    def remote(self) -> bool:
        """Whether programs run on another machine."""
        return self.kind in ("adb", "ssh")

    def __str__(self) -> str:
        if self.kind == "adb":
            return f"adb:{self.serial}" if self.serial else "adb"
        if self.kind == "ssh":
            host = f"[{self.host}]" if ":" in self.host else self.host
            user = f"{self.user}@" if self.user else ""
            return f"ssh:{user}{host}" + (f":{self.port}" if self.port else "")
        if self.kind == "serial":
            return f"serial:{self.path}" + (f"@{self.baud}" if self.baud != _BAUD else "")
        return self.kind


def parse_device(text: str) -> Address:
    """Read the value of ``--device``.

    Raises:
        UsageError: It has none of the known forms.
    """
    kind, colon, rest = text.partition(":")
    if kind in ("local", "qemu", "adb") and not colon:
        return Address(kind)
    if kind == "adb" and _SERIAL.fullmatch(rest):
        return Address(kind, serial=rest)
    port = _PORT.fullmatch(rest) if kind == "serial" else None
    if port is not None:
        return Address(kind, path=port["path"], baud=int(port["baud"] or _BAUD))
    match = _SSH.fullmatch(rest) if kind == "ssh" else None
    if match is None or int(match["port"] or 0) > 65535:
        raise UsageError(f"unknown device '{text}'", where="--device", expected=FORMS)
    return Address(
        kind,
        host=match["literal"] or match["host"],
        user=match["user"] or "",
        port=int(match["port"] or 0),
    )
