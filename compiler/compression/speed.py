"""The step of a compression that turns ``--speedup`` or ``--latency-ms`` into a plan of levels.

Between planning and pruning: layers without a sparsity of their own get one from
``effc.compression.levels``. Errors of layers are those of the method that will prune them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.compression.goal import Goal
from effc.compression.level_library import LevelLibrary
from effc.compression.level_table import levels_of
from effc.compression.levels import LevelPlan, choose_levels
from effc.compression.recipe import LayerPlan
from effc.compression.store import TraceStore
from effc.compression.surgery import trace_layers, unfit_for_surgeon
from effc.options import CompileOptions, ProgressCallback
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.prune_weights import Setting, misfit

__all__ = ["plan_levels"]

Array = np.ndarray[Any, Any]


def plan_levels(
    model: ir.Model,
    plans: Sequence[LayerPlan],
    goal: Goal,
    options: CompileOptions,
    samples: Sequence[Mapping[str, Array]],
    store: TraceStore | None,
    correct: str,
    progress: ProgressCallback | None,
) -> tuple[list[LayerPlan], LevelPlan]:
    """Fill in the sparsities that a goal needs.

    Args:
        model: The prepared dense model.
        plans: What layers get; those with a scheme and no sparsity are free.
        goal: Speed-up or latency.
        options: What the network will be compiled with.
        samples: Calibration samples, possibly none.
        store: Where removal traces are kept; needed with samples.
        correct: What makes up for the zeros afterwards, see ``CompressOptions``.
        progress: Called as the phases advance.

    Returns:
        The plans with a sparsity everywhere, and how they were found.
    """
    plans = [_fitting(plan) for plan in plans]
    settings = {plan.layer.name: plan.setting for plan in plans if plan.setting is not None}
    surgeon = [plan for plan in plans if plan.setting is not None and plan.method == "obs"]
    wanted = [(plan.layer, _levels(plan)) for plan in surgeon]

    def compute(library: LevelLibrary) -> None:
        if wanted and samples and store is not None:
            runner = SampleRunner(model, samples)
            traces = trace_layers(runner, [(y, s[0]) for y, s in wanted], store, progress)
            library.add_surgeon(runner, wanted, traces, progress)

    with LevelLibrary(correct, compute) as library:
        chosen = choose_levels(
            model, settings, goal, options, library=library, samples=samples, progress=progress
        )
    return [_with_level(plan, chosen.settings) for plan in plans], chosen


def _levels(plan: LayerPlan) -> list[Setting]:
    """The settings that a layer may get.

    Raises:
        UsageError: Its scheme makes no zeros.
    """
    assert plan.setting is not None
    levels = levels_of(plan.setting.scheme)[1:]
    if plan.setting.sparsity is not None:
        return [plan.setting]
    return [Setting(plan.setting.scheme, sparsity) for sparsity in levels]


def _fitting(plan: LayerPlan) -> LayerPlan:
    """The plan, or a dense layer if it cannot be pruned as asked for."""
    if plan.setting is None:
        return plan
    why = misfit(plan.layer, _levels(plan)[0]) or _unfit(plan.layer, plan.method)
    return plan if why is None else replace(plan, setting=None, why=why)


def _unfit(layer: Layer, method: str) -> str | None:
    return unfit_for_surgeon(layer) if method == "obs" else None


def _with_level(plan: LayerPlan, settings: Mapping[str, Setting]) -> LayerPlan:
    setting = settings.get(plan.layer.name)
    if setting is None:
        return plan
    if setting.sparsity == 0:
        return replace(plan, setting=None, why="the goal is reached with this layer dense")
    return replace(plan, setting=setting)
