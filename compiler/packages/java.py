"""A model's Java class, and the native library behind it.

The class stands alone, so that an app may take in any number of models: nothing is shared that
could be there twice. Only ``javac`` is needed, no Android SDK.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any

from effc import elf, zig
from effc.archive import pack
from effc.devices.catalog import get_target
from effc.errors import ToolError, UnsupportedError
from effc.link import ARCH_FLAGS, C_FLAGS, library_flags
from effc.packages.package import Binary, Package, argument_names, render, write

__all__ = ["JavaClass", "build_jar", "build_native", "java_class"]

_RELEASE = "8"
"""Oldest Java whose class files javac still writes; every Android build system reads them."""

# dtype -> Java element type, buffer class, call that makes the buffer
_TYPES = {
    **dict.fromkeys(("int8", "uint8", "bool"), ("byte", "ByteBuffer", "")),
    **dict.fromkeys(
        ("int16", "uint16", "float16", "bfloat16"), ("short", "ShortBuffer", ".asShortBuffer()")
    ),
    **dict.fromkeys(("int32", "uint32"), ("int", "IntBuffer", ".asIntBuffer()")),
    **dict.fromkeys(("int64", "uint64"), ("long", "LongBuffer", ".asLongBuffer()")),
    "float32": ("float", "FloatBuffer", ".asFloatBuffer()"),
    "float64": ("double", "DoubleBuffer", ".asDoubleBuffer()"),
}
_MAX_BYTES = 2**31 - 1
_METHODS = ("nativeCreate", "nativeDestroy", "nativeMessage", "nativeRun")
_USED = frozenset(
    (
        *("AutoCloseable", "ByteBuffer", "ByteOrder", "DoubleBuffer", "FloatBuffer", "IntBuffer"),
        *("AssetFileDescriptor", "Context", "File", "FileChannel", "FileInputStream"),
        *("FileNotFoundException", "FileOutputStream", "IOException", "InputStream"),
        *("LongBuffer", "ShortBuffer", "IllegalArgumentException", "IllegalStateException"),
        *("ModelException", "Override", "RuntimeException", "String", "System", "TensorInfo"),
    )
)
"""Classes that the source names itself."""


@dataclass(frozen=True)
class JavaClass:
    """A model's class.

    Attributes:
        package: Java package.
        name: Class name.
    """

    package: str
    name: str

    @property
    def file(self) -> str:
        """Path of its source."""
        return f"{self.package.replace('.', '/')}/{self.name}.java"

    @property
    def mangled(self) -> str:
        """As in names of native methods (Java Native Interface Specification, chapter 2)."""
        return "_".join(part.replace("_", "_1") for part in (*self.package.split("."), self.name))


def java_class(package: Package) -> JavaClass:
    """``mobilenet_v2`` becomes ``MobilenetV2`` in the package's group."""
    words = package.name.split("_")
    name = "".join(word[:1].upper() + word[1:] for word in words)
    return JavaClass(package.group, f"{name}Model" if name in _USED else name)


def build_jar(package: Package, jar: Path) -> None:
    """Write, compile and pack the class.

    Raises:
        ToolError: There is no javac.
        UnsupportedError: A tensor is too large for a Java buffer.
    """
    java = java_class(package)
    javac = shutil.which("javac")
    if javac is None:
        raise ToolError(
            "there is no Java compiler",
            where="javac",
            hint="apt-get install default-jdk-headless (any JDK will do, from 8 on)",
        )
    with tempfile.TemporaryDirectory(prefix="effc-java-") as name:
        work = Path(name)
        write(work / "source" / java.file, _source(package, java))
        command = [javac, "-encoding", "UTF-8", "--release", _RELEASE, "-g:source,lines"]
        command += ["-Xlint:all,-options", "-Werror", "-implicit:none"]
        stubs = str(resources.files("effc.runtimes").joinpath("jni/android"))
        command += ["-sourcepath", stubs, "-d", str(work / "classes")]
        zig.run_tool([*command, str(work / "source" / java.file)])
        pack(work / "classes", jar)


def build_native(package: Package, binary: Binary, out: Path) -> None:
    """Compile and link ``libNAME_jni.so``, which needs ``libNAME.so`` beside it.

    Raises:
        ToolError: The toolchain is missing or failed.
        InternalError: The result breaks a rule of its target.
    """
    name, target = package.name, get_target(binary.target)
    mangled = java_class(package).mangled
    headers = (package.artifact.folder / "include").absolute()
    source = str(resources.files("effc.runtimes").joinpath("jni/model_jni.c"))
    exported = [f"Java_{mangled}_{method}" for method in _METHODS]
    with tempfile.TemporaryDirectory(prefix="effc-jni-") as folder:
        work = Path(folder)
        defines = (f'-DEFFC_HEADER="{name}.h"', f"-DEFFC_MODEL={name}", f"-DEFFC_CLASS={mangled}")
        zig.clang(
            [
                *(f"--target={target.clang_target}", *C_FLAGS, *ARCH_FLAGS.get(target.arch, ())),
                *(*defines, f"-I{headers}", "-c", source, "-o", "model_jni.o"),
            ],
            cwd=work,
        )
        objects = [str(work / "model_jni.o"), str(binary.path.absolute())]
        zig.lld([*library_flags(target, out, exported, work), *objects], out)
    elf.check_library(
        out,
        target,
        exported=exported,
        needed=[binary.path.name],
        known=package.manifest["symbols"],
    )


def _source(package: Package, java: JavaClass) -> str:
    manifest = package.manifest
    names = iter(argument_names([*manifest["inputs"], *manifest["outputs"]]))
    inputs = [_port(port, next(names)) for port in manifest["inputs"]]
    outputs = [_port(port, next(names)) for port in manifest["outputs"]]
    buffers = {port["buffer"] for port in (*inputs, *outputs)} - {"ByteBuffer"}
    return render(
        "java/model.java.j2",
        name=package.name,
        package=java.package,
        **{"class": java.name},
        inputs=inputs,
        outputs=outputs,
        buffers=sorted(buffers),
        **_weights(package),
    )


def _weights(package: Package) -> dict[str, Any]:
    """Name, size and a short digest of the file of weights."""
    file = package.weights
    if file is None:
        return {"weights": None}
    entry = package.manifest["files"][package.manifest["weights_file"]]
    digest = entry["sha256"][:16]
    return {"weights": file.name, "weights_bytes": entry["bytes"], "digest": digest}


def _port(port: dict[str, Any], argument: str) -> dict[str, Any]:
    """What the template needs of an input or output."""
    if port["bytes"] > _MAX_BYTES:
        raise UnsupportedError(
            "a tensor is too large for a Java buffer",
            where=port["name"],
            expected=f"at most {_MAX_BYTES} bytes",
            got=port["bytes"],
        )
    java, buffer, as_buffer = _TYPES[port["dtype"]]
    return {
        "literal": json.dumps(port["name"]),
        "dtype": port["dtype"],
        "bytes": port["bytes"],
        "shape": port["shape"],
        "elements": prod(port["shape"]),
        "java": java,
        "buffer": buffer,
        "as_buffer": as_buffer,
        "argument": argument,
        "view": f"{argument}View",
    }
