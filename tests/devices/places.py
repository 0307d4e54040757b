"""Devices under test and what they need."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from adb_double import Phone
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


# A phone with eight cores of three kinds, as its files in /proc and /sys show it.
_CORES = ((4, 0xD05, 1803), (3, 0xD41, 2348), (1, 0xD44, 2850))
_PROPERTIES = {
    "ro.product.model": "Double 7",
    "ro.product.manufacturer": "effc",
    "ro.soc.manufacturer": "Google",
    "ro.soc.model": "GS201",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a,armeabi",
}
_FEATURES = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"


def make_phone(folder: Path, serial: str = "0A1B2C3D") -> Phone:
    """A phone that runs what this machine runs."""
    (folder / "data" / "local" / "tmp").mkdir(parents=True)
    return Phone(serial, folder, environment={"PATH": os.environ["PATH"], "HOME": "/"})


def make_arm_phone(folder: Path, foreign: Path, serial: str = "0A1B2C3D") -> Phone:
    """A phone with a 64-bit Arm processor; ``foreign`` is the library of ``foreign.c``."""
    phone = make_phone(folder, serial)
    cpus = [(part, mhz) for count, part, mhz in _CORES for _ in range(count)]
    blocks = [
        f"processor\t: {number}\nFeatures\t: {_FEATURES}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part:#x}\nCPU revision\t: 0\n"
        for number, (part, _) in enumerate(cpus)
    ]
    write(folder / "proc" / "cpuinfo", "\n".join(blocks))
    write(folder / "proc" / "meminfo", "MemTotal:        7741316 kB\nMemFree:  1 kB\n")
    for number, (_, mhz) in enumerate(cpus):
        cpu = folder / "sys" / "devices" / "system" / "cpu" / f"cpu{number}"
        write(cpu / "cpufreq" / "cpuinfo_max_freq", f"{mhz}000\n")
        for index, (level, kind, size) in enumerate(
            ((1, "Data", "64K"), (1, "Instruction", "64K"), (2, "Unified", "1024K"))
        ):
            cache = cpu / "cache" / f"index{index}"
            write(cache / "level", f"{level}\n")
            write(cache / "type", f"{kind}\n")
            write(cache / "size", f"{size}\n")
    write(folder / "sys" / "class" / "misc" / "mali0" / "device" / "gpuinfo", "Mali-G710 7 cores\n")
    properties = "".join(f"[{name}]: [{value}]\n" for name, value in _PROPERTIES.items())
    tools = arm_tools(folder / "bin")
    write(tools / "getprop", f"#!/bin/sh\ncat <<'END'\n{properties}END\n").chmod(0o755)
    phone.environment |= {"PATH": f"{tools}:{os.environ['PATH']}", "LD_PRELOAD": str(foreign)}
    return phone


def arm_tools(folder: Path) -> Path:
    """Folder with programs that answer as on 64-bit Arm."""
    text = '#!/bin/sh\nif [ "$1" = -m ]; then echo aarch64; else exec /bin/uname "$@"; fi\n'
    write(folder / "uname", text).chmod(0o755)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def processes(*texts: str) -> list[int]:
    """Processes with all texts in their command line, this one left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes()
            wanted = all(text.encode() in words for text in texts)
            if wanted and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found
