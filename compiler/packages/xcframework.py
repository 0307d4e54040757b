"""An xcframework of static archives, and a Swift package around it.

Layout of ``Info.plist`` as ``xcodebuild -create-xcframework`` writes it (format version 1.0). One
archive per platform: those of several processors are joined into a universal file
(``<mach-o/fat.h>``). Headers lie in a folder with the name of the Clang module: Clang looks for it
there, and those of several xcframeworks may be copied into one place.
"""

from __future__ import annotations

import plistlib
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from effc.errors import UsageError
from effc.macho import CPU_TYPES
from effc.packages.java import java_class
from effc.packages.package import Binary, Package, argument_names, copy, render, write

__all__ = ["usage", "write_package"]

_FAT_MAGIC, _FAT_ALIGNMENT = 0xCAFEBABE, 14  # 16 kB, the page size of arm64
_APPLE_ARCH = {"aarch64": "arm64", "x86_64": "x86_64"}
_SWIFT_TYPES = {
    "float32": "Float",
    "float64": "Double",
    "bool": "Bool",
    **{f"int{bits}": f"Int{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UInt{bits}" for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("float16", "bfloat16"), "UInt16"),
}


def write_package(package: Package, folder: Path) -> None:
    """Write ``NAME.xcframework``, ``Package.swift`` and the Swift class.

    Raises:
        UsageError: The artifact is not for Apple's systems, or keeps its weights in a file.
    """
    package.require_os("apple", format="an xcframework")
    if package.weights is not None:
        raise UsageError(
            "an xcframework holds its weights in the library",
            where=str(package.artifact.path),
            hint="compile with --weights embedded",
        )
    name = package.name
    framework = folder / f"{name}.xcframework"
    libraries = [_write_slice(package, slices, framework) for slices in _platforms(package)]
    framework.joinpath("Info.plist").write_bytes(
        plistlib.dumps(
            {
                "AvailableLibraries": libraries,
                "CFBundlePackageType": "XFWK",
                "XCFrameworkFormatVersion": "1.0",
            }
        )
    )
    swift = java_class(package).name
    values = {"name": name, "swift": swift, **_ports(package)}
    write(folder / "Package.swift", render("apple/Package.swift.j2", **values))
    write(folder / f"Sources/{swift}/{swift}.swift", render("apple/Model.swift.j2", **values))


def usage(package: Package) -> str:
    """How Xcode or a Swift package takes the package in."""
    swift = java_class(package).name
    return (
        f'Package.swift: .package(path: "{package.output}"), then the product "{swift}"\n'
        f"Swift: import {swift}; let model = try {swift}(threads: 2)\n"
        f'C: #include "C{package.name}/{package.name}.h"'
    )


def _platforms(package: Package) -> list[list[Binary]]:
    """Libraries by platform: device, simulator, macOS."""
    groups: dict[tuple[str, str], list[Binary]] = {}
    for binary in package.binaries:
        groups.setdefault(_platform(binary), []).append(binary)
    return [sorted(group, key=_arch) for group in groups.values()]


def _platform(binary: Binary) -> tuple[str, str]:
    """Platform and its variant."""
    triple = str(binary.machine["triple"])
    variant = "simulator" if triple.endswith("-simulator") else ""
    return ("macos" if "-macos" in triple else "ios"), variant


def _arch(binary: Binary) -> str:
    return _APPLE_ARCH[binary.machine["arch"]]


def _write_slice(package: Package, slices: Sequence[Binary], framework: Path) -> dict[str, Any]:
    """Write the files of one platform; its entry in ``Info.plist``."""
    platform, variant = _platform(slices[0])
    architectures = [_arch(binary) for binary in slices]
    identifier = "-".join(part for part in (platform, "_".join(architectures), variant) if part)
    library = f"lib{package.name}.a"
    target = framework / identifier
    target.mkdir(parents=True)
    (target / library).write_bytes(_universal(slices))
    headers = target / "Headers" / f"C{package.name}"
    for header in package.headers:
        copy(header, headers / header.name)
    write(headers / "module.modulemap", render("apple/module.modulemap.j2", name=package.name))
    entry: dict[str, Any] = {
        "HeadersPath": "Headers",
        "LibraryIdentifier": identifier,
        "LibraryPath": library,
        "SupportedArchitectures": architectures,
        "SupportedPlatform": platform,
    }
    return entry | ({"SupportedPlatformVariant": variant} if variant else {})


def _universal(slices: Sequence[Binary]) -> bytes:
    """The archive itself, or a universal file of several."""
    contents = [binary.path.read_bytes() for binary in slices]
    if len(slices) == 1:
        return contents[0]
    header = struct.pack(">2I", _FAT_MAGIC, len(slices))
    body = b""
    offset = 0
    for binary, content in zip(slices, contents, strict=True):
        offset = -(-max(offset, 4096) // (1 << _FAT_ALIGNMENT)) << _FAT_ALIGNMENT
        header += struct.pack(
            ">5I", *CPU_TYPES[binary.machine["arch"]], offset, len(content), _FAT_ALIGNMENT
        )
        body = body.ljust(offset, b"\0") + content
        offset += len(content)
    return header + body[len(header) :]


def _ports(package: Package) -> dict[str, Any]:
    """Names and Swift types of inputs and outputs."""
    inputs, outputs = package.manifest["inputs"], package.manifest["outputs"]
    names = iter(argument_names([*inputs, *outputs]))
    sides = {"inputs": inputs, "outputs": outputs}
    return {
        side: [
            {
                "argument": next(names),
                "type": _SWIFT_TYPES[port["dtype"]],
                "zero": "false" if port["dtype"] == "bool" else "0",
                "elements": prod(port["shape"]),
                "dtype": port["dtype"],
                "shape": port["shape"],
            }
            for port in ports
        ]
        for side, ports in sides.items()
    }
