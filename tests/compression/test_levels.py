"""Levels from measured time, end to end on a small network, and replayed from the database."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import effc
from effc import network_time
from effc.compression.level_table import levels_of
from effc.compression.options import CompressOptions
from effc.compression.workflow import compress_model
from effc.devices.catalog import get_target
from effc.errors import QualityError, UsageError
from effc.options import CompileOptions
from effc.passes.pruning.scheme import parse_scheme
from effc.tuning.level_times import coarse_to_fine
from effc.tuning.measure import Harness
from effc.tuning.testbed import ThisMachine
from tests.small_net import images, small_net

SPARSE = "grouped"


def recipe(folder: Path) -> Path:
    """Two convolutions are free, one has a sparsity of its own, the others stay dense."""
    file = folder / "recipe.toml"
    entries = ['match = "point"\nsparsity = 0.5']
    entries += [f'match = "{name}"\ndense = true' for name in ("mm*", "fc")]
    file.write_text(
        'prune = "2:4"\n' + "".join(f"[[layer]]\n{entry}\n" for entry in entries), "utf-8"
    )
    return file


def options(database: Path, file: Path, **goal: float) -> CompressOptions:
    return CompressOptions(
        prune="2:4",
        recipe=file,
        calibration={"x": images(12)},
        work=database.parent / "work",
        timing=CompileOptions(tune=40, tuning_db=database),
        **goal,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Database, recipe and record of a first run, whose goal every network reaches."""
    why = ThisMachine().refusal(get_target("host"))
    if why is not None:
        pytest.skip(f"this machine cannot measure: {why}")
    folder = tmp_path_factory.mktemp("levels")
    database, file = folder / "db.jsonl", recipe(folder)
    done = compress_model(small_net(), options(database, file, speedup=1.0))
    assert done.levels is not None
    return database, file, done.levels.record


def zeros(model: onnx.ModelProto) -> dict[str, float]:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        node.name: float((found[node.input[1]] == 0).mean())
        for node in model.graph.node
        if node.op_type == "Conv"
    }


def test_record_says_what_was_measured(measured: tuple[Path, Path, dict[str, Any]]) -> None:
    _, _, record = measured
    assert record["goal"] == {"speedup": 1.0}
    assert 0 < record["fastest_ms"] <= record["dense_ms"]
    rows = {row["name"]: row for row in record["layers"]}
    assert list(rows) == ["point", "down", SPARSE]
    assert [level["sparsity"] for level in rows["down"]["levels"]] == [0.0, 0.5]
    for row in rows.values():
        assert row["dense_seconds"] > 0
        assert row["seconds"] > 0
    assert rows["point"]["sparsity"] == 0.5
    assert record["errors"]["networks_scored"] >= 1
    errors = [point["error"] for point in record["front"]]
    assert errors == sorted(errors, reverse=True)
    json.dumps(record, allow_nan=False)


def test_second_run_measures_nothing_and_chooses_the_same(
    measured: tuple[Path, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, file, record = measured
    before = database.read_bytes()

    def measure(*_: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr(Harness, "run", measure)
    monkeypatch.setattr(network_time, "_measure", measure)
    again = compress_model(small_net(), options(database, file, speedup=1.0))
    assert again.levels is not None
    assert again.levels.record == record
    assert database.read_bytes() == before


def test_layers_get_the_zeros_of_their_levels(
    measured: tuple[Path, Path, dict[str, Any]],
) -> None:
    database, file, record = measured
    reach = max(0.98 * record["dense_ms"] / record["fastest_ms"], 1.0)
    done = compress_model(small_net(), options(database, file, speedup=reach))
    assert done.levels is not None
    found = zeros(done.model)
    for row in done.levels.record["layers"]:
        assert found[row["name"]] == pytest.approx(row["sparsity"], abs=1e-6)
    assert found["point"] == 0.5
    assert found["first"] == 0
    assert done.passes[0].name == "choose_levels"
    assert dict(done.passes[0].settings)["speedup"] == reach


def test_compiled_model_reports_what_it_reached(
    measured: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    database, file, _ = measured
    artifact = effc.compile(
        small_net(),
        output=tmp_path / "out",
        prune="2:4",
        recipe=file,
        speedup=1.0,
        calibration={"x": images(12)},
        work=database.parent / "work",
        tune=40,
        tuning_db=database,
    )
    levels = artifact.manifest["levels"]
    assert levels["achieved"]["ms"] > 0
    assert levels["achieved"]["speedup"] > 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Levels from measured time" in page
    assert page.count('class="spark"') == len(levels["layers"])
    assert effc.load(artifact).run({"x": images(1)})["y"].shape == (1, 5)


def test_goal_out_of_reach_says_what_is_possible(
    measured: tuple[Path, Path, dict[str, Any]],
) -> None:
    database, file, _ = measured
    with pytest.raises(QualityError, match=r"out of reach.*at least .* ms.*times faster"):
        compress_model(small_net(), options(database, file, latency_ms=1e-5))


def test_foreign_targets_and_schemes_without_zeros_are_refused(tmp_path: Path) -> None:
    for scheme, target, message in (
        ("2:4", "android-armv7", "this machine can run.*--sparsity"),
        ("channel", "host", "make zeros"),
    ):
        given = CompressOptions(
            prune=scheme,
            speedup=2.0,
            timing=CompileOptions(target=target, tuning_db=tmp_path / "db"),
        )
        with pytest.raises(UsageError, match=f"(?s){message}"):
            compress_model(small_net(), given)
    assert not (tmp_path / "db").exists()


def test_levels_of_schemes() -> None:
    blocks = levels_of(parse_scheme("block-punched"))
    kept = 1 - np.array(blocks)
    assert np.allclose(kept[1:] / kept[:-1], 0.8, atol=1e-3)
    assert 0.94 < blocks[-1] <= 0.95
    assert levels_of(parse_scheme("1:4")) == (0.0, 0.75)
    pattern = levels_of(parse_scheme("pattern"))
    assert pattern[1] == pytest.approx(5 / 9)
    assert list(pattern) == sorted(pattern)


def test_levels_are_visited_from_coarse_to_fine() -> None:
    for count in range(1, 40):
        order = coarse_to_fine(count)
        assert sorted(order) == list(range(1, count))
        if count > 3:
            assert set(order[:2]) == {count // 2, count - 1}
