"""A Python wheel of a compiled model: NumPy in and out, no compiler at install, no effc either.

Binary distribution format 1.0 (packaging.python.org, "Binary distribution format"). The library
asks for no symbol versions and only for functions of glibc 2.17 and earlier, so its tag is
manylinux_2_17; Android's tags are those of PEP 738.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from pathlib import Path

from effc.archive import pack
from effc.packages.package import Binary, Package, copy, module_text, render, runtime_text, write

__all__ = ["usage", "write_package"]

_OWN_IMPORT = re.compile(r"^from effc\.(?:runtimes\.|devices\.)?(\w+) import", re.MULTILINE)


def write_package(package: Package, folder: Path) -> None:
    """Write one wheel per library.

    Raises:
        UsageError: The artifact is for neither Linux nor Android.
    """
    package.require_os("linux", "android", format="a wheel")
    for binary in package.binaries:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as work:
            tree = Path(work)
            _fill(package, binary, tree)
            pack(tree, folder / _file_name(package, binary))


def usage(package: Package) -> str:
    """How to install and call the model."""
    inputs = ", ".join(f"{port['name']!r}: array" for port in package.manifest["inputs"])
    return (
        f"pip install {_file_name(package, package.binaries[0])}\n"
        f"python -c 'import {package.name}; help({package.name})'\n"
        f"outputs = {package.name}.Model().run({{{inputs}}})"
    )


def _fill(package: Package, binary: Binary, tree: Path) -> None:
    name = package.name
    ports = (*package.manifest["inputs"], *package.manifest["outputs"])
    values = {
        "name": name,
        "version": package.version,
        "library": binary.path.name,
        "weights": None if package.weights is None else package.weights.name,
        "features": list(binary.machine["features"]),
        "threads": package.manifest["threads"],
        "inputs": package.manifest["inputs"],
        "outputs": package.manifest["outputs"],
        "target": package.manifest["target"],
        "needs": ["numpy>=1.24"]
        + (["ml-dtypes>=0.4"] if any(port["dtype"] == "bfloat16" for port in ports) else []),
        "tag": _tag(binary),
    }
    write(tree / name / "__init__.py", render("wheel/init.py.j2", **values))
    write(tree / name / "py.typed", "")
    for file in (binary.path, package.weights):
        if file is not None:
            copy(file, tree / name / file.name)
    for module, text in _loader_modules().items():
        write(tree / name / f"_{module}.py", text)
    info = f"{_normalized(name)}-{package.version}.dist-info"
    write(tree / info / "METADATA", render("wheel/METADATA.j2", **values))
    write(tree / info / "WHEEL", render("wheel/WHEEL.j2", **values))
    write(tree / info / "manifest.json", json.dumps(package.manifest, indent=1))
    write(tree / info / "RECORD", _record(tree, f"{info}/RECORD"))


def _loader_modules() -> dict[str, str]:
    """The loader of effc as modules of another package, by module name."""
    texts = {
        "loader": runtime_text("loader.py"),
        "c_api": runtime_text("c_api.py"),
        "cpu": module_text("devices", "cpu.py"),
        "errors": module_text("", "errors.py"),
    }
    return {module: _OWN_IMPORT.sub(r"from ._\1 import", text) for module, text in texts.items()}


def _record(tree: Path, own: str) -> str:
    """Every file with SHA-256 and size, the record itself without."""
    lines = []
    for file in sorted(tree.rglob("*")):
        if file.is_file():
            digest = hashlib.sha256(file.read_bytes()).digest()
            code = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            name = file.relative_to(tree).as_posix()
            lines.append(f"{name},sha256={code},{file.stat().st_size}\n")
    return "".join([*lines, f"{own},,\n"])


def _tag(binary: Binary) -> str:
    """Platform tag of a library."""
    machine = binary.machine
    if machine["os"] == "android":
        return f"android_{machine['android_api']}_{binary.abi.replace('-', '_')}"
    return f"manylinux_2_17_{'armv7l' if machine['arch'] == 'arm' else machine['arch']}"


def _file_name(package: Package, binary: Binary) -> str:
    return f"{_normalized(package.name)}-{package.version}-py3-none-{_tag(binary)}.whl"


def _normalized(name: str) -> str:
    """A name as file names of wheels have it; C prefixes of effc have no double underscores."""
    return name.lower()
