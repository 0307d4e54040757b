"""Artifacts to pack, and what they compute."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import effc

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


def run(command: Sequence[object], **options: object) -> str:
    """Run a program that must succeed; what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


def need(program: str) -> str:
    """Path of a program; the test is skipped where it is not installed."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for this machine."""
    out = tmp_path_factory.mktemp("host") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "host", out, verify=False)


@pytest.fixture(scope="session")
def digits_arm64(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for 64-bit Arm Linux."""
    out = tmp_path_factory.mktemp("arm64") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "linux-arm64", out, verify=False)


@pytest.fixture(scope="session")
def image() -> np.ndarray:
    """One sample of the digits example, float32 [1, 1, 8, 8]."""
    with np.load(EXAMPLE / "digits_test.npz") as data:
        return np.ascontiguousarray(data["x"][:1].astype(np.float32))


@pytest.fixture(scope="session")
def probabilities(digits: effc.Artifact, image: np.ndarray) -> np.ndarray:
    """What the library for this machine makes of the sample, float32 [1, 10]."""
    with effc.load(digits) as runner:
        return runner.run({"image": image})["probabilities"]


@pytest.fixture(scope="session")
def android(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for 64-bit Arm phones."""
    out = tmp_path_factory.mktemp("android") / "digits"
    return effc.compile(EXAMPLE / "digits.onnx", "android", out, verify=False)


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for three ABIs of Android, with one file of weights."""
    out = tmp_path_factory.mktemp("three") / "digits"
    abis = ["arm64-v8a", "armeabi-v7a", "x86_64"]
    example = EXAMPLE / "digits.onnx"
    return effc.compile(example, "android", out, abi=abis, weights="file", verify=False)
