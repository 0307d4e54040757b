"""Recipes: compression settings in a TOML file, with exceptions per layer.

    prune = "block-punched"
    sparsity = 0.5

    [[layer]]
    match = "/layer3/*"
    sparsity = 0.75

    [[layer]]
    match = "/fc/Gemm"
    dense = true

Settings at the top are those of the command line, which wins over them. ``[[layer]]`` entries
apply in order to all layers whose node name equals or matches (``*``, ``?``, ``[...]``) ``match``;
later ones win. An entry with a layer's exact name, or with ``dense = false``, also reaches layers
that are dense by default. Unknown keys, wrong types and entries that match nothing are errors.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from effc.compression.goal import Goal, parse_goal
from effc.compression.options import (
    CORRECTIONS,
    METHODS,
    MODES,
    RANGES,
    ROUNDINGS,
    WIDE,
    CompressOptions,
    check_drop,
    check_group,
    check_used,
)
from effc.errors import UsageError
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.prune_weights import Setting
from effc.passes.pruning.scheme import check_sparsity, parse_scheme

__all__ = ["LayerPlan", "Recipe", "layer_precisions", "plan_layers", "read_recipe"]

_NUMBER = (int, float)
_SHARED: dict[str, type | tuple[type, ...]] = {
    "prune": str,
    "sparsity": _NUMBER,
    "block": str,
    "method": str,
}
_TOP = {
    **_SHARED,
    "speedup": _NUMBER,
    "latency_ms": _NUMBER,
    "samples": int,
    "correct": str,
    "regroup": str,
    "quantize": str,
    "ranges": str,
    "rounding": str,
    "equalize": bool,
    "refine": bool,
    "max_drop": _NUMBER,
    "widen": str,
    "group": int,
}
_QUANTIZED: dict[str, type | tuple[type, ...]] = {"precision": str, "activation_bits": int}
_LAYER = {**_SHARED, **_QUANTIZED, "match": str, "dense": bool}

PRECISIONS = ("int8", "float", "f16", "f32")
"""What a layer is computed in; ``float`` leaves it to ``--precision``."""

ACTIVATION_BITS = (8, 16)
_CHOICES: dict[str, tuple[Any, ...]] = {
    "method": METHODS,
    "correct": CORRECTIONS,
    "quantize": MODES,
    "ranges": RANGES,
    "rounding": ROUNDINGS,
    "widen": WIDE,
    "precision": PRECISIONS,
    "activation_bits": ACTIVATION_BITS,
}

_HOW_MUCH = ("speedup", "latency_ms", "sparsity")
"""Three ways to say how much is pruned; the command line's replaces the recipe's."""

_DEFAULT_SAMPLES = 1024

_WHY_DENSE = {
    "first": "it reads the model's input",
    "output": "it computes the model's output",
    "depthwise": "it is depthwise",
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a compression, all decided.

    Attributes:
        settings: ``prune``, ``sparsity``, ``block``, ``method`` as far as given.
        overrides: ``[[layer]]`` entries in order.
        samples: Calibration samples to use at most.
        correct: What is matched with the dense model.
        regroup: Block shape for masks made elsewhere, or None.
        goal: How fast the network shall be; layers without a sparsity then get one from it.
        quantize: ``int8``, ``int8-weights``, ``int4-weights`` or None.
        ranges, rounding, equalize, refine: How.
        max_drop: Most that quantization may lose, in per cent, or None.
        widen: What operators have that would lose more.
        group: Size of groups of integer weights alone; None for the mode's own.
        where: For messages.
    """

    settings: Mapping[str, Any]
    overrides: Sequence[Mapping[str, Any]] = ()
    samples: int = _DEFAULT_SAMPLES
    correct: str = "none"
    regroup: str | None = None
    goal: Goal | None = None
    quantize: str | None = None
    ranges: str = "mse"
    rounding: str = "obq"
    equalize: bool = True
    refine: bool = True
    max_drop: float | None = None
    widen: str = "float"
    group: int | None = None
    where: str = "recipe"

    @property
    def prunes(self) -> bool:
        """Whether zeros were asked for anywhere."""
        return any("prune" in entry for entry in (self.settings, *self.overrides))

    def of_layer(self, name: str) -> dict[str, Any]:
        """What entries say about the precision of a layer."""
        found: dict[str, Any] = {}
        for entry in self.overrides:
            if _matches(entry, name):
                found |= {key: entry[key] for key in _QUANTIZED if key in entry}
        return found


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gets.

    Attributes:
        layer: The layer.
        setting: Scheme and sparsity; None if it stays dense. Without a sparsity, a goal decides.
        method: ``obs`` or ``magnitude``.
        why: Why it stays dense.
    """

    layer: Layer
    setting: Setting | None
    method: str = ""
    why: str = ""


@dataclass
class _Merged:
    """Settings of one layer while entries are applied."""

    values: dict[str, Any]
    dense: bool
    why: str
    used: list[int] = field(default_factory=list)


def read_recipe(options: CompressOptions) -> Recipe:
    """The recipe of ``options.recipe``, if any, with the options applied over it.

    Raises:
        UsageError: The file is missing or no TOML; unknown or unfit keys or values.
    """
    path = options.recipe
    document = {} if path is None else _load(path)
    where = "recipe" if path is None else str(path)
    layers = document.pop("layer", [])
    _check_keys(document, _TOP, where)
    if not isinstance(layers, list) or not all(isinstance(entry, dict) for entry in layers):
        raise UsageError("layer must be a list of tables", where=where, expected="[[layer]]")
    for number, entry in enumerate(layers):
        _check_entry(entry, f"{where}: [[layer]] {number + 1}")
    given = {key: getattr(options, key) for key in _TOP if getattr(options, key) is not None}
    if any(key in given for key in _HOW_MUCH):
        document = {key: value for key, value in document.items() if key not in _HOW_MUCH}
    merged = {**document, **given}
    data = options.calibration is not None
    _check_choices(merged, where)
    prunes = any("prune" in entry for entry in layers)
    check_used(
        {"prune": prunes or None, **merged},
        lambda key: f"--{key.replace('_', '-')}" if key in given else f"{where}: {key}",
    )
    if not data and merged.get("quantize") == "int8":
        raise UsageError(
            "calibration data is needed",
            where=f"{where}: quantize",
            expected="--calibration X.npz with samples of real inputs",
        )
    return Recipe(
        {key: merged[key] for key in _SHARED if key in merged}
        | {"method": merged.get("method", "obs" if data else "magnitude")},
        layers,
        merged.get("samples", _DEFAULT_SAMPLES),
        merged.get("correct", "refit" if data else "none"),
        merged.get("regroup"),
        parse_goal(*(_float(merged.get(key)) for key in _HOW_MUCH)),
        merged.get("quantize"),
        merged.get("ranges", "mse"),
        merged.get("rounding", "obq"),
        merged.get("equalize", True),
        merged.get("refine", True),
        _float(merged.get("max_drop")),
        merged.get("widen", "float"),
        merged.get("group"),
        where,
    )


def layer_precisions(options: CompressOptions) -> tuple[tuple[str, str], ...]:
    """(name or pattern, ``f16`` or ``f32``) of the entries that choose between these, in order.

    Raises:
        UsageError: As :func:`read_recipe`.
    """
    entries = read_recipe(options).overrides
    return tuple(
        (entry["match"], entry["precision"])
        for entry in entries
        if entry.get("precision") in ("f16", "f32")
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError("no such file", where=str(path), expected="a recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("not a TOML file", where=str(path), got=str(error)) from error


def _check_keys(
    table: Mapping[str, Any], known: Mapping[str, type | tuple[type, ...]], where: str
) -> None:
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise UsageError(
                f"unknown setting '{key}'",
                where=where,
                expected=", ".join(known),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        kind = known[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = kind if isinstance(kind, tuple) else (kind,)
            raise UsageError(
                f"'{key}' has the wrong type",
                where=where,
                expected=" or ".join(k.__name__ for k in names),
                got=repr(value),
            )


def _check_entry(entry: Mapping[str, Any], where: str) -> None:
    _check_keys(entry, _LAYER, where)
    if "match" not in entry:
        raise UsageError("the entry names no layer", where=where, expected='match = "NAME or glob"')
    if len(entry) == 1:
        raise UsageError("the entry sets nothing", where=where, expected=", ".join(_LAYER))
    if entry.get("dense") and _SHARED.keys() & entry.keys():
        raise UsageError("a dense layer has no settings of pruning", where=where)
    _check_choices(entry, where)


def _check_choices(table: Mapping[str, Any], where: str) -> None:
    for key, known in _CHOICES.items():
        if key in table and table[key] not in known:
            expected = " or ".join(map(str, known))
            raise UsageError(f"unknown {key}", where=where, expected=expected, got=table[key])
    check_drop(table.get("max_drop"), where)
    check_group(table.get("group"), where)
    if table.get("samples", 1) < 1:
        raise UsageError(
            "number of samples out of range",
            where=where,
            expected="a positive number",
            got=table["samples"],
        )


def plan_layers(recipe: Recipe, layers: Sequence[Layer]) -> list[LayerPlan]:
    """What every layer gets, in order.

    Raises:
        UsageError: An entry matches no layer; a scheme or sparsity is missing or impossible.
    """
    matched: set[int] = set()
    plans = []
    for layer in layers:
        merged = _merge(recipe, layer)
        matched.update(merged.used)
        plans.append(_plan(layer, merged, recipe.goal))
    for number, entry in enumerate(recipe.overrides):
        if number not in matched:
            names = [layer.name for layer in layers]
            near = difflib.get_close_matches(entry["match"], names, 3)
            raise UsageError(
                "no layer with weights matches",
                where=f"{recipe.where}: [[layer]] {number + 1}",
                expected=", ".join(near or names[:5]) + (" ..." if len(names) > 5 else ""),
                got=repr(entry["match"]),
                hint="effc compress --json lists the layers by name",
            )
    return plans


def _merge(recipe: Recipe, layer: Layer) -> _Merged:
    merged = _Merged(dict(recipe.settings), layer.role != "inner", _WHY_DENSE.get(layer.role, ""))
    for number, entry in enumerate(recipe.overrides):
        pattern = entry["match"]
        if not _matches(entry, layer.name):
            continue
        merged.used.append(number)
        merged.values |= {k: v for k, v in entry.items() if k in _SHARED}
        if "prune" in entry:  # what was said for another scheme does not hold for this one
            if "block" not in entry:
                merged.values.pop("block", None)
            if "sparsity" not in entry and _has_own_sparsity(entry):
                merged.values.pop("sparsity", None)
        if entry.get("dense"):
            merged.dense, merged.why = True, "the recipe says so"
        elif (layer.name == pattern and _SHARED.keys() & entry.keys()) or "dense" in entry:
            merged.dense = False
    return merged


def _matches(entry: Mapping[str, Any], name: str) -> bool:
    return bool(name == entry["match"]) or fnmatchcase(name, entry["match"])


def _has_own_sparsity(entry: Mapping[str, Any]) -> bool:
    return parse_scheme(entry["prune"], entry.get("block")).own_sparsity is not None


def _plan(layer: Layer, merged: _Merged, goal: Goal | None) -> LayerPlan:
    values = merged.values
    if merged.dense:
        return LayerPlan(layer, None, why=merged.why)
    if "prune" not in values:
        return LayerPlan(layer, None, why="no scheme was asked for")
    scheme = parse_scheme(values["prune"], values.get("block"))
    sparsity = values.get("sparsity")
    if sparsity is None and goal is not None:
        return LayerPlan(layer, Setting(scheme), values["method"])
    sparsity = check_sparsity(scheme, None if sparsity is None else float(sparsity))
    if sparsity == 0:
        return LayerPlan(layer, None, why="its sparsity is 0")
    return LayerPlan(layer, Setting(scheme, sparsity), values["method"])
