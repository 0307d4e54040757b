"""Wheels as pip sees them, in an environment without effc."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import effc
from effc.errors import UsageError

from .conftest import run

TAGS = {"x86_64": "manylinux_2_17_x86_64", "aarch64": "manylinux_2_17_aarch64"}


def test_installed_in_a_fresh_environment(
    digits: effc.Artifact, tmp_path: Path, image: np.ndarray, probabilities: np.ndarray
) -> None:
    done = effc.export(digits, "wheel", tmp_path, version="0.3.0")
    run([sys.executable, "-m", "venv", tmp_path / "venv"])
    python = tmp_path / "venv/bin/python"
    installed = subprocess.run(
        [str(python), "-m", "pip", "install", "-q", str(tmp_path / done.files[0])],
        capture_output=True,
        text=True,
        check=False,
    )
    if "numpy" in installed.stderr and installed.returncode:
        pytest.skip("pip cannot get numpy")
    assert installed.returncode == 0, installed.stderr
    run([python, "-m", "pip", "check"])
    np.save(tmp_path / "in.npy", image)
    (tmp_path / "use.py").write_text(
        "import importlib.util, sys\n"
        "assert not importlib.util.find_spec('effc') and not importlib.util.find_spec('tvm')\n"
        "import digits, numpy as np\n"
        "assert digits.__version__ == '0.3.0'\n"
        "with digits.Model(threads=2) as model:\n"
        "    assert [t.name for t in model.inputs] == ['image']\n"
        "    np.save('out.npy', model.run({'image': np.load('in.npy')})['probabilities'])\n"
        "    try:\n"
        "        model.run({'picture': np.load('in.npy')})\n"
        "    except digits.UsageError as error:\n"
        "        print(error)\n"
        "    assert model.bench(runs=3, warmup=1).runs == 3\n"
    )
    said = run([python, "-I", "use.py"], cwd=tmp_path)
    assert "'picture'" in said
    got = np.load(tmp_path / "out.npy")
    np.testing.assert_array_equal(got, probabilities)


def test_arm64_wheel_is_for_arm64(digits_arm64: effc.Artifact, tmp_path: Path) -> None:
    """pip takes the wheel for that platform and refuses it for the other."""
    done = effc.export(digits_arm64, "wheel", tmp_path)
    assert done.files == (f"digits-1.0.0-py3-none-{TAGS['aarch64']}.whl",)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
    wheel = tmp_path / done.files[0]
    run([*command, "--platform", TAGS["aarch64"], "--target", tmp_path / "arm", wheel])
    library = tmp_path / "arm/digits/libdigits.so"
    assert library.read_bytes() == digits_arm64.library.read_bytes()
    with pytest.raises(AssertionError, match="not a supported wheel"):
        run([*command, "--platform", TAGS["x86_64"], "--target", tmp_path / "x86", wheel])


def test_record_lists_every_file(digits: effc.Artifact, tmp_path: Path) -> None:
    done = effc.export(digits, "wheel", tmp_path)
    with zipfile.ZipFile(tmp_path / done.files[0]) as wheel:
        names = set(wheel.namelist())
        record = wheel.read("digits-1.0.0.dist-info/RECORD").decode().splitlines()
        rows = [line.split(",") for line in record]
        assert {row[0] for row in rows} == names
        for name, digest, size in rows:
            if not name.endswith("RECORD"):
                data = wheel.read(name)
                code = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
                assert (digest, int(size)) == (f"sha256={code.rstrip('=')}", len(data))
        for name in names:
            if name.endswith(".py"):
                assert b"from effc" not in wheel.read(name), name
                assert b"import effc" not in wheel.read(name), name


def test_processor_without_the_instructions(
    digits: effc.Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in words, not an illegal instruction."""
    done = effc.export(digits, "wheel", tmp_path)
    with zipfile.ZipFile(tmp_path / done.files[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    import digits as installed  # type: ignore[import-not-found]

    monkeypatch.setattr(installed, "_FEATURES", ["+neon", "+sse4.2"])
    monkeypatch.setattr(installed._cpu, "cpu_features", lambda: ("-neon", "-sse4.2"))
    try:
        with pytest.raises(installed.DeviceError, match=r"lacks instructions .* neon, sse4\.2"):
            installed.Model()
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "digits"]:
            del sys.modules[name]


def test_file_names_are_normalized(digits: effc.Artifact, tmp_path: Path) -> None:
    name = "Two_Parts"
    artifact = effc.compile(
        Path(__file__).parents[2] / "examples/digits/digits.onnx", name=name, verify=False
    )
    done = effc.export(artifact, "wheel", tmp_path)
    assert done.files[0].startswith("two_parts-1.0.0-py3-none-")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    run([*command, tmp_path / "t", tmp_path / done.files[0]])
    assert (tmp_path / "t" / name / f"lib{name}.so").exists()


def test_other_systems_are_refused(digits: effc.Artifact, tmp_path: Path) -> None:
    digits.manifest["machine"]["os"] = "none"
    try:
        with pytest.raises(UsageError, match="cannot be packed as a wheel"):
            effc.export(digits, "wheel", tmp_path)
    finally:
        digits.manifest["machine"]["os"] = "linux"
