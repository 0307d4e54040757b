"""Devices as places where programs run: what is above sessions.

    with open_device("ssh:pi@kitchen") as device:
        def job(session):
            session.push({"bench": program, "libnet.so": library}, keep=True)
            return session.run(["bench", "--runs", "50"], timeout_s=60)
        done = device.call(job)

A job is everything from pushing to pulling, so that it can be done again from the start in a new
session when the connection broke.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from effc.devices.adb import AdbLink
from effc.devices.address import Address, parse_device
from effc.devices.links import ConnectionLost, Link, LocalLink
from effc.devices.session import Session
from effc.devices.ssh import SshLink
from effc.errors import DeviceError

__all__ = ["Device", "Session", "open_device"]

Result = TypeVar("Result")

_PAUSE_S = 3.0
"""Before the second try: a phone whose cable moved takes a moment to come back."""


class Device:
    """A device, connected when the first job needs it.

    Args:
        address: As the user named it; of kind ``qemu`` with an emulator as ``runner``.
        runner: Words before every command.
    """

    def __init__(self, address: Address, runner: Sequence[str] = ()) -> None:
        self.address = address
        self.runner = tuple(runner)
        self._session: Session | None = None

    def call(self, job: Callable[[Session], Result]) -> Result:
        """Do a job in a session; once more in a new one if the connection broke.

        Raises:
            DeviceError: The device cannot be reached or the job failed.
        """
        try:
            return self._attempt(job)
        except ConnectionLost:
            time.sleep(_PAUSE_S)
            return self._attempt(job)

    def _attempt(self, job: Callable[[Session], Result]) -> Result:
        if self._session is None:
            self._session = Session(self._link(), self.runner)
        try:
            return job(self._session)
        except ConnectionLost:  # what it leaves there is for the keeper, or the next session
            self._session.close()
            self._session = None
            raise
        except BaseException:
            self.close()
            raise

    def _link(self) -> Link:
        if self.address.kind == "adb":
            return AdbLink(self.address)
        if self.address.kind == "ssh":
            return SshLink(self.address)
        return LocalLink()

    def close(self) -> None:
        """End the session, if there is one. May be called again."""
        session, self._session = self._session, None
        if session is not None and not session.close():
            with contextlib.suppress(DeviceError):
                Session(self._link()).close()  # the keeper was killed; another one cleans up

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_device(text: str) -> Device:
    """A device by the value of ``--device``.

    Args:
        text: ``adb:SERIAL``, ``ssh:HOST``, ``local`` ...

    Raises:
        UsageError: The text has no known form.
    """
    return Device(parse_device(text))
