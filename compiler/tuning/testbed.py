"""Machines that measure candidates: this one, a device behind adb or ssh, an emulated board."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from effc.devices.address import Address
from effc.devices.cpu import missing_features, processor_name
from effc.devices.emulated import get_board
from effc.devices.probe import Facts, facts_of
from effc.devices.process import Finished, TimedOut, converse
from effc.devices.session import OutOfTime, Session
from effc.devices.target import Target
from effc.devices.transport import Device
from effc.errors import DeviceError, ToolError

__all__ = [
    "AnyTestbed",
    "EmulatedBoard",
    "RemoteTestbed",
    "Testbed",
    "ThisMachine",
    "open_testbed",
    "testbed_of",
]

Result = TypeVar("Result")

_LEAST_CACHE = 8 << 20
_MOBILE_CACHE = 4 << 20
"""Last cache where Android hides its size: what Armv8.2 cores usually share."""

_PATIENCE_S = 300.0
_POLL_S = 5.0


class Testbed(Protocol):
    """What measures.

    Attributes:
        name: What times belong to, in the tuning database.
        cpus: Processors that may be used, the one to use first at the end.
        last_cache_bytes: Its largest cache.
    """

    @property
    def name(self) -> str: ...

    @property
    def cpus(self) -> Sequence[int]: ...

    @property
    def last_cache_bytes(self) -> int: ...

    def refusal(self, target: Target) -> str | None:
        """Why it cannot measure kernels for a target, or ``None``."""

    def missing_features(self, features: Iterable[str]) -> list[str]:
        """Which of a target's features (``+avx2`` ...) its processor lacks."""

    def send(self, folder: Path, names: Sequence[str]) -> None:
        """Make files of a folder ready for :meth:`run`."""

    def close(self) -> None:
        """Leave it."""

    def run(
        self, folder: Path, names: Sequence[str], words: Sequence[str], timeout_s: float
    ) -> Finished:
        """Run a program that needs files of a folder; the first one is the program.

        Raises:
            ToolError: It hung.
            DeviceError: The machine is gone.
        """


class ThisMachine:
    """The machine that effc runs on."""

    @property
    def name(self) -> str:
        try:
            return processor_name(Path("/proc/cpuinfo").read_text("utf-8"))
        except OSError:
            return platform.processor() or platform.machine()

    @property
    def cpus(self) -> Sequence[int]:
        return sorted(os.sched_getaffinity(0))

    @property
    def last_cache_bytes(self) -> int:
        sizes = [_LEAST_CACHE]
        units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
            text = file.read_text().strip()
            if text[:-1].isdigit():
                sizes.append(int(text[:-1]) * units.get(text[-1], 1))
        return max(sizes)

    def refusal(self, target: Target) -> str | None:
        if target.arch != platform.machine() or platform.system() != "Linux":
            return (
                f"code for {target.arch} does not run natively on this {platform.machine()} machine"
            )
        return _foreign(target)

    def missing_features(self, features: Iterable[str]) -> list[str]:
        return missing_features(features)

    def send(self, folder: Path, names: Sequence[str]) -> None:
        """They are here."""

    def close(self) -> None:
        """Nothing is held."""

    def run(
        self, folder: Path, names: Sequence[str], words: Sequence[str], timeout_s: float
    ) -> Finished:
        try:
            return converse([str((folder / names[0]).resolve()), *words], timeout_s, cwd=folder)
        except TimedOut as error:
            raise ToolError("a measurement hung", got="timeout") from error


class RemoteTestbed:
    """A device. One that goes away, as in a reboot, is waited for.

    Args:
        device: The device.
        facts: What it says about itself.
    """

    def __init__(self, device: Device, facts: Facts) -> None:
        self.device = device
        self.facts = facts

    @property
    def name(self) -> str:
        return self.facts.identity

    @property
    def cpus(self) -> Sequence[int]:
        return self.facts.cpus or (0,)

    @property
    def last_cache_bytes(self) -> int:
        return self.facts.last_cache_bytes or _MOBILE_CACHE

    def refusal(self, target: Target) -> str | None:
        if not self.facts.runs(target.arch):
            return f"code for {target.arch} does not run on {self.facts.arch}"
        missing = self.missing_features(target.features)
        if missing:
            return f"the device's processor lacks {', '.join(missing)}"
        return _foreign(target)

    def missing_features(self, features: Iterable[str]) -> list[str]:
        return self.facts.missing_features(features)

    def send(self, folder: Path, names: Sequence[str]) -> None:
        self._patiently(lambda session: _push(session, folder, names))

    def run(
        self, folder: Path, names: Sequence[str], words: Sequence[str], timeout_s: float
    ) -> Finished:
        def job(session: Session) -> Finished:
            _push(session, folder, names)
            return session.run([names[0], *words], timeout_s)

        try:
            return self._patiently(job)
        except OutOfTime as error:
            raise ToolError("a measurement hung", got="timeout") from error

    def close(self) -> None:
        self.device.close()

    def _patiently(self, job: Callable[[Session], Result]) -> Result:
        """Do a job; if the device has gone, again when it is back."""
        try:
            return self.device.call(job)
        except OutOfTime:
            raise
        except DeviceError as error:
            self._await_return(error)
            return self.device.call(job)

    def _await_return(self, error: DeviceError) -> None:
        limit = time.monotonic() + _PATIENCE_S
        while True:
            time.sleep(_POLL_S)
            try:
                self.device.call(lambda session: None)
                return
            except DeviceError:
                if time.monotonic() >= limit:
                    raise error from None


@dataclass(frozen=True)
class EmulatedBoard:
    """A microcontroller in QEMU, which counts instructions (``effc.tuning.counts``).

    Attributes:
        machine: QEMU's name of the board, empty if none fits.
    """

    machine: str

    @property
    def name(self) -> str:
        return f"qemu {self.machine}"

    last_cache_bytes = sys.maxsize
    """Counts do not depend on where weights are."""

    def refusal(self, target: Target) -> str | None:
        program = get_board(self.machine).program if self.machine else "an emulator"
        return None if shutil.which(program) else f"{program} is not installed"

    def missing_features(self, features: Iterable[str]) -> list[str]:
        return []

    def close(self) -> None:
        """Nothing is held."""


AnyTestbed: TypeAlias = Testbed | EmulatedBoard


def testbed_of(target: Target) -> AnyTestbed:
    """What measures for a target where nobody names a device."""
    return EmulatedBoard(target.machine) if target.bare else ThisMachine()


def _push(session: Session, folder: Path, names: Sequence[str]) -> None:
    """Push what the session lacks, at once."""
    session.push({name: folder / name for name in names})


def _foreign(target: Target) -> str | None:
    """Why a target's programs run on no testbed."""
    if target.os not in ("linux", "android"):
        return f"code for {target.os} does not run on Linux"
    return None if target.runner_target else "the target has no test executables"


def open_testbed(address: Address, target: Target) -> AnyTestbed:
    """The machine at an address; what is natural for the target if it is not another one.

    Raises:
        DeviceError: It cannot be reached, or does not run code for the target.
    """
    if not address.remote:
        return testbed_of(target)
    testbed = RemoteTestbed(Device(address), facts_of(address))
    reason = testbed.refusal(target)
    if reason is not None:
        raise DeviceError(
            f"the device cannot measure kernels for {target.name}",
            where=f"--device {address}",
            got=reason,
            hint="'effc devices' names its target",
        )
    return testbed
