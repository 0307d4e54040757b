"""Speed-up and latency as goals: options, recipes, messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from effc.compression.goal import Goal, parse_goal
from effc.compression.options import CompressOptions
from effc.compression.recipe import plan_layers, read_recipe
from effc.errors import UsageError
from effc.passes.pruning.layers import find_layers
from effc.passes.registry import simplify
from tests.small_net import small_net


def test_one_goal_at_a_time() -> None:
    assert parse_goal(None, None, 0.5) is None
    assert parse_goal(None, None, None) is None
    assert parse_goal(2.0, None, None) == Goal(speedup=2.0)
    assert parse_goal(None, 3.5, None) == Goal(latency_ms=3.5)
    for given in ((2.0, 3.0, None), (2.0, None, 0.5), (None, 3.0, 0.5)):
        with pytest.raises(UsageError, match="more than one goal"):
            parse_goal(*given)
    for speedup in (0.5, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="speed-up out of range"):
            parse_goal(speedup, None, None)
    for latency in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="latency out of range"):
            parse_goal(None, latency, None)


def test_what_goals_mean() -> None:
    assert Goal(speedup=4.0).seconds(0.2) == pytest.approx(0.05)
    assert Goal(latency_ms=3.0).seconds(0.2) == pytest.approx(0.003)
    assert Goal(latency_ms=3.0).hard
    assert not Goal(speedup=4.0).hard
    assert Goal(speedup=4.0).flag == "--speedup 4"
    assert Goal(latency_ms=2.5).describe() == {"latency_ms": 2.5}


def test_options_take_a_goal_instead_of_a_sparsity() -> None:
    assert CompressOptions(prune="block-punched", speedup=2.0).active
    with pytest.raises(UsageError, match="more than one goal"):
        CompressOptions(prune="block-punched", sparsity=0.5, speedup=2.0)
    with pytest.raises(UsageError, match="needs a sparsity"):
        CompressOptions(prune="block-punched")
    with pytest.raises(UsageError, match="--speedup: this setting needs prune"):
        CompressOptions(speedup=2.0)


def test_recipe_goal_and_exceptions(tmp_path: Path) -> None:
    from effc.frontend import import_model

    file = tmp_path / "recipe.toml"
    file.write_text(
        'prune = "block-punched"\nspeedup = 2\n'
        '[[layer]]\nmatch = "down"\nsparsity = 0.5\n[[layer]]\nmatch = "fc"\ndense = true\n'
    )
    recipe = read_recipe(CompressOptions(recipe=file))
    assert recipe.goal == Goal(speedup=2.0)
    model = simplify(import_model(small_net()))[0]
    plans = {p.layer.name: p for p in plan_layers(recipe, find_layers(model)[0])}
    down, point = plans["down"].setting, plans["point"].setting
    assert down is not None
    assert point is not None
    assert down.sparsity == 0.5
    assert point.sparsity is None
    assert plans["fc"].setting is None
    over = read_recipe(CompressOptions(recipe=file, sparsity=0.6))
    assert over.goal is None
    assert over.settings["sparsity"] == 0.6
    file.write_text('prune = "block-punched"\nspeedup = 2\nlatency_ms = 3\n')
    with pytest.raises(UsageError, match="more than one goal"):
        read_recipe(CompressOptions(recipe=file))
    file.write_text('prune = "block-punched"\nspeedup = "fast"\n')
    with pytest.raises(UsageError, match="wrong type"):
        read_recipe(CompressOptions(recipe=file))
