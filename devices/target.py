"""Targets: what code is generated for.

A target is data: an architecture, its vector unit and caches, an operating
system and its library rules. The catalog lives in TOML files beside this
module (``effc.devices.catalog`` reads them).

A target that stands for many processors may have *variants*: further versions of some
functions for processors with more features, of which the library picks one when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from effc.errors import InternalError

__all__ = ["BASE", "Target", "Variant"]

BASE = "base"
"""Name of the version that every processor of a target runs."""


@dataclass(frozen=True)
class Variant:
    """Processors of a target that have more than it promises.

    Attributes:
        name: Short name, part of C symbols.
        features: LLVM features, each with its ``+``; the processor is asked for every one.
            They cover what ``cpu`` implies, as far as code for a kernel may use it.
        cpu: LLVM CPU name to schedule for; the target's own if empty.
    """

    name: str
    features: tuple[str, ...]
    cpu: str = ""


@dataclass(frozen=True)
class Target:
    """A code-generation target.

    Attributes:
        name: Catalog name (``host``, ``android``, ``raspberry-pi-4``, ...).
        arch: ``x86_64``, ``aarch64``, ``arm``, ``thumb``, ``riscv32``, ...
        os: ``linux``, ``android``, ``apple`` (iOS, its simulator, macOS) or ``none``.
        abi: Folder name below ``lib/`` (``arm64-v8a``, ``x86_64-linux-gnu``, ...).
        triple: LLVM triple for TVM.
        cpu: LLVM CPU name (``mcpu``), empty for the architecture's generic one.
        features: LLVM features (``mattr``), each with its ``+`` or ``-``.
        vector_bits: Width of one vector register used for f32, 0 if none.
        vector_registers: Number of architectural vector registers.
        l1_bytes, l2_bytes: Data caches of one core.
        cores: Cores worth using for one inference.
        clang_target: ``-target`` for ``ziglang cc`` (shared library).
        runner_target: ``-target`` for a static test executable, empty where none can run.
        android_api: Minimum API level, 0 when not Android.
        variants: Processors worth code of their own, best first.
        common: The version that most devices run: configurations are ranked for it.
        ram_bytes, flash_bytes: Memory of a microcontroller, 0 where it is not known.
        clock_mhz: Its clock, 0 where it is not known.
        machine: What emulates it, a key of ``effc.devices.boards``; empty if nothing does.
        optimize: What code is chosen for: ``speed``, ``size``, or ``balanced``.
        shared: Features that weights may be packed for, if they are fewer than ``features``:
            those of all versions of the target that this is one of (``version``).
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
    variants: tuple[Variant, ...] = ()
    common: str = BASE
    ram_bytes: int = 0
    flash_bytes: int = 0
    clock_mhz: int = 0
    machine: str = ""
    optimize: str = "balanced"
    shared: tuple[str, ...] | None = None

    @property
    def bare(self) -> bool:
        """Whether code runs without an operating system: a microcontroller."""
        return self.os == "none"

    @property
    def float_unit(self) -> bool:
        """Whether the processor computes in float32; others call a library for each operation."""
        return not self.bare or self.has("fpregs") or self.has("f")

    @property
    def lanes(self) -> int:
        """float32 elements per vector register (1 if there is no vector unit)."""
        return max(self.vector_bits // 32, 1)

    @property
    def serial(self) -> bool:
        """Whether one worker runs everything: there are no threads without an operating system."""
        return self.bare

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

    def registers(self, dtype: str) -> int:
        """Registers that elements of ``dtype`` are computed in.

        A scalar floating-point unit has its own, beside those for bytes and integers.
        """
        scalar = self.arch in ("thumb", "riscv32") and self.float_unit and self.vector_bits < 128
        return 32 if scalar and dtype.startswith("float") else self.vector_registers

    def has(self, feature: str) -> bool:
        """Whether a feature (without sign) is switched on."""
        return f"+{feature}" in self.features

    def promises(self, feature: str) -> bool:
        """Whether a feature is on in this and all other versions: weights may depend on it."""
        return f"+{feature}" in (self.features if self.shared is None else self.shared)

    def version(self, name: str) -> Target:
        """The target as one of its versions sees it: ``base``, or a variant's name.

        Vectors, caches and cores stay, so that kernels come out with the same layouts.

        Raises:
            InternalError: There is no such variant.
        """
        if name == BASE:
            return replace(self, variants=(), common=BASE, shared=self.features)
        for variant in self.variants:
            if variant.name == name:
                kept = [f for f in self.features if f"+{f[1:]}" not in variant.features]
                return replace(
                    self,
                    cpu=variant.cpu or self.cpu,
                    features=(*kept, *variant.features),
                    variants=(),
                    common=BASE,
                    shared=self.features,
                )
        raise InternalError("target has no such variant", where=self.name, got=name)

    def tvm(self) -> dict[str, object]:
        """The target as TVM's dictionary."""
        spec: dict[str, object] = {"kind": "llvm", "mtriple": self.triple}
        if self.cpu:
            spec["mcpu"] = self.cpu
        if self.features:
            spec["mattr"] = list(self.features)
        if self.bare:  # it leaves optimization to clang, see effc.bare.toolchain
            spec |= {"opt-level": 0, "vector-width": 128}
        return spec
