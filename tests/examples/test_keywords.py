"""The firmware example: built with arm-none-eabi-gcc, run in QEMU, for both kinds of artifacts."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import effc

HERE = Path(__file__).parents[2] / "examples" / "keywords"
FIRMWARE = HERE / "firmware"
WORDS = ["yes", "no", "stop", "go", "other"]


@pytest.fixture(scope="module")
def features() -> ModuleType:
    sys.path.insert(0, str(HERE))
    try:
        import features
    finally:
        sys.path.remove(str(HERE))
    return features


def sound(word: str) -> np.ndarray:
    """int16 samples of a recording."""
    return np.frombuffer((HERE / "words" / f"{word}.wav").read_bytes()[44:], np.int16)


def test_the_firmware_computes_the_features_that_were_trained_on(
    features: ModuleType, tmp_path: Path
) -> None:
    library = tmp_path / "features.so"
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *strict, "-o", str(library), str(FIRMWARE / "features.c")], check=True)
    compute = ctypes.CDLL(str(library)).compute_features
    for word in WORDS:
        found = np.zeros((features.FRAMES, features.BANDS), np.float32)
        x = sound(word).copy()
        compute(x.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p))
        # Eight stages of butterflies and a sum of 30 powers: some 50 roundings, through log2 / 8.
        np.testing.assert_allclose(found, features.features(x), rtol=0, atol=1e-4)


def test_the_tables_are_current(features: ModuleType) -> None:
    assert (FIRMWARE / "features_tables.h").read_text() == features.tables()


@pytest.mark.parametrize("target", ["cortex-m4", "c"])
def test_keywords_are_heard(target: str, features: ModuleType, tmp_path: Path) -> None:
    for program in ("arm-none-eabi-gcc", "qemu-system-arm", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    artifact = effc.compile(
        HERE / "keywords.onnx",
        target=target,
        output=tmp_path / "model",
        name="keywords",
        quantize="int8",
        calibration=HERE / "keywords_test.npz",
    )
    host = effc.load(
        effc.compile(
            HERE / "keywords.onnx",
            target="host",
            output=tmp_path / "host",
            name="keywords",
            quantize="int8",
            calibration=HERE / "keywords_test.npz",
        )
    )
    for word in WORDS:
        places = {"MODEL": artifact.path, "BUILD": tmp_path, "SOUND": HERE / f"words/{word}.wav"}
        done = subprocess.run(
            ["make", "-s", "run", *(f"{name}={path}" for name, path in places.items())],
            cwd=FIRMWARE,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        *shares, heard = done.stdout.splitlines()
        assert heard == f"heard: {word}"
        expected = host.run({"features": features.features(sound(word))[None, None]})
        percent = expected["probabilities"][0] * 100
        found = [float(line.split()[1]) for line in shares]
        np.testing.assert_allclose(found, percent, atol=1.01)
    host.close()


def test_most_held_out_clips_are_recognized(tmp_path: Path) -> None:
    with np.load(HERE / "keywords_test.npz") as data:
        x, y = data["x"], data["y"]
    artifact = effc.compile(
        HERE / "keywords.onnx", target="host", output=tmp_path / "m", verify=False
    )
    with effc.load(artifact) as runner:
        answers = [runner.run({"features": one[None]})["probabilities"].argmax() for one in x]
    assert np.mean(np.array(answers) == y) > 0.9
