"""Detection of the machine that effc runs on.

The CPU name comes from LLVM (through TVM, imported only when asked for), the
instruction set extensions from the operating system: a virtual machine may hide
some that the CPU model has, and then code for the bare model would trap.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from effc.devices.cpu import cpu_features, missing_features
from effc.devices.target import Target
from effc.errors import UnsupportedError

__all__ = ["detect_host", "missing_features", "x86_vectors"]

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

    features = cpu_features()
    vector_bits, registers = 128, 32
    if machine == "x86_64":
        vector_bits, registers = x86_vectors(features)
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


def x86_vectors(features: tuple[str, ...]) -> tuple[int, int]:
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
