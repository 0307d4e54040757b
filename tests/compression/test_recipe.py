"""Recipes: who wins, which layers are reached, and messages for mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_net import small_net

from effc.compression.options import CompressOptions
from effc.compression.recipe import LayerPlan, plan_layers, read_recipe
from effc.errors import UsageError
from effc.frontend import import_model
from effc.passes.pruning.layers import find_layers


def plans(tmp_path: Path, text: str, **options: object) -> dict[str, LayerPlan]:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    recipe = read_recipe(CompressOptions(recipe=path, **options))  # type: ignore[arg-type]
    layers = find_layers(import_model(small_net()))[0]
    return {plan.layer.name: plan for plan in plan_layers(recipe, layers)}


def test_settings_and_overrides(tmp_path: Path) -> None:
    found = plans(
        tmp_path,
        """
        prune = "block-punched"
        sparsity = 0.5
        [[layer]]
        match = "d*"
        sparsity = 0.75
        block = "4x4"
        [[layer]]
        match = "grouped"
        prune = "2:4"
        method = "magnitude"
        [[layer]]
        match = "fc"
        dense = true
        [[layer]]
        match = "out"
        """
        + "sparsity = 0.25",
        calibration={"x": None},
    )
    said = {name: (str(p.setting and p.setting.scheme), p.why) for name, p in found.items()}
    assert said == {
        "first": ("None", "it reads the model's input"),
        "deep": ("None", "it is depthwise"),
        "point": ("block-punched 8x4", ""),
        "down": ("block-punched 4x4", ""),
        "grouped": ("2:4 1x1", ""),
        "mm": ("block-punched 8x4", ""),
        "fc": ("None", "the recipe says so"),
        "out": ("block-punched 8x4", ""),
    }
    levels = {name: p.setting.sparsity for name, p in found.items() if p.setting is not None}
    assert levels == {"point": 0.5, "down": 0.75, "grouped": 0.5, "mm": 0.5, "out": 0.25}
    methods = {name: p.method for name, p in found.items() if p.setting is not None}
    assert methods["grouped"] == "magnitude"
    assert methods["down"] == "obs"


def test_a_glob_reaches_dense_layers_only_if_it_says_so(tmp_path: Path) -> None:
    head = 'prune = "unstructured"\nsparsity = 0.5\n[[layer]]\nmatch = "*"\n'
    assert plans(tmp_path, head + "sparsity = 0.3")["deep"].setting is None
    assert plans(tmp_path, head + "dense = false")["deep"].setting is not None


def test_flags_win(tmp_path: Path) -> None:
    text = 'prune = "block-punched"\nsparsity = 0.5\nsamples = 7\ncorrect = "none"'
    found = plans(tmp_path, text, sparsity=0.75, block="4x1", method="magnitude")
    setting = found["down"].setting
    assert setting is not None
    assert (setting.sparsity, setting.scheme.block) == (0.75, (4, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty = 0.5", "did you mean sparsity"),
        ("sparsity = true", "wrong type"),
        ('sparsity = "half"', "expected int or float"),
        ("sparsity = ", "not a TOML file"),
        ('method = "ob"', "obs or magnitude"),
        ("samples = 0", "positive"),
        ('layer = "x"', "list of tables"),
        ("[[layer]]\nsparsity = 0.5", "names no layer"),
        ('[[layer]]\nmatch = "fc"', "sets nothing"),
        ('[[layer]]\nmatch = "fc"\ndense = true\nsparsity = 0.5', "no settings of pruning"),
        ('[[layer]]\nmatch = "fcc"\ndense = true', "expected fc"),
        ('[[layer]]\nmatch = "fc"\nprune = "blocks"\n', "unknown pruning scheme"),
        ('[[layer]]\nmatch = "fc"\nprune = "unstructured"\n', "needs a sparsity"),
        ('prune = "block-punched"\nsparsity = 1.5', "out of range"),
        ("sparsity = 0.5", "recipe.toml: sparsity: this setting needs prune"),
        ('quantize = "int8-weights"\ncorrect = "none"', "needs prune or regroup"),
        ('prune = "2:4"\nrounding = "obq"', "needs quantize"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plans(tmp_path, text)


def test_no_such_file() -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_recipe(CompressOptions(recipe=Path("missing.toml")))
