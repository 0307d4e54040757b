"""Compression as a whole: plain ONNX out, original names and shapes, resumption, regrouping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from reference import run
from small_net import images, small_net

import effc
from effc.compression import surgery
from effc.compression.options import CompressOptions
from effc.compression.workflow import Compressed, compress_model
from effc.errors import ModelError, UsageError
from effc.passes.pruning.scheme import Scheme

Array = np.ndarray[Any, Any]
DATA = {"x": images(48), "y": np.zeros(48, np.int64)}
SHAPES = [("x", [1, 3, 8, 8]), ("y", [1, 5])]


def compress(tmp_path: Path, batch: int | str = 1, **options: Any) -> Compressed:
    options = {"prune": "block-punched", "sparsity": 0.5, "block": "4x2", **options}
    if "calibration" in options:
        options.setdefault("work", tmp_path / "work")
    return compress_model(small_net(batch), CompressOptions(**options))


def ports(model: onnx.ModelProto) -> list[tuple[str, list[int | str]]]:
    return [
        (v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]


@pytest.mark.parametrize(("batch", "leading"), [(1, 1), (4, 4), ("batch", "batch")])
def test_names_and_shapes_stay(tmp_path: Path, batch: int | str, leading: int | str) -> None:
    done = compress(tmp_path, batch)
    assert ports(done.model) == [("x", [leading, 3, 8, 8]), ("y", [leading, 5])]
    assert not done.notes
    count = leading if isinstance(leading, int) else 3
    assert np.isfinite(run(done.model, {"x": images(count)})[0]).all()


def test_zero_sparsity_changes_nothing(tmp_path: Path) -> None:
    done = compress(tmp_path, "batch", sparsity=0.0)
    x = {"x": images(5)}
    np.testing.assert_allclose(run(done.model, x)[0], run(small_net("batch"), x)[0], atol=1e-4)
    assert {layer.why for layer in done.layers} == {
        "its sparsity is 0",
        "it reads the model's input",
        "it is depthwise",
        "it computes the model's output",
    }


@pytest.mark.parametrize("scheme", ["block-punched", "unstructured", "2:4", "pattern"])
def test_surgeon_beats_magnitude(tmp_path: Path, scheme: str) -> None:
    """On other samples than those it saw, and what comes after helps further."""
    choice: dict[str, Any] = {"prune": scheme}
    choice |= {} if scheme == "block-punched" else {"block": None}
    choice |= {"sparsity": None} if scheme in ("2:4", "pattern") else {}
    x = {"x": images(64, seed=9)}
    expected = run(small_net("batch"), x)[0]

    def error(**options: Any) -> float:
        done = compress(tmp_path, "batch", **choice, **options)
        return float(np.square(run(done.model, x)[0] - expected).mean())

    plain = error()
    surgeon = error(calibration=DATA, correct="none")
    corrected = error(calibration=DATA)
    assert surgeon < plain / 3
    assert corrected < surgeon


def test_results_and_records(tmp_path: Path) -> None:
    done = compress(tmp_path, calibration=DATA, samples=20)
    layers = {layer.name: layer for layer in done.layers}
    assert list(layers) == [n.name for n in done.model.graph.node if n.op_type in ("Conv", "Gemm")]
    down = layers["down"]
    assert (down.scheme, down.block, down.method) == ("block-punched", "4x2", "obs")
    assert down.sparsity == pytest.approx(0.5, abs=0.01)
    assert down.loss is not None
    assert 0 < down.loss < 0.2
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in done.model.graph.initializer}
    node = next(n for n in done.model.graph.node if n.name == "down")
    assert np.mean(weights[node.input[1]] == 0) == down.sparsity
    prune, refit = done.passes
    assert prune.name == "prune_weights"
    assert prune.settings["sparsity"] == 0.5
    assert prune.settings["calibration_samples"] == 20
    assert any(
        text.startswith("down: 50.0% zeros, block-punched 4x2, obs") for text in prune.applied
    )
    assert refit.settings == {"calibration_samples": 20}
    assert [text.split(": error ")[0] for text in refit.applied] == list(layers)[2:]
    matched = compress(tmp_path, calibration=DATA, samples=20, correct="statistics").passes[-1]
    assert matched.settings == {"match": "statistics", "samples": 20}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    first = compress(tmp_path, calibration=DATA, work=tmp_path / "a").model
    second = compress(tmp_path, calibration=DATA, work=tmp_path / "b").model
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )


def test_interrupted_runs_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compress(tmp_path, calibration=DATA, work=tmp_path / "whole").model
    real = surgery.trace_layer
    calls: list[tuple[int, ...]] = []

    def killed(weight: Array, *args: Any, **kwargs: Any) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(weight.shape)
        return real(weight, *args, **kwargs)

    monkeypatch.setattr(surgery, "trace_layer", killed)
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path, calibration=DATA)
    kept = sorted((tmp_path / "work").iterdir())
    assert len(kept) == 2
    assert all(path.suffix == ".npz" for path in kept)
    kept[0].write_bytes(b"damaged")
    done: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        surgery, "trace_layer", lambda w, *a, **k: (done.append(w.shape), real(w, *a, **k))[1]
    )
    again = compress(tmp_path, calibration=DATA).model
    assert len(done) == 4  # five layers, one of which was whole
    assert again.SerializeToString(deterministic=True) == whole.SerializeToString(
        deterministic=True
    )
    done.clear()
    compress(tmp_path, calibration=DATA, sparsity=0.75)
    assert not done  # traces serve every sparsity


def test_regroup_layers_pruned_elsewhere(tmp_path: Path) -> None:
    before = compress_model(small_net(), CompressOptions(prune="unstructured", sparsity=0.5)).model
    done = compress_model(before, CompressOptions(regroup="4x2"))
    (record,) = done.passes
    assert record.name == "regroup_masks"
    assert all("4x2 blocks would lose" in why for why in record.refused)
    blocks = compress_model(small_net(), CompressOptions(prune="block-punched", sparsity=0.5)).model
    finer = compress_model(blocks, CompressOptions(regroup="4x4"))
    assert not finer.passes[0].applied  # 8x4 blocks are 4x4 blocks
    assert not finer.passes[0].refused


def test_per_layer_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        """
        prune = "block-punched"
        sparsity = 0.5
        correct = "bias"
        [[layer]]
        match = "grouped"
        prune = "pattern"
        [[layer]]
        match = "deep"
        prune = "pattern"
        [[layer]]
        match = "point"
        prune = "pattern"
        """
    )
    done = compress_model(
        small_net(), CompressOptions(recipe=recipe, calibration=DATA, work=tmp_path)
    )
    layers = {layer.name: layer for layer in done.layers}
    # A sparsity for all holds for patterns only if they can have it.
    assert layers["grouped"].sparsity == pytest.approx(5 / 9, abs=0.01)
    assert layers["deep"].scheme == "pattern"
    assert layers["point"].sparsity == 0
    assert layers["point"].why == "patterns are for 3x3 kernels, it has 1x1 kernel"
    assert done.passes[0].settings["layer"][0] == {"match": "grouped", "prune": "pattern"}
    assert done.passes[1].settings["match"] == "bias"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": None, "sparsity": None, "block": None}, "nothing to do"),
        ({"method": "obs"}, "calibration data is needed"),
        ({"correct": "statistics"}, "calibration data is needed"),
        ({"sparsity": None}, "needs a sparsity"),
        ({"method": "best"}, "obs or magnitude"),
        ({"regroup": "8"}, "cannot read a block shape"),
        ({"samples": 0}, "positive"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compress(tmp_path, **options)


def test_a_model_with_more_zeros_than_asked_for_keeps_them() -> None:
    sparse = effc.compress(small_net(), prune="unstructured", sparsity=0.75)
    again = effc.compress(sparse, prune="unstructured", sparsity=0.5, calibration=DATA)
    before, after = (
        {n.name: arrays[n.input[1]] for n in model.graph.node if n.op_type in ("Conv", "Gemm")}
        for model in (sparse, again)
        for arrays in [{t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}]
    )
    assert max(np.mean(weight == 0) for weight in before.values()) > 0.7
    for name, weight in before.items():
        assert not after[name][weight == 0].any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"z": images(2)}, "inputs of the model are missing"),
        ({"x": images(2)[:, :2]}, "another shape"),
        ({"x": images(2), "z": images(2)}, "does not take"),
        ({"x": images(2).astype(np.float64)}, "does not fit"),
        ({"x": images(2).astype(np.float64)}, r"convert it first: array.astype\('float32'\)"),
        ({"x": np.full((2, 3, 8, 8), np.nan, np.float32)}, "hold NaN"),
        ({"x": np.full((2, 3, 8, 8), np.inf, np.float32)}, "not finite"),
        ({"x": images(0)}, "needs samples"),
    ],
)
def test_unfit_samples(tmp_path: Path, data: dict[str, Array], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compress(tmp_path, calibration=data)


def test_compile_compresses_first(tmp_path: Path) -> None:
    artifact = effc.compile(
        small_net(), output=tmp_path / "small", prune="block-punched", sparsity=0.5
    )
    passes = artifact.manifest["passes"]
    assert passes[0]["name"] == "prune_weights"
    assert passes[0]["settings"]["prune"] == "block-punched"
    assert any(text.startswith("down: 50.0% zeros") for text in passes[0]["applied"])
    assert artifact.manifest["verification"]["ok"]
    assert max(layer["sparsity"] for layer in artifact.manifest["layers"]) == pytest.approx(0.5)
    small = effc.compress(small_net(), prune="block-punched", sparsity=0.5)
    x = {"x": images(1)}
    got = effc.load(artifact).run(x)["y"]
    np.testing.assert_allclose(got, run(small, x)[0], rtol=1e-4, atol=1e-4)
    assert Scheme("block-punched").block == (8, 4)
