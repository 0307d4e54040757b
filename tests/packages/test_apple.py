"""Archives and xcframeworks for Apple's systems: structure and symbols; nothing is run.

Readers: macholib for objects, binutils' ar for archives, zig's own linker for Mach-O, tree-sitter
for Swift.
"""

from __future__ import annotations

import plistlib
import struct
from pathlib import Path

import pytest
from macholib.mach_o import CPU_TYPE_NAMES, LC_BUILD_VERSION, LC_SYMTAB, fat_arch, fat_header
from macholib.MachO import MachO
from macholib.SymbolTable import SymbolTable

import effc
from effc import macho, zig
from effc.devices.catalog import get_target
from effc.errors import InternalError, UsageError

from .conftest import EXAMPLE, need, run

ABIS = (
    "ios-arm64",
    "ios-arm64-simulator",
    "ios-x86_64-simulator",
    "macos-arm64",
    "macos-x86_64",
)
PLATFORMS = {"ios-arm64": 2, "macos-arm64": 1, "macos-x86_64": 1}  # others: 7, simulator
N_EXT, N_PEXT, N_TYPE, N_WEAK_DEF = 0x01, 0x10, 0x0E, 0x80


@pytest.fixture(scope="module")
def apple(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for every system of Apple's."""
    out = tmp_path_factory.mktemp("apple") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "ios", out, abi=ABIS)


@pytest.fixture(scope="module")
def package(apple: effc.Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("xcframework")
    effc.export(apple, "xcframework", out)
    return out


def members(archive: Path, folder: Path) -> list[Path]:
    """The objects of an archive, as binutils take them out."""
    folder.mkdir()
    run([need("ar"), "x", archive], cwd=folder)
    return sorted(folder.glob("*.o"))


def symbols(header: object) -> tuple[set[str], set[str], set[str]]:
    """Exported, hidden and undefined external names of an object, as macholib reads them."""
    exported, hidden, undefined = set(), set(), set()
    for entry, name in SymbolTable(header.parent, header).nlists:  # type: ignore[attr-defined]
        if not entry.n_type & N_EXT or entry.n_desc & N_WEAK_DEF:
            continue
        kind = undefined if entry.n_type & N_TYPE == 0 else exported
        if entry.n_type & N_PEXT:
            kind = hidden
        kind.add(name.decode())
    return exported, hidden, undefined


def test_objects_of_every_slice(apple: effc.Artifact, tmp_path: Path) -> None:
    for entry in apple.libraries:
        exported: set[str] = set()
        undefined: set[str] = set()
        objects = members(apple.folder / entry["library"], tmp_path / entry["abi"])
        assert len(objects) >= 6
        for path in objects:
            (header,) = MachO(str(path)).headers
            assert header.filetype == "object"
            cpu = "ARM64" if "arm64" in entry["abi"] else "x86_64"
            assert CPU_TYPE_NAMES[header.header.cputype] == cpu
            build = [c for load, c, _ in header.commands if load.cmd == LC_BUILD_VERSION]
            assert [c.platform for c in build] == [PLATFORMS.get(entry["abi"], 7)], path.name
            assert any(load.cmd == LC_SYMTAB for load, _, _ in header.commands)
            names, hidden, needs = symbols(header)
            assert all(n.startswith("_digits_") for n in names | hidden), path.name
            exported |= names | hidden
            undefined |= needs
        assert {f"_digits_{f}" for f in ("create", "destroy", "info", "run")} <= exported
        outside = undefined - exported
        assert {"_pthread_create", "_posix_memalign"} <= outside
        assert not {n for n in outside if "digits" in n or "effc" in n}


def test_our_reader_agrees(apple: effc.Artifact, tmp_path: Path) -> None:
    for path in members(apple.library, tmp_path / "x"):
        (header,) = MachO(str(path)).headers
        ours = macho.read_object(path.read_bytes())
        names, hidden, needs = symbols(header)
        assert (ours.exported, ours.private, ours.undefined) == (names, hidden, needs)


@pytest.mark.parametrize("cut", [0, 3, 31, 40, 200])
def test_damaged_objects_are_refused(apple: effc.Artifact, tmp_path: Path, cut: int) -> None:
    path = members(apple.library, tmp_path / "x")[0]
    with pytest.raises(InternalError, match="not Mach-O"):
        macho.read_object(path.read_bytes()[:cut])


def test_object_of_another_system_is_refused(apple: effc.Artifact, tmp_path: Path) -> None:
    path = members(apple.library, tmp_path / "x")[0]
    for name in ("ios-simulator", "macos", "macos-x86_64"):
        with pytest.raises(InternalError, match="another system"):
            macho.check_object(path.read_bytes(), get_target(name))


def test_xcframework(package: Path, apple: effc.Artifact) -> None:
    framework = package / "digits.xcframework"
    info = plistlib.loads((framework / "Info.plist").read_bytes())
    assert info["CFBundlePackageType"] == "XFWK"
    assert info["XCFrameworkFormatVersion"] == "1.0"
    entries = {entry["LibraryIdentifier"]: entry for entry in info["AvailableLibraries"]}
    assert {
        name: (
            e["SupportedPlatform"],
            e.get("SupportedPlatformVariant"),
            e["SupportedArchitectures"],
        )
        for name, e in entries.items()
    } == {
        "ios-arm64": ("ios", None, ["arm64"]),
        "ios-arm64_x86_64-simulator": ("ios", "simulator", ["arm64", "x86_64"]),
        "macos-arm64_x86_64": ("macos", None, ["arm64", "x86_64"]),
    }
    assert sorted(p.name for p in framework.iterdir()) == sorted(["Info.plist", *entries])
    for name, entry in entries.items():
        assert (framework / name / entry["LibraryPath"]).is_file()
        headers = framework / name / entry["HeadersPath"] / "Cdigits"
        assert sorted(p.name for p in headers.iterdir()) == [
            "digits.h",
            "effc.h",
            "module.modulemap",
        ]
    single = framework / "ios-arm64/libdigits.a"
    assert single.read_bytes() == apple.library.read_bytes()


def test_universal_archives(package: Path, apple: effc.Artifact) -> None:
    libraries = {entry["abi"]: apple.folder / entry["library"] for entry in apple.libraries}
    for identifier, slices in (
        ("ios-arm64_x86_64-simulator", ("ios-arm64-simulator", "ios-x86_64-simulator")),
        ("macos-arm64_x86_64", ("macos-arm64", "macos-x86_64")),
    ):
        path = package / f"digits.xcframework/{identifier}/libdigits.a"
        with path.open("rb") as stream:
            header = fat_header.from_fileobj(stream)
            assert (header.magic, header.nfat_arch) == (0xCAFEBABE, 2)
            parts = [fat_arch.from_fileobj(stream) for _ in range(2)]
            for part, abi in zip(parts, slices, strict=True):
                assert part.offset % (1 << part.align) == 0
                stream.seek(part.offset)
                assert stream.read(part.size) == libraries[abi].read_bytes()


def test_module_map_compiles(package: Path, tmp_path: Path) -> None:
    """Clang finds the module where Xcode copies the headers to, and builds it."""
    headers = package / "digits.xcframework/ios-arm64/Headers"
    source = tmp_path / "use.m"
    source.write_text(
        "@import Cdigits;\n"
        "effc_status use(effc_model *m, effc_tensor *i, effc_tensor *o)"
        " { return digits_run(m, i, o); }\n"
    )
    zig.clang(
        [
            *("--target=arm64-apple-ios13.0", "-fmodules", "-fsyntax-only"),
            *(f"-fmodules-cache-path={tmp_path}", f"-I{headers}", str(source)),
        ],
        cwd=tmp_path,
    )


@pytest.mark.parametrize("arch", ["aarch64", "x86_64"])
def test_two_archives_link_into_one_program(
    apple: effc.Artifact, tmp_path: Path, arch: str
) -> None:
    """zig's linker for macOS takes two models and a program that calls both."""
    target = {"aarch64": "macos", "x86_64": "macos-x86_64"}[arch]
    other = effc.compile(EXAMPLE / "digits.onnx", target, tmp_path / "o", name="digits_v2")
    own = next(e["library"] for e in apple.libraries if e["target"] == target)
    source = tmp_path / "main.c"
    source.write_text(
        '#include "digits.h"\n#include "digits_v2.h"\n'
        "int main(void) { effc_model *a, *b;\n"
        " return digits_create(0, &a) | digits_v2_create(0, &b); }\n"
    )
    zig.run_tool(
        [
            *(str(zig.zig_path()), "cc", "-target", f"{arch}-macos", str(source), "-o", "main"),
            *(f"-I{apple.folder / 'include'}", f"-I{other.folder / 'include'}"),
            *(str(apple.folder / own), str(other.library)),
        ],
        cwd=tmp_path,
    )
    (header,) = MachO(str(tmp_path / "main")).headers
    assert header.filetype == "execute"
    assert struct.unpack("<I", (tmp_path / "main").read_bytes()[:4]) == (0xFEEDFACF,)


def test_swift_sources_parse(package: Path) -> None:
    import tree_sitter
    import tree_sitter_swift

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    for file in ("Package.swift", "Sources/Digits/Digits.swift"):
        tree = parser.parse((package / file).read_bytes())
        assert not tree.root_node.has_error, file
    text = (package / "Sources/Digits/Digits.swift").read_text()
    assert "public func run(imageData: [Float]) throws -> [Float]" in text


def test_what_an_xcframework_is_not_for(
    digits: effc.Artifact, apple: effc.Artifact, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be packed as an xcframework"):
        effc.export(digits, "xcframework", tmp_path / "x")
    with pytest.raises(UsageError, match="cannot be packed as an AAR"):
        effc.export(apple, "aar", tmp_path / "x")
    assert apple.manifest["verification"] is None
