"""Targets: what code is generated for.

A target is data: an architecture, its vector unit and caches, an operating
system and its library rules. The catalog lives in TOML files beside this
module (``effc.devices.catalog`` reads them).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """A code-generation target.

    Attributes:
        name: Catalog name (``host``, ``android``, ``raspberry-pi-4``, ...).
        arch: ``x86_64``, ``aarch64``, ``arm``, ``thumb``, ``riscv32``, ...
        os: ``linux``, ``android``, ``ios`` or ``none``.
        abi: Folder name below ``lib/`` (``arm64-v8a``, ``x86_64-linux-gnu``, ...).
        triple: LLVM triple for TVM.
        cpu: LLVM CPU name (``mcpu``), empty for the architecture's generic one.
        features: LLVM features (``mattr``), each with its ``+`` or ``-``.
        vector_bits: Width of one vector register used for f32, 0 if none.
        vector_registers: Number of architectural vector registers.
        l1_bytes, l2_bytes: Data caches of one core.
        cores: Cores worth using for one inference.
        clang_target: ``-target`` for ``ziglang cc`` (shared library).
        runner_target: ``-target`` for a static test executable.
        android_api: Minimum API level, 0 when not Android.
    """

    name: str
    arch: str
    os: str
    abi: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    cores: int
    clang_target: str
    runner_target: str
    android_api: int = 0

    @property
    def lanes(self) -> int:
        """float32 elements per vector register (1 if there is no vector unit)."""
        return max(self.vector_bits // 32, 1)

    @property
    def half_arithmetic(self) -> bool:
        """Whether vectors of float16 are computed with (Armv8.2 FEAT_FP16), not only converted."""
        return self.arch == "aarch64" and self.has("fullfp16")

    @property
    def activation_dtype(self) -> str:
        """Element type of 8-bit activations: what the dot product instructions take.

        ``vpdpbusd`` multiplies unsigned bytes by signed ones, ``sdot`` signed bytes.
        """
        return "uint8" if self.arch == "x86_64" else "int8"

    def has(self, feature: str) -> bool:
        """Whether a feature (without sign) is switched on."""
        return f"+{feature}" in self.features

    def tvm(self) -> dict[str, object]:
        """The target as TVM's dictionary."""
        spec: dict[str, object] = {"kind": "llvm", "mtriple": self.triple}
        if self.cpu:
            spec["mcpu"] = self.cpu
        if self.features:
            spec["mattr"] = list(self.features)
        return spec
