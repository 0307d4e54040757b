"""Golden inputs and outputs: written, read back, and not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from effc.artifact import Artifact
from effc.errors import ModelError
from effc.golden import FILE, verify_against_golden, write_golden
from effc.samples import Arrays, write_npz


class Doubler:
    """Stands for a compiled library that computes 2 x."""

    device = "local"

    def run(self, inputs: Arrays) -> Arrays:
        return {"y": inputs["x"] + inputs["x"]}


def manifest(dtype: str, elements: int) -> dict[str, Any]:
    shape = [elements]
    ports = {name: [{"name": name, "dtype": dtype, "shape": shape}] for name in "xy"}
    about: dict[str, Any] = {"layers": [], "passes": [], "verification": None}
    return {"inputs": ports["x"], "outputs": ports["y"], "files": {FILE: {}}, **about}


def check(folder: Path, about: dict[str, Any]) -> bool:
    artifact = Artifact(folder, folder, about)
    return verify_against_golden(artifact, Doubler().run, "local").ok


@pytest.mark.parametrize("dtype", [np.float32, np.int64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("elements", [0, 3, 100_000])
def test_round_trip(tmp_path: Path, dtype: Any, elements: int) -> None:
    about = manifest(np.dtype(dtype).name, elements)
    write_golden(tmp_path, about, Doubler().run, {})
    assert check(tmp_path, about)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"out|y": np.zeros(4, np.float32)},
        {"out|y": np.zeros(3, np.float64)},
        {"out|y": np.array(["a", "b", "c"])},
        {"out|y": np.zeros(1, np.float32), "at|y": np.array([3])},
        {"out|y": np.zeros(1, np.float32), "at|y": np.array([-1])},
        {"out|y": np.zeros(1, np.float32), "at|y": np.array([0.5])},
        {"out|y": np.zeros(0, np.float32), "at|y": np.zeros(0, np.int64)},
    ],
)
def test_foreign_golden_outputs_are_refused(tmp_path: Path, arrays: Arrays) -> None:
    with (tmp_path / FILE).open("wb") as stream:
        write_npz(stream, arrays)
    with pytest.raises(ModelError, match="golden outputs"):
        check(tmp_path, manifest("float32", 3))
