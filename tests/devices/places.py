"""Devices under test and what they need."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from adb_double import Phone, processes
from sshd import Sshd, sshd_program


@dataclass
class Place:
    """A device under test.

    Attributes:
        device: Value of ``--device``.
        base: Where effc's files lie, seen from this machine.
        phone, sshd: What is behind it.
    """

    device: str
    base: Path
    phone: Phone | None = None
    sshd: Sshd | None = None

    def assert_clean(self) -> None:
        """Nothing of a session is left, after a moment: no folder, no process."""
        limit = time.monotonic() + 10
        while self.left() and time.monotonic() < limit:
            time.sleep(0.05)
        assert self.left() == []

    def left(self) -> list[object]:
        """Folders and processes of sessions."""
        folders = list(self.base.iterdir()) if self.base.exists() else []
        return [
            *(folder for folder in folders if folder.name != "cache"),
            *processes(f"{self.base}/run."),
        ]


def need(program: str, package: str) -> str:
    """Path of a program; its test is skipped where it is missing."""
    path = sshd_program() if program == "sshd" else shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed (apt-get install {package})")
    return path


def make_phone(folder: Path, serial: str = "0A1B2C3D") -> Phone:
    (folder / "data" / "local" / "tmp").mkdir(parents=True)
    return Phone(serial, folder, environment={"PATH": os.environ["PATH"], "HOME": "/"})
