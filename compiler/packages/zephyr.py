"""A Zephyr module: ``zephyr/module.yml``, Kconfig, CMake, and a sample application."""

from __future__ import annotations

from pathlib import Path

from effc.packages.firmware import copy_sources, firmware_of, template_values
from effc.packages.package import Package, copy, render, write

__all__ = ["usage", "write_package"]

_CONDITIONS = {
    "cortex-m0plus": "CPU_CORTEX_M0PLUS",
    "cortex-m4": "CPU_CORTEX_M4 && FP_HARDABI",
    "cortex-m7": "CPU_CORTEX_M7 && FP_HARDABI",
    "cortex-m33": "CPU_CORTEX_M33 && FP_HARDABI",
    "cortex-m55": "CPU_CORTEX_M55 && FP_HARDABI",
    "riscv32": "RISCV && !64BIT",
}


def write_package(package: Package, folder: Path) -> None:
    """Write the module.

    Raises:
        UsageError: The artifact is for an operating system.
    """
    firmware = firmware_of(package, "a Zephyr module")
    values = template_values(package, firmware)
    values["conditions"] = [_CONDITIONS[core] for core in firmware.archives]
    values["symbols"] = {core: _CONDITIONS[core].split()[0] for core in firmware.archives}
    copy(firmware.header, folder / "include" / firmware.header.name)
    copy_sources(firmware, folder / "src")
    for core, archive in firmware.archives.items():
        copy(archive, folder / "lib" / core / archive.name)
    for file in ("module.yml", "CMakeLists.txt", "Kconfig"):
        write(folder / "zephyr" / file, render(f"zephyr/{file}.j2", **values))
    sample = folder / "samples" / package.name
    for file in ("CMakeLists.txt", "prj.conf", "sample.yaml", "src/main.c"):
        write(sample / file, render(f"zephyr/sample/{file}.j2", **values))


def usage(package: Package) -> str:
    """How an application takes the module in."""
    name = package.name
    return (
        f"west build -b BOARD DIR/samples/{name} -- -DZEPHYR_EXTRA_MODULES=DIR   # or in west.yml\n"
        f"CONFIG_EFFC_MODEL_{name.upper()}=y   # prj.conf of an application"
    )
