"""An Arduino library, revision 2.2 of the format: C source, or precompiled for each core.

A precompiled library lies at ``src/{build.mcu}/libNAME.a``; for boards whose compiler flags name a
floating-point unit, in ``{fpu}-{float-abi}`` below that.
"""

from __future__ import annotations

from pathlib import Path

from effc.packages.firmware import copy_sources, firmware_of, template_values
from effc.packages.package import Package, copy, render, write

__all__ = ["usage", "write_package"]

_FOLDERS = {
    "cortex-m0plus": ("cortex-m0plus",),
    "cortex-m4": ("cortex-m4/fpv4-sp-d16-hard",),
    "cortex-m7": ("cortex-m7/fpv5-d16-hard", "cortex-m7/fpv5-sp-d16-hard"),
    "cortex-m33": ("cortex-m33/fpv5-sp-d16-hard",),
    "cortex-m55": ("cortex-m55",),
    "riscv32": ("esp32c3",),
}


def write_package(package: Package, folder: Path) -> None:
    """Write the library's folder, ``NAME/``.

    Raises:
        UsageError: The artifact is for an operating system.
    """
    firmware = firmware_of(package, "an Arduino library")
    name, library = package.name, folder / package.name
    values = template_values(package, firmware)
    copy(firmware.header, library / "src" / firmware.header.name)
    copy_sources(firmware, library / "src")
    for core, archive in firmware.archives.items():
        for place in _FOLDERS[core]:
            copy(archive, library / "src" / place / archive.name)
    for file in ("library.properties", "keywords.txt"):
        write(library / file, render(f"arduino/{file}.j2", **values))
    sketch = library / "examples" / f"{name}_run" / f"{name}_run.ino"
    write(sketch, render("arduino/example.ino.j2", **values))


def usage(package: Package) -> str:
    """How a sketch takes the library in."""
    name = package.name
    return (
        f"copy DIR/{name} into the sketchbook's libraries folder, or zip it for the IDE\n"
        f"#include <{name}.h>   then as in File > Examples > {name} > {name}_run"
    )
