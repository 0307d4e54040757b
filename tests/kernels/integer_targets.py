"""Instruction sets that integer kernels are written for, as targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from emulated import arm64
from single_op import host

from effc.devices.catalog import get_target
from effc.devices.target import Target

__all__ = ["ARM", "I8MM", "NATIVE", "native"]

_FEATURES = {
    "sse2": (128, ()),
    "avx2": (256, ("+avx2", "+fma", "+f16c")),
    "vnni256": (
        256,
        ("+avx2", "+fma", "+f16c", "+avx512f", "+avx512bw", "+avx512vl", "+avx512vnni"),
    ),
    "vnni": (512, ("+avx2", "+fma", "+f16c", "+avx512f", "+avx512bw", "+avx512vl", "+avx512vnni")),
}

NATIVE = tuple(_FEATURES)
"""Names for ``native``."""

ARM = {
    "neon": arm64("cortex-a72"),
    "dotprod": arm64("cortex-a76", "+dotprod", "+fullfp16"),
}
"""Targets for ``emulated.run_emulated``."""

I8MM = arm64("cortex-a715", "+dotprod", "+fullfp16", "+i8mm", "-sve", "-sve2")
"""With a matrix multiply instruction, which convolutions use."""


def native(name: str) -> Target:
    """This machine restricted to an instruction set; skips the test if it lacks it."""
    machine = get_target("host")
    if machine.arch != "x86_64":
        if name != NATIVE[0]:
            pytest.skip(f"{machine.arch} has no {name}")
        return host(128)
    bits, features = _FEATURES[name]
    lacking = [f for f in features if not machine.has(f.removeprefix("+"))]
    if lacking:
        pytest.skip(f"this machine has no {' '.join(lacking)}")
    return replace(host(bits), features=features)
