"""Packages for firmware, taken in by the ecosystems' own tools where a registry has them.

``arduino-builder`` builds the example sketches; kconfiglib reads Zephyr's Kconfig file and CMake
builds the module; cmsis-pack-manager reads the pack.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from lxml import etree

import effc
from effc.errors import UsageError

from .conftest import EXAMPLE, need, run
from .firmware_worlds import ARDUINO_H, BARE_CORE, arduino_platform, zephyr_world

FORMATS = ["arduino", "zephyr", "cmsis-pack"]
M4 = "-mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16 -mfloat-abi=hard"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example as C source."""
    out = tmp_path_factory.mktemp("c") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "c", out, name="digits", verify=False)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for a Cortex-M4."""
    out = tmp_path_factory.mktemp("m4") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "cortex-m4", out, name="digits", verify=False)


@pytest.fixture(scope="module")
def zeros(digits: effc.Artifact) -> np.ndarray:
    """What the network says of an empty image."""
    with effc.load(digits) as runner:
        return runner.run({"image": np.zeros((1, 1, 8, 8), np.float32)})["probabilities"]


def build_sketch(library: Path, work: Path) -> tuple[Path, str]:
    """Build the library's example with arduino-builder; the program and what the tool said."""
    sketch = next((library / "examples").rglob("*.ino"))
    assert sketch.stem == sketch.parent.name
    out = work / "build"
    out.mkdir()
    command = [need("arduino-builder"), "-compile", "-hardware", work / "hardware"]
    command += ["-libraries", library.parent, "-build-path", out, "-fqbn", "effc:test:host"]
    said = run([*command, "-tools", work, "-verbose", "-warnings", "all", sketch])
    return out / f"{sketch.name}.elf", said


def test_arduino_builds_and_runs_the_sketch(
    source: effc.Artifact, zeros: np.ndarray, tmp_path: Path
) -> None:
    effc.export(source, "arduino", tmp_path / "libraries")
    arduino_platform(tmp_path / "hardware")
    program, said = build_sketch(tmp_path / "libraries" / "digits", tmp_path)
    assert "Using library digits at version 1.0.0" in said
    printed = [float(text) for text in re.findall(r"[-\d.e]+(?= )", run([program]))]
    np.testing.assert_allclose(printed, zeros[0], rtol=1e-5, atol=1e-7)


def test_arduino_links_the_precompiled_library(archives: effc.Artifact, tmp_path: Path) -> None:
    """By hand: this arduino-builder is older than precompiled libraries."""
    compiler = need("arm-none-eabi-g++")
    effc.export(archives, "arduino", tmp_path)
    library = tmp_path / "digits"
    properties = read_properties(library)
    assert (properties["precompiled"], properties["ldflags"]) == ("true", "-ldigits")
    folder = library / "src" / "cortex-m4" / "fpv4-sp-d16-hard"
    assert [file.name for file in folder.iterdir()] == ["libdigits.a"]
    (tmp_path / "Arduino.h").write_text(ARDUINO_H)
    (tmp_path / "core.cpp").write_text(BARE_CORE)
    sketch = next((library / "examples").rglob("*.ino")).read_text()
    (tmp_path / "sketch.cpp").write_text(f'#include "Arduino.h"\n{sketch}')
    flags = [*M4.split(), "-Os", "-Wall", "-Wextra", "-Werror", "-nostdlib"]
    flags += [
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-threadsafe-statics",
        "-fno-tree-loop-distribute-patterns",
    ]
    command = [compiler, *flags, f"-I{tmp_path}", f"-I{library / 'src'}", f"-L{folder}"]
    sources = [tmp_path / "sketch.cpp", tmp_path / "core.cpp"]
    said = run([*command, *sources, properties["ldflags"], "-lgcc", "-o", tmp_path / "program"])
    assert "libdigits.a" not in said, said


def read_properties(library: Path) -> dict[str, str]:
    lines = (library / "library.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_arduino_metadata(source: effc.Artifact, tmp_path: Path) -> None:
    """The library specification's required fields and allowed values."""
    effc.export(source, "arduino", tmp_path, version="2.1.0")
    library = tmp_path / "digits"
    properties = read_properties(library)
    required = "name version author maintainer sentence paragraph category url architectures"
    assert set(required.split()) <= set(properties)
    assert properties["version"] == "2.1.0"
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}", properties["name"])
    assert properties["category"] == "Data Processing"
    assert properties["sentence"].endswith(".")
    assert (library / "src" / properties["includes"]).is_file()
    for line in (library / "keywords.txt").read_text().splitlines():
        word, kind = line.split("\t")
        assert kind in ("KEYWORD1", "KEYWORD2", "LITERAL1")
        assert word in (library / "src" / "digits.h").read_text()


def test_zephyr_builds_and_runs_the_sample(source: effc.Artifact, tmp_path: Path) -> None:
    module, world = tmp_path / "module", tmp_path / "world"
    effc.export(source, "zephyr", module)
    zephyr_world(world, module, module / "samples" / "digits")
    cmake = need("cmake")
    run([cmake, "-S", world, "-B", world / "out", "-D", "CONFIG_EFFC_MODEL_DIGITS=y"])
    run([cmake, "--build", world / "out"])
    assert run([world / "out" / "app"]) == "digits: done, 0 cycles\n"


def test_zephyr_imports_the_archive(archives: effc.Artifact, tmp_path: Path) -> None:
    module, world = tmp_path / "module", tmp_path / "world"
    effc.export(archives, "zephyr", module)
    zephyr_world(world, module, module / "samples" / "digits")
    options = ["-D", "CONFIG_EFFC_MODEL_DIGITS=y", "-D", "CONFIG_CPU_CORTEX_M4=y"]
    said = run([need("cmake"), "-S", world, "-B", world / "out", *options])
    found = re.search(r"imported digits from (.*)", said)
    assert found is not None
    assert Path(found[1]).resolve() == (module / "lib" / "cortex-m4" / "libdigits.a").resolve()


@pytest.mark.parametrize("kind", ["source", "archives"])
def test_zephyr_metadata(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import kconfiglib

    effc.export(request.getfixturevalue(kind), "zephyr", tmp_path)
    module = yaml.safe_load((tmp_path / "zephyr" / "module.yml").read_text())
    assert module["name"] == "digits"
    assert (tmp_path / module["build"]["cmake"] / "CMakeLists.txt").is_file()
    kconfig = tmp_path / module["build"]["kconfig"]
    assert all((tmp_path / folder).is_dir() for folder in module["samples"])
    root = tmp_path / "Kconfig"
    have = "config CPU_CORTEX_M4\n\tbool\n\tdefault y\nconfig FP_HARDABI\n\tbool\n\tdefault y\n"
    root.write_text(f'{have}source "{kconfig}"\n')
    config = kconfiglib.Kconfig(str(root), warn_to_stderr=False)
    config.load_config(str(tmp_path / "samples" / "digits" / "prj.conf"))
    assert config.syms["EFFC_MODEL_DIGITS"].str_value == "y"
    sample = yaml.safe_load((tmp_path / "samples" / "digits" / "sample.yaml").read_text())
    (test,) = sample["tests"].values()
    expected = test["harness_config"]["regex"][0]
    assert re.search(expected, "digits: done, 123 cycles")


@pytest.mark.parametrize("kind", ["source", "archives"])
def test_cmsis_pack(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from cmsis_pack_manager import Cache

    effc.export(request.getfixturevalue(kind), "cmsis-pack", tmp_path, group="com.example")
    pack = tmp_path / "com-example.digits.1.0.0.pack"
    folder = tmp_path / "pack"
    with zipfile.ZipFile(pack) as zipped:
        assert zipped.testzip() is None
        zipped.extractall(folder)
    description = folder / "com-example.digits.pdsc"
    root = etree.parse(str(description)).getroot()
    names = {"vendor": "com-example", "name": "digits"}
    assert {key: root.findtext(key) for key in names} == names
    files = [file.get("name") for file in root.iterfind("components/component/files/file")]
    present = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert {*files, description.name} == present
    conditions = {condition.get("id") for condition in root.iterfind("conditions/condition")}
    used = {e.get("condition") for e in root.iter() if e.get("condition")}
    assert used <= conditions
    cache = Cache(True, True, str(tmp_path / "json"), str(tmp_path / "data"))
    cache.add_pack_from_path(str(description))  # raises where the description is no good


def test_the_packs_component_compiles(source: effc.Artifact, tmp_path: Path) -> None:
    effc.export(source, "cmsis-pack", tmp_path)
    with zipfile.ZipFile(tmp_path / "effc-models.digits.1.0.0.pack") as zipped:
        zipped.extractall(tmp_path)
    root = etree.parse(str(tmp_path / "effc-models.digits.pdsc")).getroot()
    listed = root.findall("components/component/files/file")
    sources = [tmp_path / f.get("name") for f in listed if f.get("category") == "source"]
    headers = {tmp_path / f.get("name") for f in listed if f.get("category") == "header"}
    paths = [f"-I{folder}" for folder in sorted({header.parent for header in headers})]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    run([need("gcc"), *strict, *paths, *sources, "-lm", "-o", tmp_path / "run"])
    run([tmp_path / "run"])


@pytest.mark.parametrize("format", FORMATS)
def test_equal_artifacts_give_equal_packages(
    format: str, source: effc.Artifact, tmp_path: Path
) -> None:
    made = [effc.export(source, format, tmp_path / side) for side in ("a", "b")]
    assert made[0].files == made[1].files
    for file in made[0].files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("format", FORMATS)
def test_artifacts_for_an_operating_system_are_refused(
    format: str, digits: effc.Artifact, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="expected one for a microcontroller"):
        effc.export(digits, format, tmp_path / "out")
