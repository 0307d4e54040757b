"""Artifacts: atomic to write, checked when read, hostile archives refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.archive import pack, unpack
from effc.artifact import check_output, load_artifact, staging, write_manifest
from effc.errors import ModelError, UsageError

LIBRARY = b"\x7fELF pretend"


def manifest() -> dict[str, Any]:
    """The smallest manifest that loads."""
    numbers = ("arena_bytes", "arena_lower_bound_bytes", "scratch_bytes_per_thread", "macs")
    sizes = ("weights_bytes", "code_bytes", "runtime_bytes", "segment_alignment")
    lists = ("variants", "symbols", "inputs", "needed_libraries", "layers", "steps", "passes")
    machine = {"arch": "", "os": "", "triple": "", "cpu": "", "features": [], "android_api": None}
    return {
        "effc_version": "0",
        "name": "toy",
        "target": "host",
        "abi": "abi",
        "machine": machine,
        "library": "lib/abi/libtoy.so",
        "weights_file": None,
        "further_abis": [],
        "entry": "toy_run",
        "threads": 1,
        "library_bytes": len(LIBRARY),
        "flash_bytes": 0,
        "stack_bytes": 0,
        "options": {"shapes": {}, "constants": {}},
        "verification": None,
        "memory_peak": None,
        "values": [],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [2, 3], "bytes": 24}],
        **dict.fromkeys((*numbers, *sizes), 0),
        **{name: [] for name in lists},
    }


def fill(folder: Path) -> None:
    """Write a toy artifact into an empty folder."""
    library = folder / "lib" / "abi" / "libtoy.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(LIBRARY)
    (folder / "report.html").write_text("<p>")
    write_manifest(folder, manifest())


def make(output: Path) -> Path:
    """A toy artifact at ``output``."""
    with staging(output) as folder:
        fill(folder)
    return output


@pytest.mark.parametrize("name", ["toy", "toy.effc"])
def test_written_artifacts_load(tmp_path: Path, name: str) -> None:
    artifact = load_artifact(make(tmp_path / name))
    assert artifact.name == "toy"
    assert artifact.library.read_bytes() == LIBRARY
    assert artifact.file("report.html") is not None
    assert artifact.file("other") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("name", ["toy", "toy.effc"])
def test_equal_contents_give_equal_bytes(tmp_path: Path, name: str) -> None:
    contents = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        path = make(tmp_path / str(number) / name)
        os.utime(path, (number * 10**6, number * 10**6))
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["toy", "toy.effc"])
def test_older_artifact_is_replaced_as_a_whole(tmp_path: Path, name: str) -> None:
    output = make(tmp_path / name)
    if output.is_dir():
        (output / "left over").write_text("x")
    make(output)
    assert load_artifact(output).name == "toy"
    assert not (tmp_path / "toy" / "left over").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_replacing_works_without_an_atomic_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("effc.artifact._exchange", lambda left, right: False)
    output = make(tmp_path / "toy")
    (output / "left over").write_text("x")
    make(output)
    assert not (output / "left over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def _interrupted(output: Path) -> None:
    with staging(output) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    old = make(tmp_path / "toy")
    before = (old / "manifest.json").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert (old / "manifest.json").read_bytes() == before


def test_full_disk_is_the_users_to_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no space left") as caught, staging(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "free some space" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_stale_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".toy.effc-tmp-999999999-abc"
    alive = tmp_path / f".toy.effc-tmp-{os.getppid()}-abc"
    other = tmp_path / ".other.effc-tmp-999999999-abc"
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "file").write_text("x")
    make(tmp_path / "toy")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_foreign_things_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "work")
    (tmp_path / "folder.effc").mkdir()
    for name in ("work", "file", "link", "folder.effc", "missing/out"):
        with pytest.raises(UsageError):
            check_output(tmp_path / name)
    (tmp_path / "empty").mkdir()
    check_output(tmp_path / "empty")


def test_changed_files_are_found(tmp_path: Path) -> None:
    output = make(tmp_path / "toy")
    library = output / "lib" / "abi" / "libtoy.so"
    library.write_bytes(LIBRARY.upper())
    with pytest.raises(ModelError, match="was changed"):
        load_artifact(output)
    library.write_bytes(LIBRARY + b"more")
    with pytest.raises(ModelError, match="wrong size"):
        load_artifact(output)
    library.unlink()
    with pytest.raises(ModelError, match="missing"):
        load_artifact(output)
    library.symlink_to("/bin/true")
    with pytest.raises(ModelError, match="missing or a link"):
        load_artifact(output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "another format"),
        ({"schema_version": "1"}, "no schema version"),
        ({"library": "lib/other.so"}, "not listed"),
        ({"weights_file": "weights/w.bin"}, "not listed"),
        ({"abi": "../x"}, "a name"),
        ({"target": "a/b"}, "a name"),
        ({"further_abis": [{"target": "t", "abi": "b", "library": "lib/b.so"}]}, "not listed"),
        ({"further_abis": [{"target": "t", "abi": "..", "library": "x"}]}, "a name"),
        ({"further_abis": [{"target": "t", "abi": "b", "library": "x", "macs": "1"}]}, "macs"),
        ({"further_abis": [{"target": "t", "abi": "b", "library": "x", "name": "n"}]}, "one lib"),
        ({"layers": "none"}, "damaged"),
        ({"macs": True}, "macs"),
        ({"machine": {}}, "a field 'arch'"),
        ({"inputs": [{"name": "x"}]}, "dtype"),
        ({"outputs": [{"name": "x", "dtype": "f", "shape": ["a"], "bytes": 1}]}, "shape"),
        ({"verification": {"device": "local", "against": "x"}}, "outputs"),
        ({"outputs": []}, "outputs"),
        ({"inputs": [{"name": "x", "dtype": "O", "shape": [1], "bytes": 8}]}, "x: the manifest"),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": [-1], "bytes": 1}]}, "sensible"),
        ({"inputs": [{"name": "x", "dtype": "int8", "shape": [2], "bytes": 1}]}, "2 bytes"),
        ({"macs": 10**400}, "sensible"),
        ({"name": "../x"}, "a C name"),
        ({"threads": 0}, "1 to 64"),
        ({"options": {"shapes": {"x": 5}, "constants": {}}}, "shape of x"),
        ({"verification": {"device": "", "against": "", "outputs": []}}, "verification"),
        ({"files": {"../../etc/passwd": {}}}, "not listed"),
    ],
)
def test_damaged_manifests(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    output = make(tmp_path / "toy")
    file = output / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_artifact(output)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", "a\\..\\b"])
def test_listed_paths_stay_inside(tmp_path: Path, name: str) -> None:
    output = make(tmp_path / "toy")
    file = output / "manifest.json"
    content = json.loads(file.read_text())
    content["files"][name] = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    file.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="leaves the artifact"):
        load_artifact(output)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"schema_version": 1e999}'])
def test_manifests_that_are_no_manifests(tmp_path: Path, text: str) -> None:
    output = make(tmp_path / "toy")
    (output / "manifest.json").write_text(text)
    with pytest.raises(ModelError):
        load_artifact(output)


def test_huge_manifest_is_not_read(tmp_path: Path) -> None:
    output = make(tmp_path / "toy")
    with (output / "manifest.json").open("r+b") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(ModelError, match="too large"):
        load_artifact(output)


def test_nothing_and_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such artifact"):
        load_artifact(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="not an effc artifact"):
        load_artifact(tmp_path / "folder")
    (tmp_path / "file.effc").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ModelError, match="not an effc artifact"):
        load_artifact(tmp_path / "file.effc")


def hostile(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """An archive with the given members, valid artifact first."""
    folder = path.with_suffix(".d")
    folder.mkdir()
    fill(folder)
    pack(folder, path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name",
    ["../escape", "/tmp/escape", "lib/../../escape", "..", "C:\\escape", "a\\..\\..\\escape"],
)
def test_archives_cannot_climb_out(tmp_path: Path, name: str) -> None:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    path = hostile(tmp_path / "a.effc", (info, b"x"))
    with pytest.raises(ModelError):
        load_artifact(path)
    assert not (tmp_path / "escape").exists()
    assert not Path("/tmp/escape").exists()


def test_archives_hold_no_links(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ModelError, match="links are not allowed"):
        load_artifact(hostile(tmp_path / "a.effc", (info, b"/etc/passwd")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["manifest.json", "Manifest.JSON", "manifest.json/"])
def test_archives_hold_every_file_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="twice"):
        load_artifact(hostile(tmp_path / "a.effc", (name, b"" if name[-1] == "/" else b"x")))


def test_bombs_are_not_unpacked(tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.effc", ("zeros", bytes(200 << 20)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ModelError, match="absurdly many bytes"):
        load_artifact(path)


def test_lying_sizes_are_found(tmp_path: Path) -> None:
    path = hostile(tmp_path / "a.effc", ("zeros", bytes(100 << 20)))
    data = bytearray(path.read_bytes())
    size = struct.pack("<I", 100 << 20)
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = struct.pack("<I", 16)
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load_artifact(path)


def test_too_many_members(tmp_path: Path) -> None:
    members = [(f"f{number}", b"") for number in range(2000)]
    with pytest.raises(ModelError, match="too many files"):
        load_artifact(hostile(tmp_path / "a.effc", *members))


@pytest.mark.parametrize("name", ["n" * 60_000, "/".join(["d"] * 3000)], ids=["name", "path"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="damaged"):
        load_artifact(hostile(tmp_path / "a.effc", (name, b"x")))


def test_offsets_before_the_file(tmp_path: Path) -> None:
    path = make(tmp_path / "toy.effc")
    data = bytearray(path.read_bytes())
    data[-6:-2] = struct.pack("<I", 0x7FFFFFFF)  # where the directory starts
    path.write_bytes(data)
    with pytest.raises(ModelError):
        load_artifact(path)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_artifact(hostile(tmp_path / "a.effc", ("lib/abi", b"x")))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_broken_archives_give_typed_errors(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = make(folder / "toy.effc")
    data = bytearray(path.read_bytes())
    at %= len(data)
    data = data[:at] if cut else data
    if not cut:
        data[at] ^= value
    path.write_bytes(data)
    (folder / "out").mkdir()
    try:
        unpack(path, folder / "out")
        load_artifact(path)
    except ModelError:
        pass
