"""A zip file of the CMake package's files, for every other way of building."""

from __future__ import annotations

import tempfile
from pathlib import Path

from effc.archive import pack
from effc.packages import cmake
from effc.packages.package import Package, render, write

__all__ = ["usage", "write_package"]


def write_package(package: Package, folder: Path) -> None:
    """Write ``NAME-VERSION-TARGET.zip``, with one folder of that name in it."""
    stem = _stem(package)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".zip-") as work:
        tree = Path(work) / stem
        cmake.write_package(package, tree)
        several = len(package.binaries) > 1
        write(
            tree / "README.txt",
            render(
                "zip/README.txt.j2",
                name=package.name,
                version=package.version,
                target=package.manifest["target"],
                folder="lib/ABI" if several else "lib",
                weights=None if package.weights is None else package.weights.name,
                inputs=package.manifest["inputs"],
                outputs=package.manifest["outputs"],
            ),
        )
        pack(Path(work), folder / f"{stem}.zip")


def usage(package: Package) -> str:
    """What to do with the file."""
    return f"unpack {_stem(package)}.zip; README.txt in it says how to compile and link"


def _stem(package: Package) -> str:
    return f"{package.name}-{package.version}-{package.manifest['target']}"
