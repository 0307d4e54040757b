"""An Android archive (AAR): Java class, native libraries, C API as a prefab package.

Layout: developer.android.com, "Anatomy of an AAR file"; prefab: google.github.io/prefab, schema
version 2; ``aar-metadata.properties``: what the Android Gradle plugin writes and checks.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from effc.archive import pack
from effc.packages.java import build_jar, build_native, java_class
from effc.packages.package import Binary, Package, copy, render, write

__all__ = ["file_name", "usage", "write_package"]

_NDK = 21
"""Oldest NDK that prefab accepts the libraries for: plain C, no C++ library."""


def write_package(package: Package, folder: Path) -> None:
    """Write ``NAME-VERSION.aar``.

    Raises:
        UsageError: The artifact is not for Android.
        ToolError: There is no javac.
    """
    package.require_os("android", format="an AAR")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".aar-") as work:
        tree = Path(work)
        _fill(package, tree)
        pack(tree, folder / file_name(package))


def file_name(package: Package) -> str:
    """Of the archive."""
    return f"{package.name}-{package.version}.aar"


def usage(package: Package) -> str:
    """Gradle lines, and a call in Kotlin."""
    return f'dependencies {{ implementation(files("libs/{file_name(package)}")) }}\n' + calls(
        package
    )


def calls(package: Package) -> str:
    """How the class is called from Kotlin, and the library from C."""
    java = java_class(package)
    arguments = ", ".join(
        f"{port['name']}: {port['dtype']}"
        for port in (*package.manifest["inputs"], *package.manifest["outputs"])
    )
    made = f"{java.package}.{java.name}"
    lines = [
        f"Kotlin: {made}{'.open(context)' if package.weights else '()'}.use "
        f"{{ it.run({arguments}) }}",
        f"C: android {{ buildFeatures {{ prefab = true }} }}, then in CMake "
        f"find_package({package.name} REQUIRED CONFIG) and link {package.name}::{package.name}",
    ]
    if package.weights is not None:
        lines.insert(0, 'android { androidResources { noCompress += "bin" } }')
    return "\n".join(lines)


def _fill(package: Package, tree: Path) -> None:
    java = java_class(package)
    values = {
        "namespace": f"{package.group}.{package.name.lower()}",
        "api": max(binary.machine["android_api"] for binary in package.binaries),
        "class": f"{java.package}.{java.name}",
    }
    write(tree / "AndroidManifest.xml", render("aar/AndroidManifest.xml.j2", **values))
    write(tree / "proguard.txt", render("aar/proguard.txt.j2", **values))
    write(tree / "R.txt", "")
    metadata = tree / "META-INF/com/android/build/gradle/aar-metadata.properties"
    write(metadata, render("aar/aar-metadata.properties.j2"))
    build_jar(package, tree / "classes.jar")
    for binary in package.binaries:
        jni = tree / "jni" / binary.abi
        copy(binary.path, jni / binary.path.name)
        build_native(package, binary, jni / f"lib{package.name}_jni.so")
    if package.weights is not None:
        copy(package.weights, tree / "assets" / package.weights.name)
    _add_prefab(package, tree / "prefab")


def _add_prefab(package: Package, prefab: Path) -> None:
    name = package.name
    _write_json(
        prefab / "prefab.json",
        {"schema_version": 2, "name": name, "version": package.version, "dependencies": []},
    )
    module = prefab / "modules" / name
    _write_json(module / "module.json", {"export_libraries": [], "library_name": f"lib{name}"})
    for header in package.headers:
        copy(header, module / "include" / header.name)
    for binary in package.binaries:
        place = module / "libs" / f"android.{binary.abi}"
        copy(binary.path, place / binary.path.name)
        _write_json(place / "abi.json", _abi(binary))


def _abi(binary: Binary) -> dict[str, object]:
    api = binary.machine["android_api"]
    return {"abi": binary.abi, "api": api, "ndk": _NDK, "stl": "none", "static": False}


def _write_json(file: Path, value: dict[str, object]) -> None:
    write(file, json.dumps(value, indent=2) + "\n")
