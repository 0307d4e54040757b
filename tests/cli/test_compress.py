"""``effc compress`` and the compression flags of ``effc compile``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from .conftest import EXAMPLE, Effc

MODEL = EXAMPLE / "digits.onnx"
SAMPLES = EXAMPLE / "digits_test.npz"


def zeros(path: Path) -> list[float]:
    model = onnx.load(path)
    arrays = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) > 1]
    return [float(np.mean(a == 0)) for a in arrays]


def test_with_calibration(effc: Effc, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'prune = "block-punched"\nsparsity = 0.5\n[[layer]]\nmatch="*"\nblock="4x2"\n'
    )
    answer = effc(
        *("compress", MODEL, "-o", "small.onnx", "--recipe", "r.toml", "--calibration", SAMPLES),
        *("--work", "work", "--samples", 64, "--json"),
    )
    assert answer.code == 0, answer.err
    result = answer.json
    assert result["ok"]
    pruned = [layer for layer in result["layers"] if layer["scheme"]]
    assert pruned
    assert {layer["method"] for layer in pruned} == {"obs"}
    assert {layer["block"] for layer in pruned} == {"4x2"}
    assert all(abs(layer["sparsity"] - 0.5) < 0.05 and layer["loss"] > 0 for layer in pruned)
    assert [entry["name"] for entry in result["passes"]] == ["prune_weights", "refit_layers"]
    assert any(abs(share - 0.5) < 0.05 for share in zeros(tmp_path / "small.onnx"))
    assert {p.name for p in tmp_path.iterdir()} == {"small.onnx", "work", "r.toml"}
    accuracy = effc("compile", tmp_path / "small.onnx", "--target", "host", "-o", "a")
    assert accuracy.code == 0, accuracy.err


def test_table(effc: Effc, tmp_path: Path) -> None:
    answer = effc("compress", MODEL, "-o", "s.onnx", "--prune", "unstructured", "--sparsity", 0.3)
    assert answer.code == 0, answer.err
    assert "magnitude" in answer.out
    assert "it reads the model's input" in answer.out
    assert "weights are zero" in answer.out
    assert "precision" not in answer.out

    answer = effc("compress", MODEL, "-o", "q.onnx", "--quantize", "int4-weights")
    assert answer.code == 0, answer.err
    assert "precision" in answer.out
    assert "int4-weights" in answer.out
    for text in ("zero", "not pruned", "scheme"):
        assert text not in answer.out


def test_compile_with_pruning(effc: Effc, tmp_path: Path) -> None:
    answer = effc(
        *("compile", MODEL, "--target", "host", "--prune", "unstructured", "--sparsity", "0.5"),
        *("--json", "-v"),
    )
    assert answer.code == 0, answer.err
    manifest = json.loads((tmp_path / "digits" / "manifest.json").read_text())
    assert manifest["passes"][0]["name"] == "prune_weights"
    assert manifest["name"] == "digits"
    assert "prune_weights: applied at" in answer.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to do"),
        (["--prune", "block-punchd", "--sparsity", "0.5"], "did you mean block-punched"),
        (["--prune", "block-punched"], "needs a sparsity"),
        (["--prune", "2:4", "--sparsity", "0.75"], "has a sparsity of its own"),
        (["--prune", "block-punched", "--sparsity", "0.5", "--method", "obs"], "--calibration"),
        (["--prune", "block-punched", "--sparsity", "0.5", "--block", "8"], "FILTERSxCHANNELS"),
        (["--recipe", "none.toml"], "no such file"),
        (
            ["--prune", "2:4", "--calibration", "none.npz"],
            "none.npz: no such file",
        ),
    ],
)
def test_wrong_usage(effc: Effc, tmp_path: Path, flags: list[str], message: str) -> None:
    answer = effc("compress", MODEL, "-o", "s.onnx", *flags, "--json")
    assert answer.code == 2, answer.err
    assert message in answer.err
    assert not answer.json["ok"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [".", "missing/s.onnx"])
def test_outputs_that_cannot_be_written(effc: Effc, tmp_path: Path, place: str) -> None:
    answer = effc("compress", MODEL, "-o", place, "--prune", "2:4")
    assert answer.code == 2
    assert f"-o {place}" in answer.err


def test_the_model_is_not_replaced(effc: Effc, tmp_path: Path) -> None:
    copy = tmp_path / "m.onnx"
    copy.write_bytes(MODEL.read_bytes())
    answer = effc("compress", copy, "-o", "m.onnx", "--prune", "2:4")
    assert answer.code == 2
    assert copy.read_bytes() == MODEL.read_bytes()
