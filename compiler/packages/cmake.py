"""A CMake package: ``find_package``, ``add_subdirectory`` and pkg-config; C and C++.

One imported target, ``NAME::NAME``: a program that linked the library twice, shared and static,
would have every model twice.
"""

from __future__ import annotations

import json
from pathlib import Path

from effc.packages.package import Package, copy, render, runtime_text, write

__all__ = ["usage", "write_package"]

_PROCESSORS = {
    "aarch64": "^(aarch64|arm64|ARM64)$",
    "arm": "^arm",
    "x86_64": "^(x86_64|AMD64|amd64)$",
}
_SYSTEMS = {"linux": "Linux", "android": "Android"}


def write_package(package: Package, folder: Path) -> None:
    """Fill an install tree.

    Raises:
        UsageError: The artifact is for neither Linux nor Android.
    """
    package.require_os("linux", "android", format="a CMake package")
    name = package.name
    several = len(package.binaries) > 1
    places = {}
    for binary in package.binaries:
        places[binary.abi] = f"lib/{binary.abi}" if several else "lib"
        copy(binary.path, folder / places[binary.abi] / binary.path.name)
    for header in package.headers:
        copy(header, folder / "include" / header.name)
    write(folder / "include/effc.hpp", runtime_text("cpp/effc.hpp"))
    share = folder / "share" / name
    if package.weights is not None:
        copy(package.weights, share / package.weights.name)
    first = package.binaries[0]
    values = {
        "name": name,
        "version": package.version,
        "library": first.path.name,
        "folder": places[first.abi],
        "several": several,
        "libraries": [
            {
                "abi": binary.abi,
                "folder": places[binary.abi],
                "processor": _PROCESSORS[binary.machine["arch"]],
            }
            for binary in package.binaries
        ],
        "system": _SYSTEMS[first.machine["os"]],
        "pointer": 4 if first.machine["arch"] == "arm" else 8,
        "target": package.manifest["target"],
        "weights": None if package.weights is None else package.weights.name,
    }
    write(folder / f"include/{name}.hpp", render("cmake/model.hpp.j2", **values))
    for suffix in ("Config", "ConfigVersion", "Targets"):
        text = render(f"cmake/{suffix}.cmake.j2", **values)
        write(folder / f"lib/cmake/{name}/{name}{suffix}.cmake", text)
    write(folder / "CMakeLists.txt", render("cmake/CMakeLists.txt.j2", **values))
    if not several:  # a .pc file names one library
        write(folder / f"lib/pkgconfig/{name}.pc", render("cmake/model.pc.j2", **values))
    for file in ("CMakeLists.txt", "main.c", "main.cpp"):
        text = render(f"cmake/examples/{file}.j2", **values)
        write(share / "examples" / file, text)
    write(share / "manifest.json", json.dumps(package.manifest, indent=1, ensure_ascii=False))


def usage(package: Package) -> str:
    """How a CMake project takes the package in."""
    name = package.name
    return (
        f"find_package({name} {package.version} CONFIG REQUIRED)"
        "   # cmake -D CMAKE_PREFIX_PATH=DIR\n"
        f"target_link_libraries(app PRIVATE {name}::{name})\n"
        f'#include "{name}.h"   or, in C++, "{name}.hpp"'
    )
