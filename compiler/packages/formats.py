"""``effc.export`` and ``effc export``: the formats by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from effc.artifact import Artifact, load_artifact
from effc.errors import UsageError
from effc.packages.package import Package, staged

__all__ = ["FORMATS", "Exported", "export"]

FORMATS: Mapping[str, str] = {
    "aar": "effc.packages.aar",
    "arduino": "effc.packages.arduino",
    "cmake": "effc.packages.cmake",
    "cmsis-pack": "effc.packages.cmsis_pack",
    "maven": "effc.packages.maven",
    "monitor": "effc.packages.monitor",
    "wheel": "effc.packages.wheel",
    "xcframework": "effc.packages.xcframework",
    "zephyr": "effc.packages.zephyr",
    "zip": "effc.packages.zipped",
}
"""Module by format. Each has ``write_package(package, folder)``, which fills a folder, and
``usage(package)``, which says in a few lines how an app takes the package in."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        output: The folder.
        files: Files in it, relative to it.
        usage: How an app takes the package in.
    """

    output: Path
    files: tuple[str, ...]
    usage: str


def export(
    artifact: str | Path | Artifact,
    format: str,
    output: str | Path,
    *,
    version: str = "1.0.0",
    group: str = "effc.models",
) -> Exported:
    """Pack an artifact for a build system, see docs/EXPORT.md.

    Args:
        artifact: Path of a folder or ``.effc`` file, or what ``compile`` returned.
        format: ``cmake``, ``zip`` ...
        output: Folder to write into; made if it is not there.
        version: Of the package, three numbers.
        group: Maven group and Java package.

    Raises:
        UsageError: An unknown format, or one that the artifact's target does not fit.
        ModelError: The artifact is damaged.
    """
    opened = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    package = Package(opened, Path(output), version, group)
    if format not in FORMATS:
        raise UsageError(
            f"unknown package format '{format}'", where="--as", expected=", ".join(sorted(FORMATS))
        )
    module: Any = import_module(FORMATS[format])
    fill: Callable[[Package, Path], None] = module.write_package
    with staged(package.output) as folder:
        fill(package, folder)
        files = tuple(
            file.relative_to(folder).as_posix()
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        )
    return Exported(package.output, files, module.usage(package))
