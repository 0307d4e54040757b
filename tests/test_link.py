"""Linking for every family: what the library may need, export and ask of the loader."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from toy_model import toy_object, toy_program

from effc import elf, zig
from effc.devices.catalog import get_target
from effc.errors import InternalError, ToolError, UnsupportedError
from effc.link import link_library

FAMILIES = (
    "host",
    "android",
    "android-armv7",
    "android-x86_64",
    "linux-arm64",
    "linux-armv7",
    "linux-x86_64",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_library_of_every_family(name: str, tmp_path: Path) -> None:
    target = get_target(name)
    program = toy_program()
    report = link_library(program, [toy_object(target, tmp_path)], target, tmp_path / "libtoy.so")
    libc, libm = ("libc.so", "libm.so") if target.os == "android" else ("libc.so.6", "libm.so.6")
    assert set(report.needed) == {libc, libm}
    assert "tanhf" in report.undefined
    assert report.page_bytes == (4096 if target.arch == "arm" else 16384)
    assert report.runtime_bytes < 6000
    assert report.weights_bytes == program.weights.nbytes
    assert report.library_bytes == report.path.stat().st_size < 12000
    with report.path.open("rb") as stream:
        image = ELFFile(stream)
        exported = [
            s.name
            for s in image.get_section_by_name(".dynsym").iter_symbols()
            if s.name and s["st_shndx"] != "SHN_UNDEF"
        ]
        assert sorted(exported) == [
            "toy_create",
            "toy_destroy",
            "toy_info",
            "toy_run",
            "toy_variant",
        ]
        assert not image.get_section_by_name(".symtab")
        assert not image.get_section_by_name(".comment") or b"/" not in image.get_section_by_name(
            ".comment"
        ).data().replace(b"https://", b"")


def test_same_input_same_bytes(tmp_path: Path) -> None:
    target = get_target("android")
    stages = toy_object(target, tmp_path)
    images = []
    for folder in ("a", "100% 'b' \\c\" ü"):
        out = tmp_path / folder / "libtoy.so"
        out.parent.mkdir()
        link_library(toy_program(), [stages], target, out)
        images.append(out.read_bytes())
    assert images[0] == images[1]
    assert str(tmp_path).encode() not in images[0]


def test_weights_are_aligned_and_intact(tmp_path: Path) -> None:
    target = get_target("host")
    out = tmp_path / "libtoy.so"
    program = toy_program(units=1000)
    link_library(program, [toy_object(target, tmp_path, units=1000)], target, out)
    position = out.read_bytes().find(program.weights.tobytes())
    assert position >= 0
    assert position % 64 == 0


def test_unknown_function_is_refused(tmp_path: Path) -> None:
    """A call that the oldest supported system lacks fails here, not on the phone."""
    target = get_target("android")
    source = tmp_path / "bad.c"
    source.write_text(
        "int getentropy(void *, unsigned long);\nint toy_k9(void *p) { return getentropy(p, 4); }\n"
    )
    zig.clang([f"--target={target.clang_target}", "-c", str(source), "-o", str(tmp_path / "b.o")])
    calls = toy_program()
    from effc.program import Call, Pointer, StorageClass

    calls.calls = (*calls.calls, Call("toy_k9", (Pointer(StorageClass.ARENA),), 1, "r", ()))
    with pytest.raises(ToolError, match="getentropy"):
        link_library(
            calls, [toy_object(target, tmp_path), tmp_path / "b.o"], target, tmp_path / "lib.so"
        )


def test_object_of_another_machine_is_refused(tmp_path: Path) -> None:
    wrong = toy_object(get_target("linux-armv7"), tmp_path)
    with pytest.raises(InternalError, match="another machine"):
        link_library(toy_program(), [wrong], get_target("android"), tmp_path / "lib.so")
    with pytest.raises(InternalError, match="not ELF"):
        link_library(toy_program(), [b"junk"], get_target("android"), tmp_path / "lib.so")


def test_weights_beyond_2_gb_are_refused(tmp_path: Path) -> None:
    program = toy_program()
    program.weights = np.broadcast_to(np.uint8(0), (2**31,))  # takes no memory
    with pytest.raises(UnsupportedError, match="do not fit"):
        link_library(program, [], get_target("android"), tmp_path / "lib.so")


def test_half_precision_helpers_come_from_compiler_rt(tmp_path: Path) -> None:
    """32-bit Arm without half-precision instructions calls a helper function."""
    target = get_target("android-armv7")
    source = tmp_path / "half.c"
    source.write_text(
        "void toy_k0(__fp16 *x, float *w, float *y, int b, int e) { *y = *x; *x = (__fp16)*w; }"
    )
    half = tmp_path / "half.o"
    flags = [f"--target={target.clang_target}", "-mfpu=neon", "-O2", "-fPIC"]
    zig.clang([*flags, "-c", str(source), "-o", str(half)])
    assert elf.object_symbols(half)[1]
    program = toy_program()
    program.calls = program.calls[:1]
    report = link_library(program, [half], target, tmp_path / "lib.so")
    assert not any(s.startswith("__") for s in report.undefined)


def broken_library(folder: Path, *flags: str) -> Path:
    """A library linked without the care of link_library."""
    source = folder / "f.c"
    source.write_text("int other(void);\nint toy_run(void) { return other(); }\n")
    target = get_target("android")
    zig.clang([f"--target={target.clang_target}", "-c", str(source), "-o", str(folder / "f.o")])
    out = folder / "broken.so"
    zig.lld(["-m", "aarch64linux", "-shared", *flags, str(folder / "f.o")], out)
    return out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("-z", "max-page-size=4096"), "aligned to 4096"),
        (("-z", "execstack", "-z", "max-page-size=16384"), "executable stack"),
        (("-z", "max-page-size=16384"), "not stripped"),
        (("-z", "max-page-size=16384", "-s"), "does not export toy_info"),
        (("-z", "max-page-size=16384", "-s"), "may lack other"),
    ],
)
def test_elf_checks_catch(flags: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    path = broken_library(tmp_path, *flags)
    with pytest.raises(InternalError, match=complaint):
        elf.check_library(
            path,
            get_target("android"),
            exported=["toy_run", "toy_info"],
            needed=["libc.so"],
            known=[],
        )


def test_unwritable_cache_is_a_tool_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(ToolError, match="XDG_CACHE_HOME"):
        zig.cached(("x",), lambda folder: None)


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise ToolError("stop")

    with pytest.raises(ToolError, match="stop"):
        zig.cached(("x",), fail)
    assert os.listdir(tmp_path / "effc" / "link") == []
    assert (zig.cached(("x",), lambda folder: None)).is_dir()


def test_missing_zig_is_a_tool_error(monkeypatch: pytest.MonkeyPatch) -> None:
    zig.zig_path.cache_clear()
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(ToolError, match="pip install ziglang"):
        zig.zig_path()
    monkeypatch.undo()
    zig.zig_path.cache_clear()
    assert zig.zig_path().exists()


def test_library_loads_beside_another(tmp_path: Path) -> None:
    """Two models in one process: no symbol of one is visible to the other."""
    target = get_target("host")
    libraries = []
    for name in ("one", "two"):
        out = tmp_path / f"lib{name}.so"
        link_library(toy_program(name), [toy_object(target, tmp_path, name)], target, out)
        libraries.append(ctypes.CDLL(str(out), mode=ctypes.RTLD_GLOBAL))
    assert not hasattr(libraries[0], "effc_run")
    assert not hasattr(libraries[0], "one_k0")
