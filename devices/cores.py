"""Arm cores by the numbers in MIDR_EL1 and ``/proc/cpuinfo``: implementer and part.

Sources: Arm's Technical Reference Manuals (register MIDR_EL1 of each core), Linux'
``arch/arm64/include/asm/cputype.h``. Cores of other firms that are Arm's with changes have the
name of that core, which is what code is scheduled for.
"""

from __future__ import annotations

__all__ = ["core_name", "llvm_name"]

_ARM = 0x41
_CORES = {
    (_ARM, 0xC07): "Cortex-A7",
    (_ARM, 0xC08): "Cortex-A8",
    (_ARM, 0xC09): "Cortex-A9",
    (_ARM, 0xC0D): "Cortex-A12",
    (_ARM, 0xC0E): "Cortex-A17",
    (_ARM, 0xC0F): "Cortex-A15",
    (_ARM, 0xD03): "Cortex-A53",
    (_ARM, 0xD04): "Cortex-A35",
    (_ARM, 0xD05): "Cortex-A55",
    (_ARM, 0xD07): "Cortex-A57",
    (_ARM, 0xD08): "Cortex-A72",
    (_ARM, 0xD09): "Cortex-A73",
    (_ARM, 0xD0A): "Cortex-A75",
    (_ARM, 0xD0B): "Cortex-A76",
    (_ARM, 0xD0C): "Neoverse-N1",
    (_ARM, 0xD0D): "Cortex-A77",
    (_ARM, 0xD0E): "Cortex-A76AE",
    (_ARM, 0xD40): "Neoverse-V1",
    (_ARM, 0xD41): "Cortex-A78",
    (_ARM, 0xD42): "Cortex-A78AE",
    (_ARM, 0xD44): "Cortex-X1",
    (_ARM, 0xD46): "Cortex-A510",
    (_ARM, 0xD47): "Cortex-A710",
    (_ARM, 0xD48): "Cortex-X2",
    (_ARM, 0xD49): "Neoverse-N2",
    (_ARM, 0xD4B): "Cortex-A78C",
    (_ARM, 0xD4C): "Cortex-X1C",
    (_ARM, 0xD4D): "Cortex-A715",
    (_ARM, 0xD4E): "Cortex-X3",
    (_ARM, 0xD4F): "Neoverse-V2",
    (_ARM, 0xD80): "Cortex-A520",
    (_ARM, 0xD81): "Cortex-A720",
    (_ARM, 0xD82): "Cortex-X4",
    (_ARM, 0xD85): "Cortex-X925",
    (_ARM, 0xD87): "Cortex-A725",
    (0x51, 0x800): "Cortex-A73",  # Kryo 2xx Gold
    (0x51, 0x801): "Cortex-A53",  # Kryo 2xx Silver
    (0x51, 0x802): "Cortex-A75",  # Kryo 3xx Gold
    (0x51, 0x803): "Cortex-A55",  # Kryo 3xx Silver
    (0x51, 0x804): "Cortex-A76",  # Kryo 4xx Gold
    (0x51, 0x805): "Cortex-A55",  # Kryo 4xx Silver
    (0x51, 0x001): "Oryon",
    (0x53, 0x002): "Exynos-M3",
    (0x53, 0x003): "Exynos-M4",
    (0x53, 0x004): "Exynos-M5",
}
_LLVM = {"Oryon": "oryon-1", "Cortex-A12": "cortex-a17"}


def core_name(implementer: int, part: int) -> str:
    """Name of a core; its numbers if it is not known."""
    return _CORES.get((implementer, part), f"core {implementer:#x}:{part:#x}")


def llvm_name(core: str) -> str:
    """LLVM's name of a known core, empty for an unknown one."""
    if core not in _CORES.values():
        return ""
    return _LLVM.get(core, core.lower())
