"""``prune = channel`` through the whole compression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from reference import run
from small_net import images, small_net

import effc
from effc.compression.options import CompressOptions
from effc.compression.workflow import Compressed, compress_model
from effc.errors import UsageError

DATA = {"x": images(48), "y": np.zeros(48, np.int64)}


def compress(batch: int | str = 1, **options: Any) -> Compressed:
    options = {"prune": "channel", "sparsity": 0.5, **options}
    return compress_model(small_net(batch), CompressOptions(**options))


def weights(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all layers' weights by node name."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    return {n.name: shapes[n.input[1]] for n in layers}


@pytest.mark.parametrize("batch", [1, "batch"])
def test_layers_become_smaller(batch: int | str) -> None:
    done = compress(batch)
    onnx.checker.check_model(done.model, full_check=True)
    found = list(weights(done.model).values())
    # The residual begins in the first layer, which stays dense, the grouped convolution would lose
    # whole groups of which there are two; what is left are the classifier's inner channels.
    assert found[0] == (16, 3, 3, 3)
    assert found[-1] in ((6, 5), (5, 6))
    x = {"x": images(1 if batch == 1 else 3)}
    assert run(done.model, x)[0].shape == (len(x["x"]), 5)
    layers = {layer.name: layer for layer in done.layers}
    assert layers["fc"].channels == "6 of 12"
    assert layers["fc"].scheme == "channel"
    assert layers["fc"].block == ""
    assert layers["point"].channels == ""
    assert layers["point"].why == "first, with the same channels, keeps all"


def test_an_interrupted_surgeon_continues(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[layer]]\nmatch = "first"\ndense = false\n')
    options = {"calibration": DATA, "recipe": recipe, "correct": "none"}
    whole = compress(**options, work=tmp_path / "whole")
    groups: list[str] = []

    def stop(phase: str, done: int, total: int, detail: str = "") -> None:
        if phase == "prune":
            groups.append(detail)
            if len(groups) == 2:
                raise KeyboardInterrupt

    asked = CompressOptions(prune="channel", sparsity=0.5, work=tmp_path / "work", **options)
    with pytest.raises(KeyboardInterrupt):
        compress_model(small_net(), asked, stop)
    again = compress_model(small_net(), asked, stop)
    assert len(groups) == len(set(groups)) + 1  # the one that was being done
    assert again.model == whole.model
    assert again.layers == whole.layers
    count = len(groups)
    compress_model(small_net(), asked, stop)
    assert len(groups) == count


def test_surgeon_and_refit_beat_magnitude() -> None:
    x = {"x": images(64, seed=9)}
    expected = run(small_net("batch"), x)[0]

    def error(**options: Any) -> float:
        return float(np.square(run(compress("batch", **options).model, x)[0] - expected).mean())

    assert error(calibration=DATA) < error() / 2
    corrected = error(calibration=DATA, method="magnitude")
    assert corrected < error()


def test_nothing_is_corrected_after_a_refit() -> None:
    done = compress(calibration=DATA)
    (prune,) = [record for record in done.passes if record.name == "prune_channels"]
    assert any(text.startswith("fc: 6 of 12 channels kept, obs, loss ") for text in prune.applied)
    assert not [text for r in done.passes if r.name == "correct_statistics" for text in r.applied]


def test_other_schemes_for_other_layers(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[layer]]\nmatch = "down"\nprune = "2:4"\n', "utf-8")
    done = compress(recipe=recipe, calibration=DATA, work=tmp_path)
    layers = {layer.name: layer for layer in done.layers}
    assert layers["down"].scheme == "2:4"
    assert layers["down"].sparsity == pytest.approx(0.5)
    assert layers["fc"].channels == "6 of 12"
    arrays = {t.name: numpy_helper.to_array(t) for t in done.model.graph.initializer}
    (down,) = [n for n in done.model.graph.node if n.name == "down"]
    quads = arrays[down.input[1]].reshape(24, 4, 4, 9)
    assert (np.count_nonzero(quads, axis=2) <= 2).all()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibration data is needed"):
        compress(method="obs")
    recipe = tmp_path / "r.toml"
    recipe.write_text('[[layer]]\nmatch = "fc"\nmethod = "magnitude"\n', "utf-8")
    with pytest.raises(UsageError, match="the same method"):
        compress(recipe=recipe, calibration=DATA)
    with pytest.raises(UsageError, match="no block"):
        compress(block="8x4")


def test_a_smaller_network_compiles() -> None:
    done = compress()
    artifact = effc.compile(done.model, target="host")
    assert artifact.manifest["verification"]["ok"]
