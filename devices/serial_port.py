"""A board at a serial port: the wire to the monitor that runs on it (``effc.devices.wire``)."""

from __future__ import annotations

import fcntl
import os
import termios
import tty

from effc.devices.wire import Monitor
from effc.errors import DeviceError, UsageError

__all__ = ["SerialBoard"]


class SerialBoard:
    """An opened port; nobody else can open it meanwhile.

    Args:
        path: ``/dev/ttyACM0`` ...
        baud: Bits per second, both ways.
        timeout_s: For one answer.

    Raises:
        DeviceError: There is no such port, or it is in use.
        UsageError: The port knows no such speed.
    """

    def __init__(self, path: str, baud: int, timeout_s: float) -> None:
        where = f"serial:{path}"
        speed = getattr(termios, f"B{baud}", None)
        if speed is None:
            raise UsageError(
                "a serial port has no such speed", where=where, expected=_speeds(), got=baud
            )
        try:
            self._port = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(
                "the serial port cannot be opened",
                where=where,
                got=error.strerror,
                hint="is the board plugged in, and may this user open the port (group dialout)?",
            ) from error
        try:
            fcntl.ioctl(self._port, termios.TIOCEXCL)
            tty.setraw(self._port)
            settings = termios.tcgetattr(self._port)
            settings[4] = settings[5] = speed
            termios.tcsetattr(self._port, termios.TCSANOW, settings)
            termios.tcflush(self._port, termios.TCIOFLUSH)
        except (OSError, termios.error) as error:
            os.close(self._port)
            raise DeviceError("this is no serial port", where=where, got=error) from error
        self.monitor = Monitor(self._port, self._port, where, lambda: "", timeout_s)

    def close(self) -> None:
        """Give the port back; the monitor on the board goes on."""
        os.close(self._port)


def _speeds() -> str:
    known = (name[1:] for name in dir(termios) if name[:1] == "B" and name[1:].isdigit())
    return ", ".join(map(str, sorted(int(speed) for speed in known if int(speed))))
