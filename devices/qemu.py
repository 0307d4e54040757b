"""An emulated CPU as a device: QEMU's user mode runs a static program for another machine.

The emulated CPU is the weakest one that the target allows, so that an instruction which the
target does not promise is caught here and not on a phone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from effc.devices.target import Target
from effc.errors import ToolError

__all__ = ["not_emulated", "qemu_command"]

_PROGRAMS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "x86_64": "qemu-x86_64"}

# Target CPU -> QEMU CPU. Others run on `max`, which has every extension.
_CPUS = {
    "aarch64": {
        "generic": "cortex-a53",
        "cortex-a53": "cortex-a53",
        "cortex-a55": "cortex-a55",
        "cortex-a72": "cortex-a72",
        "cortex-a76": "cortex-a76",
        "cortex-a78ae": "cortex-a76",
    },
    "arm": {"generic": "cortex-a8", "cortex-a8": "cortex-a8"},
    "x86_64": {"x86-64-v2": "Nehalem", "x86-64-v3": "Haswell"},
}


_LACKING = ("avxvnni", "avx512")
"""Beginnings of features that QEMU's code generator does not know."""


def not_emulated(features: Iterable[str]) -> list[str]:
    """Which of a target's features (``+avx2`` ...) QEMU cannot emulate."""
    return sorted(f[1:] for f in features if f[0] == "+" and f[1:].startswith(_LACKING))


def qemu_command(target: Target) -> list[str]:
    """The emulator and its CPU, to be put in front of a static executable.

    Raises:
        ToolError: QEMU is not installed, or has no user mode for the architecture.
    """
    program = _PROGRAMS.get(target.arch)
    path = shutil.which(program) if program else None
    if program is None or path is None:
        raise ToolError(
            "QEMU's user mode is missing",
            where=program or target.arch,
            hint="install it (Debian and Ubuntu: apt-get install qemu-user), "
            "or compile with --no-verify",
        )
    known = "max" if target.has("i8mm") else _CPUS[target.arch].get(target.cpu, "max")
    return [path, "-cpu", known]
