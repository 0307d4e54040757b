"""A CMSIS-Pack: ``VENDOR.NAME.VERSION.pack`` with one component, class Machine Learning."""

from __future__ import annotations

import tempfile
from pathlib import Path

from effc.archive import pack
from effc.errors import UsageError
from effc.packages.firmware import copy_sources, firmware_of, template_values
from effc.packages.package import Package, copy, render, write

__all__ = ["usage", "write_package"]

_CORES = {
    "cortex-m0plus": "Cortex-M0+",
    "cortex-m4": "Cortex-M4",
    "cortex-m7": "Cortex-M7",
    "cortex-m33": "Cortex-M33",
    "cortex-m55": "Cortex-M55",
}


def write_package(package: Package, folder: Path) -> None:
    """Write the pack.

    Raises:
        UsageError: The artifact is for an operating system, or for a core that is not Arm's.
    """
    firmware = firmware_of(package, "a CMSIS-Pack")
    strange = [core for core in firmware.archives if core not in _CORES]
    if strange:
        raise UsageError(
            "a CMSIS-Pack is for Arm's cores",
            where=str(package.artifact.path),
            expected=", ".join(_CORES),
            got=", ".join(strange),
        )
    values = template_values(package, firmware)
    values |= {
        "vendor": _vendor(package),
        "libraries": [
            {"core": _CORES[core], "condition": core, "file": f"lib/{core}/{archive.name}"}
            for core, archive in firmware.archives.items()
        ],
        "headers": [f.name for f in firmware.sources if f.suffix == ".h"],
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pack-") as name:
        work = Path(name)
        write(work / f"{_vendor(package)}.{package.name}.pdsc", render("cmsis/pdsc.j2", **values))
        copy(firmware.header, work / "include" / firmware.header.name)
        copy_sources(firmware, work / "src")
        for core, archive in firmware.archives.items():
            copy(archive, work / "lib" / core / archive.name)
        write(work / f"examples/{package.name}_run.c", render("cmsis/example.c.j2", **values))
        pack(work, folder / _file(package))


def _vendor(package: Package) -> str:
    return package.group.replace(".", "-")


def _file(package: Package) -> str:
    return f"{_vendor(package)}.{package.name}.{package.version}.pack"


def usage(package: Package) -> str:
    """How a project takes the pack in."""
    return (
        f"cpackget add DIR/{_file(package)}   # or Pack Installer > File > Import\n"
        f'component Machine Learning:Model:{package.name}, then #include "{package.name}.h"'
    )
