"""What this machine's processor can do, as the operating system tells it.

A virtual machine may hide instructions that the processor's model has. This module needs
nothing but Python: it is also part of wheels of compiled models.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_features", "features_of", "missing_features", "processor_name"]

# /proc/cpuinfo flag -> LLVM feature, where code generation for dense kernels can use it.
_X86_FEATURES = {
    "ssse3": "ssse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "popcnt": "popcnt",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi1": "bmi",
    "bmi2": "bmi2",
    "abm": "lzcnt",
    "movbe": "movbe",
    "avx_vnni": "avxvnni",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "gfni": "gfni",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
}
_ARM_FEATURES = {
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "atomics": "lse",
    "asimdrdm": "rdm",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}


def cpu_features() -> tuple[str, ...]:
    """LLVM features of the first CPU, each with its ``+`` or ``-``, in a fixed order.

    Features that code generation has no use for are not listed.
    """
    return features_of(Path("/proc/cpuinfo").read_text("utf-8"), platform.machine())


def missing_features(features: Iterable[str]) -> list[str]:
    """Which of a target's features (``+avx2`` ...) this machine's processor lacks.

    Features that the operating system does not list are taken for granted.
    """
    absent = {f"+{f[1:]}" for f in cpu_features() if f[0] == "-"}
    return sorted(f[1:] for f in set(features) & absent)


def features_of(cpuinfo: str, machine: str) -> tuple[str, ...]:
    """Features that all processors of a text of ``/proc/cpuinfo`` have (``+``) or some lack.

    They are in the order of the machine's table; none if the text does not tell.
    """
    x86 = machine == "x86_64"
    table = _X86_FEATURES if x86 else _ARM_FEATURES if machine == "aarch64" else {}
    found = []
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == ("flags" if x86 else "Features"):
            found.append(set(value.split()))
    if not found:
        return ()
    flags = set.intersection(*found)
    return tuple(("+" if flag in flags else "-") + feature for flag, feature in table.items())


def processor_name(cpuinfo: str) -> str:
    """Processors of a text of ``/proc/cpuinfo`` as they name themselves, each kind once."""
    names = ("vendor_id", "cpu family", "model", "model name", "stepping")
    arm = ("CPU implementer", "CPU part", "CPU revision")
    kinds = []
    for block in re.split(r"\n\s*\n", cpuinfo):
        fields = [[piece.strip() for piece in line.split(":", 1)] for line in block.splitlines()]
        values = {pair[0]: pair[1] for pair in fields if len(pair) == 2}
        kinds.append(", ".join(values[name] for name in (*names, *arm) if name in values))
    return "; ".join(dict.fromkeys(filter(None, kinds)))
