"""The Java class that the AAR ships, run on a JVM against a library for this machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import effc
from effc.packages.java import build_jar, build_native, java_class
from effc.packages.package import Package

from .conftest import need, run

HERE = Path(__file__).parent
JNI_ABI = Path(__file__).parents[2] / "runtimes" / "jni" / "jni_abi.h"


@pytest.fixture(scope="module")
def classes(digits: effc.Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the jar and both native libraries."""
    need("javac")
    out = tmp_path_factory.mktemp("java")
    package = Package(digits, out)
    build_jar(package, out / "digits.jar")
    build_native(package, package.binaries[0], out / "libdigits_jni.so")
    (out / "libdigits.so").write_bytes(digits.library.read_bytes())
    return out


def test_class_on_the_jvm(
    classes: Path, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    java, javac = need("java"), need("javac")
    run([javac, "-cp", classes / "digits.jar", "-d", tmp_path, HERE / "UseDigits.java"])
    image.tofile(tmp_path / "in.raw")
    said = run(
        [
            *(java, "-Xcheck:jni", f"-Djava.library.path={classes}"),
            *("-cp", f"{classes / 'digits.jar'}:{tmp_path}", "UseDigits"),
            *(tmp_path / "in.raw", tmp_path / "out.raw"),
        ]
    )
    assert "all fine" in said
    assert "WARNING" not in said
    got = np.fromfile(tmp_path / "out.raw", np.float32).reshape(probabilities.shape)
    np.testing.assert_array_equal(got, probabilities)


def test_class_files(classes: Path) -> None:
    """Java 8 class files, and the interface that apps rely on, as javap reads them."""
    said = run([need("javap"), "-v", "-cp", classes / "digits.jar", "effc.models.Digits"])
    assert "major version: 52" in said
    said = run([need("javap"), "-cp", classes / "digits.jar", "effc.models.Digits"])
    assert "public final class effc.models.Digits implements java.lang.AutoCloseable" in said
    assert "public synchronized void run(float[], float[])" in said
    assert "public synchronized void run(java.nio.ByteBuffer[], java.nio.ByteBuffer[])" in said
    assert "public synchronized void close()" in said


def test_same_bytes_again(digits: effc.Artifact, classes: Path, tmp_path: Path) -> None:
    package = Package(digits, tmp_path)
    build_jar(package, tmp_path / "digits.jar")
    build_native(package, package.binaries[0], tmp_path / "libdigits_jni.so")
    for file in ("digits.jar", "libdigits_jni.so"):
        assert (tmp_path / file).read_bytes() == (classes / file).read_bytes(), file


def test_places_in_the_function_table(tmp_path: Path) -> None:
    """Our declarations agree with those of a JDK."""
    javac = Path(need("javac")).resolve()
    include = javac.parents[1] / "include"
    if not (include / "jni.h").exists():
        pytest.skip("the JDK has no jni.h")
    names = re.findall(r"JNI_([A-Z_]+) = (\d+)", JNI_ABI.read_text())
    assert len(names) == 6
    checks = "".join(
        f"_Static_assert(offsetof(struct JNINativeInterface_, {_camel(name)}) == "
        f'{place} * sizeof(void *), "{name}");\n'
        for name, place in names
    )
    source = tmp_path / "check.c"
    source.write_text(f"#include <stddef.h>\n#include <jni.h>\n{checks}")
    run([need("gcc"), "-c", f"-I{include}", f"-I{include}/linux", source, "-o", tmp_path / "c.o"])


def _camel(name: str) -> str:
    special = {"UTF": "UTF"}
    return "".join(special.get(word, word.capitalize()) for word in name.split("_"))


@pytest.mark.parametrize(
    ("name", "class_name", "mangled"),
    [
        ("digits", "Digits", "a_b_1c_Digits"),
        ("mobilenet_v2", "MobilenetV2", "a_b_1c_MobilenetV2"),
        ("string", "StringModel", "a_b_1c_StringModel"),
    ],
)
def test_names(
    digits: effc.Artifact, tmp_path: Path, name: str, class_name: str, mangled: str
) -> None:
    renamed = effc.Artifact(digits.path, digits.folder, {**digits.manifest, "name": name})
    java = java_class(Package(renamed, tmp_path, group="a.b_c"))
    assert (java.name, java.mangled) == (class_name, mangled)


def test_every_element_type_and_odd_names(tmp_path: Path, digits: effc.Artifact) -> None:
    """javac takes the class of a model with tensors of every type, whatever they are called."""
    dtypes = ["float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "float16"]
    dtypes += ["float64", "uint32", "uint64", "bfloat16"]
    sizes = {"8": 1, "6": 2, "2": 4, "4": 8, "l": 1}
    names = ["x", "X", "a b", "a/b", "class", "1", '"; }', "\\u000a", "é", "", "out", "y", "end"]
    ports = [
        {"name": name, "dtype": dtype, "shape": [2, 3], "bytes": 6 * sizes[dtype[-1]]}
        for name, dtype in zip(names, dtypes, strict=True)
    ]
    manifest = {**digits.manifest, "inputs": ports[:9], "outputs": ports[9:]}
    build_jar(
        Package(effc.Artifact(digits.path, digits.folder, manifest), tmp_path), tmp_path / "j"
    )
    need("javap")
    said = subprocess.run(
        ["javap", "-cp", str(tmp_path / "j"), "effc.models.Digits"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (
        "run(float[], byte[], byte[], short[], short[], int[], long[], byte[], short[], "
        "double[], int[], long[], short[])"
    ) in said
