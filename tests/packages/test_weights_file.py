"""Weights in a file beside the library: every package, and what goes wrong."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import effc
from effc.errors import DeviceError, ModelError, UsageError
from effc.packages.java import build_jar, build_native
from effc.packages.package import Package
from effc.runtimes.loader import Runner

from .conftest import EXAMPLE, need, run

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def apart(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for this machine, its weights in a file."""
    out = tmp_path_factory.mktemp("apart") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "host", out, weights="file")


def weights_of(artifact: effc.Artifact) -> Path:
    return artifact.folder / artifact.manifest["weights_file"]


def test_same_results_from_a_small_library(
    apart: effc.Artifact, digits: effc.Artifact, image: np.ndarray, probabilities: np.ndarray
) -> None:
    with effc.load(apart) as runner:
        got = runner.run({"image": image})["probabilities"]
    np.testing.assert_array_equal(got, probabilities)
    size = apart.manifest["weights_bytes"]
    assert weights_of(apart).stat().st_size == size + 64
    assert apart.library.stat().st_size < digits.library.stat().st_size - 0.9 * size
    assert "digits_WEIGHTS_FILE_BYTES" in (apart.folder / "include/digits.h").read_text()


def test_wrong_weights_are_refused(apart: effc.Artifact, tmp_path: Path) -> None:
    data = bytearray(weights_of(apart).read_bytes())
    path = tmp_path / "w.bin"

    def refused(kind: type[Exception], text: str, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(kind, match=text):
            Runner(apart.library, {"name": "digits"}, weights=path)

    other = data.copy()
    other[16] ^= 1  # a byte of the digest
    refused(UsageError, "weights are missing, or those of another model", other)
    refused(UsageError, "weights are missing, or those of another model", data[:-64])
    refused(DeviceError, "cannot map the file of weights", b"")
    with pytest.raises(UsageError, match="weights are missing"):
        Runner(apart.library, {"name": "digits"})
    with pytest.raises(DeviceError, match="cannot map the file of weights"):
        Runner(apart.library, {"name": "digits"}, weights=tmp_path / "none.bin")


def test_the_benchmark_program_carries_them(apart: effc.Artifact, tmp_path: Path) -> None:
    """One executable, without the artifact: the same bits as with the files beside it."""
    from effc.benchmark.carry import carrying_program
    from effc.devices.catalog import get_target
    from effc.emulate import loader_program

    program, outputs = tmp_path / "bench", []
    carrying_program(apart, program)
    loader = loader_program(get_target("host"))
    beside = {"EFFC_LIBRARY": str(apart.library), "EFFC_WEIGHTS": str(weights_of(apart))}
    for command, environment in ((program, {}), (loader, beside)):
        out = tmp_path / f"{command.name}.bin"
        run([command, "--output", out, "--runs", 1], env=environment)
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 8 + 8 + 8 + 10 * 4
    truncated = tmp_path / "cut"
    truncated.write_bytes(program.read_bytes()[:-1])
    truncated.chmod(0o755)
    done = subprocess.run([truncated], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, "carries no library" in done.stderr) == (1, True)


def test_unlisted_weights_are_a_damaged_artifact(apart: effc.Artifact, tmp_path: Path) -> None:
    from effc.artifact import _check_files

    files = {k: v for k, v in apart.manifest["files"].items() if not k.startswith("weights")}
    with pytest.raises(ModelError, match=r"weights/digits\.bin is not listed"):
        _check_files(apart.folder, {**apart.manifest, "files": files})


def test_cmake_examples(
    apart: effc.Artifact, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    compilers = {"main.c": [need("gcc"), "-std=c99"], "main.cpp": [need("g++"), "-std=c++11"]}
    effc.export(apart, "cmake", tmp_path / "package")
    package = tmp_path / "package"
    image.tofile(tmp_path / "in.raw")
    for source, compiler in compilers.items():
        run(
            [
                *(*compiler, "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"),
                package / "share/digits/examples" / source,
                *(f"-I{package}/include", f"-L{package}/lib", "-ldigits"),
                *(f"-Wl,-rpath,{package}/lib", "-o", tmp_path / "main"),
            ]
        )
        weights = package / "share/digits/digits.bin"
        run([tmp_path / "main", weights, tmp_path / "in.raw", tmp_path / "out.raw"])
        got = np.fromfile(tmp_path / "out.raw", np.float32).reshape(probabilities.shape)
        np.testing.assert_array_equal(got, probabilities)
    with pytest.raises(AssertionError, match="cannot map the weights"):
        run([tmp_path / "main", tmp_path / "none", tmp_path / "in.raw", tmp_path / "out.raw"])


def test_cmake_names_the_file(apart: effc.Artifact, tmp_path: Path) -> None:
    cmake = need("cmake")
    effc.export(apart, "cmake", tmp_path / "package")
    find = "find_package(digits CONFIG REQUIRED)"
    for number, line in enumerate((find, "add_subdirectory(../package model)")):
        source = tmp_path / str(number)
        source.mkdir()
        (source / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.13)\nproject(p C)\n{line}\n"
            'message(STATUS "file=${digits_WEIGHTS_FILE}")\n'
        )
        said = run(
            [cmake, "-S", source, "-B", source / "b", f"-DCMAKE_PREFIX_PATH={tmp_path}/package"]
        )
        assert f"file={tmp_path}/package/share/digits/digits.bin" in said


def test_wheel(
    apart: effc.Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    done = effc.export(apart, "wheel", tmp_path)
    with zipfile.ZipFile(tmp_path / done.files[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    import digits as installed  # type: ignore[import-not-found]

    try:
        with installed.Model() as model:
            got = model.run({"image": image})["probabilities"]
        np.testing.assert_array_equal(got, probabilities)
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "digits"]:
            del sys.modules[name]


def test_java_maps_the_asset(
    apart: effc.Artifact, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    """On the JVM, with doubles of the three classes of Android that are called."""
    java, javac = need("java"), need("javac")
    package = Package(apart, tmp_path)
    jar = tmp_path / "digits.jar"
    build_jar(package, jar)
    with zipfile.ZipFile(jar) as zipped:
        assert not [name for name in zipped.namelist() if name.startswith("android")]
    build_native(package, package.binaries[0], tmp_path / "libdigits_jni.so")
    (tmp_path / "libdigits.so").write_bytes(apart.library.read_bytes())
    classes = tmp_path / "classes"
    sources = [HERE / "UseWeights.java", *sorted((HERE / "doubles").rglob("*.java"))]
    run([javac, "-cp", jar, "-d", classes, *sources])
    image.tofile(tmp_path / "in.raw")
    (tmp_path / "work").mkdir()
    said = run(
        [
            *(java, "-Xcheck:jni", f"-Djava.library.path={tmp_path}", "-cp", f"{jar}:{classes}"),
            *("UseWeights", weights_of(apart), tmp_path / "in.raw", tmp_path / "out.raw"),
            tmp_path / "work",
        ]
    )
    assert "all fine" in said
    got = np.fromfile(tmp_path / "out.raw", np.float32).reshape(probabilities.shape)
    np.testing.assert_array_equal(got, probabilities)
