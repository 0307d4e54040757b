"""What the packages for microcontrollers have in common: C sources or archives, and an example."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effc.packages.package import Package, copy

__all__ = ["Firmware", "copy_sources", "firmware_of", "template_values"]


@dataclass(frozen=True)
class Firmware:
    """The files of an artifact for microcontrollers.

    Attributes:
        header: ``NAME.h``, which firmware includes.
        sources: C files and their own headers; empty where there are archives.
        archives: By core (``cortex-m4`` ...); empty where there are sources.
    """

    header: Path
    sources: tuple[Path, ...]
    archives: dict[str, Path]

    @property
    def c_files(self) -> tuple[Path, ...]:
        """The sources that are compiled."""
        return tuple(file for file in self.sources if file.suffix == ".c")


def firmware_of(package: Package, format: str) -> Firmware:
    """The files of a package's artifact.

    Raises:
        UsageError: It is for an operating system.
    """
    package.require_os("none", format=format)
    folder = package.artifact.folder
    header = folder / "include" / f"{package.name}.h"
    if package.manifest["machine"]["arch"] == "c":
        sources = sorted((folder / "src").iterdir())
        return Firmware(header, tuple(sources), {})
    return Firmware(header, (), {binary.abi: binary.path for binary in package.binaries})


def copy_sources(firmware: Firmware, folder: Path) -> None:
    """Copy C files and their own headers."""
    for file in firmware.sources:
        copy(file, folder / file.name)


def template_values(package: Package, firmware: Firmware) -> dict[str, Any]:
    """What templates of packages and examples are filled with."""
    manifest = package.manifest
    return {
        "name": package.name,
        "version": package.version,
        "target": manifest["target"],
        "inputs": range(len(manifest["inputs"])),
        "outputs": range(len(manifest["outputs"])),
        "arena": manifest["arena_bytes"],
        "flash": manifest["flash_bytes"],
        "sources": [file.name for file in firmware.c_files],
        "cores": list(firmware.archives),
    }
