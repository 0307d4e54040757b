"""The CMake package in the hands of CMake, pkg-config and compilers; the zip file."""

from __future__ import annotations

import platform
import zipfile
from pathlib import Path

import numpy as np
import pytest

import effc
from effc import zig
from effc.errors import UsageError

from .conftest import need, run

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
SYSROOT = Path("/usr/aarch64-linux-gnu")


@pytest.fixture(scope="module")
def package(digits: effc.Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cmake") / "package"
    effc.export(digits, "cmake", out, version="1.4.2")
    return out


def check_example(
    command: list[object], folder: Path, image: np.ndarray, want: np.ndarray, exact: bool = True
) -> None:
    """An example program computes what the library computes for Python."""
    image.tofile(folder / "in.raw")
    run([*command, "in.raw", "out.raw"], cwd=folder)
    got = np.fromfile(folder / "out.raw", np.float32).reshape(want.shape)
    if exact:
        assert got.tobytes() == want.tobytes()
    else:  # another processor's kernels add up in another order
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_find_package_builds_the_examples(
    package: Path, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    cmake = need("cmake")
    flags = " ".join(WARNINGS)
    run(
        [
            *(cmake, "-S", package / "share/digits/examples", "-B", tmp_path),
            f"-DCMAKE_PREFIX_PATH={package}",
            *(f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"),
        ]
    )
    run([cmake, "--build", tmp_path])
    for example in ("main_c", "main_cpp"):
        check_example([tmp_path / example], tmp_path, image, probabilities)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", True),
        ("1", True),
        ("1.4.2 EXACT", True),
        ("1.4.1", True),
        ("1.0...1.9", True),
        ("1.0...<2", True),
        ("1.4.3", False),
        ("1.4.1 EXACT", False),
        ("2.0", False),
        ("0.9", False),
        ("1.5...1.9", False),
        ("1.0...<1.4.2", False),
    ],
)
def test_version_file(package: Path, tmp_path: Path, asked: str, found: bool) -> None:
    """Semantic versioning: the same major version, and not older than asked for."""
    script = tmp_path / "CMakeLists.txt"
    script.write_text(
        "cmake_minimum_required(VERSION 3.19)\nproject(p LANGUAGES NONE)\n"
        f"find_package(digits {asked} CONFIG)\n"
        'message(STATUS "found=${digits_FOUND} version=${digits_VERSION}")\n'
    )
    cmake = need("cmake")
    said = run([cmake, "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={package}"])
    assert (f"found={int(found)}" in said) if found else "found=0" in said
    assert ("version=1.4.2" in said) == found


def test_add_subdirectory(package: Path, tmp_path: Path, image: np.ndarray) -> None:
    cmake = need("cmake")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app C)\n"
        f"add_subdirectory({package} model)\n"
        f"add_executable(app {package}/share/digits/examples/main.c)\n"
        "target_link_libraries(app PRIVATE digits::digits)\n"
    )
    run([cmake, "-S", tmp_path, "-B", tmp_path / "b"])
    run([cmake, "--build", tmp_path / "b"])
    image.tofile(tmp_path / "in.raw")
    run([tmp_path / "b/app", tmp_path / "in.raw", tmp_path / "out.raw"])
    assert np.fromfile(tmp_path / "out.raw", np.float32).sum() == pytest.approx(1, abs=1e-5)


def test_package_may_be_moved(package: Path) -> None:
    for file in package.rglob("*"):
        assert not file.is_file() or str(package).encode() not in file.read_bytes(), file


def test_pkg_config(
    package: Path, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    pkg_config, compiler = need("pkg-config"), need("gcc")
    environment = {"PKG_CONFIG_PATH": str(package / "lib/pkgconfig"), "PATH": "/usr/bin:/bin"}
    run([pkg_config, "--validate", "digits"], env=environment)
    assert run([pkg_config, "--modversion", "digits"], env=environment).strip() == "1.4.2"
    flags = run([pkg_config, "--cflags", "--libs", "digits"], env=environment).split()
    source = package / "share/digits/examples/main.c"
    command = [compiler, "-std=c99", *WARNINGS, source, *flags, f"-Wl,-rpath,{package}/lib"]
    run([*command, "-o", tmp_path / "main"])
    check_example([tmp_path / "main"], tmp_path, image, probabilities)


def test_wrong_processor_is_refused(digits_arm64: effc.Artifact, tmp_path: Path) -> None:
    cmake = need("cmake")
    if platform.machine() == "aarch64":
        pytest.skip("this machine is the other processor")
    effc.export(digits_arm64, "cmake", tmp_path / "package")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app C)\nadd_subdirectory(package)\n"
    )
    with pytest.raises(AssertionError, match="compiled for aarch64-linux-gnu, not for"):
        run([cmake, "-S", tmp_path, "-B", tmp_path / "b"])


@pytest.mark.parametrize("abi", ["arm64-v8a", "armeabi-v7a", "x86_64", "mips"])
def test_library_of_the_abi(three: effc.Artifact, tmp_path: Path, abi: str) -> None:
    """The variables are those of the NDK's toolchain file, which is not needed to read them."""
    cmake = need("cmake")
    effc.export(three, "cmake", tmp_path / "package")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(app LANGUAGES NONE)\n"
        f"set(CMAKE_SYSTEM_NAME Android)\nset(ANDROID_ABI {abi})\n"
        "find_package(digits CONFIG REQUIRED)\n"
        "get_target_property(place digits::digits IMPORTED_LOCATION)\n"
        'message(STATUS "place=${place}")\n'
    )
    command = [cmake, "-S", tmp_path, "-B", tmp_path / "b"]
    command += [f"-DCMAKE_PREFIX_PATH={tmp_path}/package"]
    if abi == "mips":
        with pytest.raises(AssertionError, match="has no library in"):
            run(command)
    else:
        assert f"place={tmp_path}/package/lib/{abi}/libdigits.so" in run(command)


def test_arm64_under_qemu(
    digits_arm64: effc.Artifact, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    """Both examples, cross-compiled by zig and run with the dynamic linker of that system."""
    qemu = need("qemu-aarch64")
    if not (SYSROOT / "lib/ld-linux-aarch64.so.1").exists():
        pytest.skip("libc6-arm64-cross is not installed")
    effc.export(digits_arm64, "cmake", tmp_path / "package")
    package = tmp_path / "package"
    for compiler, source, flags in (
        ("cc", "main.c", ["-std=c99"]),
        ("c++", "main.cpp", ["-std=c++11"]),
    ):
        zig.run_tool(
            [
                *(str(zig.zig_path()), compiler, "-target", "aarch64-linux-gnu.2.31"),
                *(*WARNINGS, *flags, str(package / "share/digits/examples" / source)),
                *(f"-I{package}/include", f"-L{package}/lib", "-ldigits", "-o", source[:-2]),
            ],
            cwd=tmp_path,
        )
        command = [qemu, "-L", SYSROOT, "-E", f"LD_LIBRARY_PATH={package}/lib"]
        check_example(
            [*command, tmp_path / source[:-2]], tmp_path, image, probabilities, exact=False
        )


def test_zip_is_the_same_tree(digits: effc.Artifact, package: Path, tmp_path: Path) -> None:
    done = effc.export(digits, "zip", tmp_path, version="1.4.2")
    assert done.files == ("digits-1.4.2-host.zip",)
    with zipfile.ZipFile(tmp_path / done.files[0]) as zipped:
        assert zipped.testzip() is None
        names = {name.removeprefix("digits-1.4.2-host/"): name for name in zipped.namelist()}
        files = {f.relative_to(package).as_posix(): f for f in package.rglob("*") if f.is_file()}
        assert names.keys() == {*files, "README.txt"}
        for name, file in files.items():
            assert zipped.read(names[name]) == file.read_bytes(), name
        readme = zipped.read(names["README.txt"]).decode()
        assert "image, float32 [1, 1, 8, 8]" in readme


def test_same_artifact_same_bytes(digits: effc.Artifact, tmp_path: Path) -> None:
    for place in ("a", "b"):
        effc.export(digits, "zip", tmp_path / place)
    first, second = (next((tmp_path / p).glob("*.zip")).read_bytes() for p in ("a", "b"))
    assert first == second


def test_bad_requests(digits: effc.Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown package format 'deb'"):
        effc.export(digits, "deb", tmp_path / "x")
    with pytest.raises(UsageError, match="three numbers"):
        effc.export(digits, "zip", tmp_path / "x", version="1.0")
    with pytest.raises(UsageError, match="Java package"):
        effc.export(digits, "zip", tmp_path / "x", group="Com.Example")
    with pytest.raises(UsageError, match="does not exist"):
        effc.export(digits, "zip", tmp_path / "x" / "y")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a folder"):
        effc.export(digits, "zip", tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
