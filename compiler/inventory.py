"""Devices within reach: this machine, emulators, connected phones, machines behind ssh."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from effc.devices.adb import adb_program, list_phones
from effc.devices.address import Address, parse_device
from effc.devices.discovery import remember, target_of
from effc.devices.probe import Facts, facts_of
from effc.devices.session import Session
from effc.devices.transport import Device
from effc.doctor import EMULATED
from effc.errors import DeviceError, EffcError

__all__ = ["Found", "clean_devices", "find_devices"]


@dataclass(frozen=True)
class Found:
    """A place where artifacts can run, or could.

    Attributes:
        name: What ``--device`` takes.
        summary: One sentence.
        available: Whether it can be used now.
        hint: What to do if not.
        facts: What it says about itself.
        target: What ``--target`` takes for it.
        written: File to which an entry for it was written just now.
    """

    name: str
    summary: str
    available: bool
    hint: str = ""
    facts: Facts | None = None
    target: str | None = None
    written: str = ""

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def find_devices(wanted: Sequence[str]) -> list[Found]:
    """Every kind of device, connected phones, and those named.

    Connected devices are asked about themselves; one that the catalog lacks gets an entry.

    Args:
        wanted: Values of ``--device`` to look at as well.

    Raises:
        UsageError: One of them has no known form, or the catalog cannot be written.
        DeviceError: One of them cannot be reached.
    """
    named = [address for address in map(parse_device, wanted) if address.remote]
    phones = _phones()
    found = [*_here(), *phones, *(_asked(address) for address in named)]
    return list({device.name: device for device in found}.values())


def _here() -> list[Found]:
    emulators = [name for name in EMULATED if shutil.which(name)]
    return [
        Found("local", f"this machine ({platform.machine()})", True, target="host"),
        Found(
            "qemu",
            "emulation by " + (", ".join(emulators) or "QEMU, of Arm and RISC-V processors"),
            bool(emulators),
            "" if emulators else "apt-get install qemu-user qemu-system-arm qemu-system-misc",
        ),
    ]


def _phones() -> list[Found]:
    if adb_program() is None:
        hint = "apt-get install adb"
        return [Found("adb", "Android phones", False, hint)]
    try:
        phones = list_phones()
    except DeviceError as error:
        return [Found("adb", "Android phones", False, str(error))]
    if not phones:
        return [Found("adb", "Android phones", False, "none is connected")]
    found = []
    for phone in phones:
        address = Address("adb", serial=phone.serial)
        if phone.state == "device":
            try:
                found.append(_asked(address))
                continue
            except EffcError as error:
                state, hint = error.what, error.hint or ""
        else:
            state, hint = phone.state, phone.hint
        found.append(Found(str(address), "Android phone", False, f"{state}; {hint}".strip("; ")))
    return found


def _asked(address: Address) -> Found:
    facts = facts_of(address)
    device = Found(str(address), facts.title or address.host, True, facts=facts)
    target = target_of(facts)
    if target is not None:
        return replace(device, target=target)
    written = remember(facts)
    if written is None:
        return device
    name, path = written
    return replace(device, target=name, written=str(path))


def clean_devices(devices: Sequence[Found]) -> None:
    """Remove what effc keeps on devices between sessions.

    Raises:
        DeviceError: One cannot be reached.
    """
    for found in devices:
        address = parse_device(found.name)
        if found.available and address.kind != "qemu":
            with Device(address) as device:
                device.call(Session.clean)
