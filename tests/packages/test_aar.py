"""The AAR and the Maven repository, entry by entry, read by programs that did not write them."""

from __future__ import annotations

import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

import effc
from effc.errors import ToolError, UsageError

from .conftest import need, run

ANDROID = "{http://schemas.android.com/apk/res/android}"
MACHINES = {"arm64-v8a": "AArch64", "armeabi-v7a": "ARM", "x86_64": "Advanced Micro Devices X86-64"}


@pytest.fixture(scope="session")
def unpacked(android: effc.Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The AAR's files."""
    need("javac")
    out = tmp_path_factory.mktemp("aar")
    done = effc.export(android, "aar", out, version="1.2.3", group="com.example.models")
    assert done.files == ("digits-1.2.3.aar",)
    return unpack(out / done.files[0])


def unpack(archive: Path) -> Path:
    folder = archive.with_suffix("")
    with zipfile.ZipFile(archive) as zipped:
        assert zipped.testzip() is None
        zipped.extractall(folder)
    return folder


def dynamic(library: Path, tag: str) -> list[str]:
    """Entries of the dynamic section, as binutils read them."""
    text = run([need("readelf"), "-dW", library])
    return re.findall(rf"\({tag}\).*\[(.*)\]", text)


def exports(library: Path) -> set[str]:
    text = run([need("nm"), "-D", "--defined-only", library])
    return {line.split()[-1] for line in text.splitlines()}


def load_alignments(library: Path) -> set[int]:
    text = run([need("readelf"), "-lW", library])
    return {int(line.split()[-1], 16) for line in text.splitlines() if " LOAD " in f" {line} "}


def check_native(folder: Path, abis: tuple[str, ...]) -> None:
    """Libraries of every ABI: machine, dependencies, pages, exported names."""
    assert sorted(p.name for p in (folder / "jni").iterdir()) == sorted(abis)
    for abi in abis:
        model, jni = (folder / "jni" / abi / f"lib{n}.so" for n in ("digits", "digits_jni"))
        for library in (model, jni):
            assert re.search(
                rf"Machine: +{MACHINES[abi]}$", run([need("readelf"), "-h", library]), re.MULTILINE
            )
            assert dynamic(library, "SONAME") == [library.name]
            assert load_alignments(library) == {4096 if abi == "armeabi-v7a" else 16384}
        assert set(dynamic(model, "NEEDED")) <= {"libc.so", "libm.so"}
        assert set(dynamic(jni, "NEEDED")) == {"libdigits.so"}
        assert all(name.startswith("digits_") for name in exports(model))
        assert len(exports(jni)) == 4
        assert all(n.startswith("Java_com_example_models_Digits_native") for n in exports(jni))


def check_prefab(folder: Path, abis: tuple[str, ...], *more_headers: str) -> None:
    prefab = folder / "prefab"
    package = json.loads((prefab / "prefab.json").read_text())
    assert package == {
        "schema_version": 2,
        "name": "digits",
        "version": "1.2.3",
        "dependencies": [],
    }
    module = prefab / "modules" / "digits"
    assert json.loads((module / "module.json").read_text()) == {
        "export_libraries": [],
        "library_name": "libdigits",
    }
    headers = {"digits.h", "effc.h", *more_headers}
    assert {p.name for p in (module / "include").iterdir()} == headers
    assert sorted(p.name for p in (module / "libs").iterdir()) == [
        f"android.{abi}" for abi in sorted(abis)
    ]
    for abi in abis:
        place = module / "libs" / f"android.{abi}"
        facts = json.loads((place / "abi.json").read_text())
        assert facts == {"abi": abi, "api": 21, "ndk": 21, "stl": "none", "static": False}
        same = (folder / "jni" / abi / "libdigits.so").read_bytes()
        assert (place / "libdigits.so").read_bytes() == same


def test_entries(unpacked: Path) -> None:
    manifest = ElementTree.parse(unpacked / "AndroidManifest.xml").getroot()
    assert manifest.get("package") == "com.example.models.digits"
    sdk = manifest.find("uses-sdk")
    assert sdk is not None
    assert sdk.get(f"{ANDROID}minSdkVersion") == "21"
    metadata = unpacked / "META-INF/com/android/build/gradle/aar-metadata.properties"
    lines = dict(line.split("=") for line in metadata.read_text().splitlines())
    assert lines["aarFormatVersion"] == lines["aarMetadataVersion"] == "1.0"
    assert lines["minCompileSdk"] == "1"
    rules = (unpacked / "proguard.txt").read_text()
    assert "class com.example.models.Digits {" in rules
    assert "native <methods>;" in rules
    assert (unpacked / "R.txt").read_bytes() == b""
    said = run([need("javap"), "-cp", unpacked / "classes.jar", "com.example.models.Digits"])
    assert "public final class com.example.models.Digits" in said
    check_native(unpacked, ("arm64-v8a",))
    check_prefab(unpacked, ("arm64-v8a",))


def test_native_methods_match_the_class(unpacked: Path) -> None:
    """Every native method of the class has its function, and no function is left over."""
    said = run([need("javap"), "-p", "-cp", unpacked / "classes.jar", "com.example.models.Digits"])
    methods = set(re.findall(r" native .*?(\w+)\(", said))
    functions = exports(unpacked / "jni/arm64-v8a/libdigits_jni.so")
    assert {f.rpartition("_")[2] for f in functions} == methods
    assert len(methods) == 4


def test_three_abis_and_one_asset(three: effc.Artifact, tmp_path: Path) -> None:
    need("javac")
    done = effc.export(three, "aar", tmp_path, version="1.2.3", group="com.example.models")
    folder = unpack(tmp_path / done.files[0])
    abis = ("arm64-v8a", "armeabi-v7a", "x86_64")
    check_native(folder, abis)
    check_prefab(folder, abis, "effc_weights.h")
    weights = three.folder / "weights/digits.bin"
    assert [p.name for p in (folder / "assets").iterdir()] == ["digits.bin"]
    assert (folder / "assets/digits.bin").read_bytes() == weights.read_bytes()
    assert 'noCompress += "bin"' in done.usage
    assert "Digits.open(context)" in done.usage


def test_maven_repository(android: effc.Artifact, tmp_path: Path) -> None:
    need("javac")
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        done = effc.export(android, "maven", tmp_path, version=version, group="com.example.models")
    assert 'implementation("com.example.models:digits:1.9.0")' in done.usage
    place = tmp_path / "com/example/models/digits"
    metadata = ElementTree.parse(place / "maven-metadata.xml").getroot()
    versions = [v.text for v in metadata.findall("versioning/versions/version")]
    assert versions == ["1.0.0", "1.9.0", "1.10.0"]
    assert metadata.findtext("versioning/release") == "1.10.0"
    pom = ElementTree.parse(place / "1.9.0/digits-1.9.0.pom").getroot()
    space = "{http://maven.apache.org/POM/4.0.0}"
    fields = [pom.findtext(space + n) for n in ("groupId", "artifactId", "version", "packaging")]
    assert fields == ["com.example.models", "digits", "1.9.0", "aar"]
    assert zipfile.is_zipfile(place / "1.9.0/digits-1.9.0.aar")
    files = [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix in (".aar", ".pom", ".xml")]
    assert len(files) == 7
    for file in files:
        for algorithm in ("md5", "sha1", "sha256", "sha512"):
            digest = hashlib.new(algorithm, file.read_bytes()).hexdigest()
            assert file.with_name(f"{file.name}.{algorithm}").read_text() == digest


def test_damaged_repository_is_refused(android: effc.Artifact, tmp_path: Path) -> None:
    need("javac")
    place = tmp_path / "effc/models/digits"
    place.mkdir(parents=True)
    (place / "maven-metadata.xml").write_text("<metadata><oops")
    with pytest.raises(UsageError, match="list of versions is damaged"):
        effc.export(android, "maven", tmp_path)
    assert [p.name for p in place.iterdir()] == ["maven-metadata.xml"]


def test_only_for_android(digits: effc.Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be packed as an AAR"):
        effc.export(digits, "aar", tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_javac(
    android: effc.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="no Java compiler"):
        effc.export(android, "aar", tmp_path)
