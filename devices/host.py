"""Detection of the machine that effc runs on.

The CPU name comes from LLVM (through TVM, imported only when asked for), the
instruction set extensions from the operating system: a virtual machine may hide
some that the CPU model has, and then code for the bare model would trap.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

from effc.devices.target import Target
from effc.errors import UnsupportedError

__all__ = ["detect_host", "missing_features"]

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
_AVX512 = ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl")


def detect_host(name: str = "host") -> Target:
    """Describe this machine as a target.

    Raises:
        UnsupportedError: Not Linux on x86-64 or 64-bit Arm.
    """
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in ("x86_64", "aarch64"):
        raise UnsupportedError(
            "this machine cannot be a target",
            where="--target host",
            expected="Linux on x86_64 or aarch64",
            got=f"{platform.system()} on {machine}",
            hint="compile for another target, for example android",
        )
    from tvm.target import codegen

    table = _X86_FEATURES if machine == "x86_64" else _ARM_FEATURES
    features = _features(Path("/proc/cpuinfo"), table)
    vector_bits, registers = 128, 32
    if machine == "x86_64":
        vector_bits, registers = _x86_vectors(features)
    return Target(
        name=name,
        arch=machine,
        os="linux",
        abi=f"{machine}-linux-gnu",
        triple=f"{machine}-linux-gnu",
        cpu=str(codegen.llvm_get_system_cpu()),
        features=features,
        vector_bits=vector_bits,
        vector_registers=registers,
        l1_bytes=_cache_bytes(1, 32 << 10),
        l2_bytes=_cache_bytes(2, 256 << 10),
        cores=_cores(),
        clang_target=f"{machine}-linux-gnu",
        runner_target=f"{machine}-linux-musl",
    )


def missing_features(features: Iterable[str]) -> list[str]:
    """Which of a target's features (``+avx2`` ...) this machine's processor lacks.

    Features that the operating system does not list are taken for granted.
    """
    table = _X86_FEATURES if platform.machine() == "x86_64" else _ARM_FEATURES
    absent = {f"+{f[1:]}" for f in _features(Path("/proc/cpuinfo"), table) if f[0] == "-"}
    return sorted(f[1:] for f in set(features) & absent)


def _features(cpuinfo: Path, table: dict[str, str]) -> tuple[str, ...]:
    """Features of the first CPU listed, in the order of the table, absent ones with ``-``."""
    flags: set[str] = set()
    for line in cpuinfo.read_text("utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return tuple(("+" if flag in flags else "-") + feature for flag, feature in table.items())


def _x86_vectors(features: tuple[str, ...]) -> tuple[int, int]:
    """Vector width in bits and number of registers."""
    if all(f"+{feature}" in features for feature in _AVX512):
        return 512, 32
    return (256, 16) if "+avx2" in features else (128, 16)


def _cache_bytes(level: int, default: int) -> int:
    """Data or unified cache of CPU 0 at a level, as sysfs tells it."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            if int((index / "level").read_text()) == level and kind in ("Data", "Unified"):
                text = (index / "size").read_text().strip()
                return int(text.rstrip("KM")) * {"K": 1 << 10, "M": 1 << 20}.get(text[-1], 1)
        except (OSError, ValueError):
            continue
    return default


def _cores() -> int:
    """CPUs this process may use."""
    return max(len(os.sched_getaffinity(0)), 1)
