"""Which sparsity each layer gets, from measured times: ``--speedup X`` and ``--latency-ms L``.

1. The dense network is tuned, compiled and measured.
2. Every layer's time is measured at every level of a grid (``effc.tuning.level_times``), with zeros
   chosen by magnitude: a time depends on where zeros are, not on what the other weights become.
3. Every layer's error at every level comes from the pruning method; with calibration samples, the
   weight of each layer's error is found by scoring whole networks (``sensitivity``).
4. Dynamic programming chooses the levels of least error that fit the budget (``allocation``). What
   the dense network takes beyond its prunable layers is part of every network's time.
5. The network with these levels is compiled with the kernels found in step 2 and measured beside
   the dense one. If it misses the goal by more than 3 %, the budget is moved by the miss and step 4
   is repeated, twice at most.

Levels: each removes a fifth of what the one before it left (SPDY, Frantar and Alistarh, ICML 2022,
removes a tenth, with 40 levels), up to 95 %. All times are kept in the tuning database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from effc.compression.allocation import Allocation, Point
from effc.compression.goal import TOLERANCE, Goal
from effc.compression.level_library import LevelLibrary
from effc.compression.level_table import LevelTable, milliseconds, rounded
from effc.compression.sensitivity import Coefficients, search_coefficients
from effc.compression.stitching import Stitcher
from effc.devices.catalog import get_target
from effc.errors import QualityError, UsageError
from effc.imported import import_and_simplify
from effc.network_time import network_seconds
from effc.options import CompileOptions, ProgressCallback
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.correct_statistics import enough_samples
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.prune_weights import PruneWeights, Setting
from effc.pipeline import compile_model
from effc.selection import regions_of
from effc.tuning.database import Database, default_path
from effc.tuning.level_times import level_times
from effc.tuning.testbed import testbed_of
from effc.tuning.tuner import Hints, context_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from effc.compiled import CompiledModel
    from effc.tuning.context import Context

__all__ = ["LevelPlan", "check_goal", "choose_levels"]

Array = np.ndarray[Any, Any]

_ROUNDS = 3

_SEARCH_MACS = 2e13
"""Multiply-accumulates that scoring networks may take; a few minutes on one core."""


@dataclass(frozen=True)
class LevelPlan:
    """The chosen levels.

    Attributes:
        settings: Scheme and sparsity per layer name; layers that stay dense have sparsity 0.
        hints: Kernel of each layer, by node name, for the compilation of the pruned model.
        record: Everything about the choice as plain data, for the manifest and the report.
        goal: What was asked for.
        dense: The dense network, compiled.
        options: What the pruned one is to be compiled with, so that their times compare.
        store, context: Where latencies are kept, and what they depend on.
    """

    settings: dict[str, Setting]
    hints: Hints
    record: dict[str, Any]
    goal: Goal
    dense: CompiledModel
    options: CompileOptions
    store: Database
    context: Context

    def notes(self) -> list[str]:
        """What the user should know."""
        last = self.record["rounds"][-1]
        dense, found = self.record["dense_ms"], self.record["probe_ms"]
        notes = [f"{found:.4g} ms measured, {dense / found:.3g} times faster than dense"]
        if found > last["goal_ms"] * (1 + TOLERANCE):
            notes.append(f"the goal of {last['goal_ms']:.4g} ms was missed")
        if "note" in self.record["errors"]:
            notes.append(self.record["errors"]["note"])
        return notes


def choose_levels(
    model: ir.Model,
    settings: Mapping[str, Setting],
    goal: Goal,
    options: CompileOptions,
    *,
    library: LevelLibrary,
    samples: Sequence[Mapping[str, Array]] = (),
    progress: ProgressCallback | None = None,
) -> LevelPlan:
    """Choose a sparsity for every layer so that the network reaches a goal.

    Args:
        model: Imported, prepared for pruning, dense.
        settings: By name of each layer that may be pruned; those without a sparsity are free.
        goal: Speed-up or latency.
        options: Target, threads, tuning mode and database.
        library: Weights and errors of layers at levels.
        samples: Calibration inputs; without them the errors of layers are added up as they are.
        progress: Called as the phases advance.

    Returns:
        The levels and how they were found.

    Raises:
        QualityError: The goal is faster than everything pruned to the last level, or a latency
            was missed after all corrections.
        UsageError: The target cannot be measured here, or the scheme has no levels.
        UnsupportedError: A layer is computed together with another one.
    """
    tuned = replace(options, tune="quick" if options.tune == "none" else options.tune)
    # the model has its shapes and constants inside
    options = replace(tuned, name=None, shapes={}, constants={})
    base = _measure(model, settings, goal, options, progress)
    table = base.table
    first = goal.seconds(base.seconds)
    fastest = float(table.times.min(axis=1).sum()) + table.rest
    probe = replace(options, tune="none", tuning_db=base.store.path)
    if first < fastest:  # by sums of times: only a measurement can refuse
        levels = table.times.argmin(axis=1).tolist()
        dense, fastest = _measure_network(base, model, probe, levels)
        if goal.seconds(dense) * (1 + TOLERANCE) < fastest:
            raise _out_of_reach(goal, goal.seconds(dense), fastest, dense, table)

    library.fill()
    table.set_errors(library)
    found = _search(base, model, library, samples, first, progress) if samples else None
    errors = table.errors if found is None else found.errors
    search = _Rounds(base, errors, goal, model, probe)
    point, rounds = search.run(first, progress)
    taken = search.seconds[point.levels]
    if goal.hard and taken > goal.seconds(base.seconds) * (1 + TOLERANCE):
        raise _missed(goal, goal.seconds(base.seconds), taken)
    record = {
        "goal": goal.describe(),
        "dense_ms": milliseconds(base.seconds),
        "rest_ms": milliseconds(table.rest),
        "fastest_ms": milliseconds(fastest),
        "probe_ms": milliseconds(taken),
        "rounds": rounds,
        "errors": _error_record(found),
        **table.describe(search.allocation, point),
    }
    chosen, hints = table.settings(point.levels), table.hints(point.levels)
    return LevelPlan(chosen, hints, record, goal, base.dense, tuned, base.store, base.context)


@dataclass(frozen=True)
class _Measured:
    """The dense network, and the times of its layers at all levels.

    Attributes:
        table: Times, errors not yet.
        dense, seconds: The dense network and its latency.
        store, context: Where latencies are kept, and what they depend on.
    """

    table: LevelTable
    dense: CompiledModel
    seconds: float
    store: Database
    context: Context


def _measure(
    model: ir.Model,
    settings: Mapping[str, Setting],
    goal: Goal,
    options: CompileOptions,
    progress: ProgressCallback | None,
) -> _Measured:
    """Steps 1 and 2: all times."""
    import onnx_ir as ir

    target = get_target(options.target)
    why = testbed_of(target).refusal(target)
    if why is not None:
        raise UsageError(
            "levels from measured time need a target that this machine can run",
            where=f"{goal.flag} for --target {target.name}",
            got=why,
            hint="give --sparsity S, or choose the levels on a machine like the target",
        )
    if not settings:
        raise UsageError("no layer may be pruned", where=goal.flag)
    layers = [layer for layer in find_layers(model)[0] if layer.name in settings]
    proto = ir.to_proto(model)
    dense = compile_model(proto, options, progress)
    simplified = import_and_simplify(proto, options).model
    regions = regions_of(simplified, target)
    compiled = {layer.name: layer for layer in find_layers(simplified)[0]}
    store = Database(options.tuning_db or default_path())
    context = context_of(regions, target, options.threads)
    table = LevelTable(layers, settings, regions, compiled)

    def report(done: int, total: int, text: str) -> None:
        if progress is not None:
            progress("levels", min(done, total - 1), total, text)

    times = level_times(table.families, target, store, context, options.tune, report)
    if progress is not None:
        progress("levels", 1, 1)
    (seconds,) = network_seconds([dense], store, context)
    table.set_times(times, seconds)
    return _Measured(table, dense, seconds, store, context)


def check_goal(plan: LevelPlan, compiled: CompiledModel) -> dict[str, Any]:
    """Measure the compiled pruned model beside the dense one, and hold it against the goal.

    Returns:
        The plan's record with what was achieved.

    Raises:
        QualityError: A latency that was asked for is missed by more than the tolerance.
    """
    dense, pruned = network_seconds([plan.dense, compiled], plan.store, plan.context)
    wanted = plan.goal.seconds(dense)
    achieved = {
        "ms": milliseconds(pruned),
        "dense_ms": milliseconds(dense),
        "goal_ms": milliseconds(wanted),
        "speedup": round(dense / pruned, 3),
        "reached": pruned <= wanted * (1 + TOLERANCE),
    }
    if plan.goal.hard and not achieved["reached"]:
        raise _missed(plan.goal, wanted, pruned)
    return {**plan.record, "achieved": achieved}


class _Rounds:
    """Levels for a budget, measured as a network, and the budget corrected by the miss."""

    def __init__(
        self,
        base: _Measured,
        errors: Array,
        goal: Goal,
        model: ir.Model,
        options: CompileOptions,
    ) -> None:
        self.base, self.table, self.goal, self.model = base, base.table, goal, model
        self.allocation = Allocation(self.table.times, errors)
        self.options = options
        self.seconds: dict[tuple[int, ...], float] = {}

    def run(
        self, first: float, progress: ProgressCallback | None
    ) -> tuple[Point, list[dict[str, float]]]:
        """The levels to take, and what each round measured."""
        budget = first - self.table.rest
        tried: list[tuple[bool, float, Point]] = []
        records: list[dict[str, float]] = []
        for number in range(_ROUNDS):
            if progress is not None:
                progress("probe", number, _ROUNDS)
            point = self.allocation.best(budget) or self.allocation.best(self.allocation.fastest)
            assert point is not None
            if point.levels in self.seconds:
                break
            dense, seconds = _measure_network(self.base, self.model, self.options, point.levels)
            self.seconds[point.levels] = seconds
            wanted = self.goal.seconds(dense)
            miss = seconds / wanted - 1
            tried.append((miss > TOLERANCE, point.error if miss <= TOLERANCE else miss, point))
            records.append(
                {
                    "predicted_ms": milliseconds(point.seconds + self.table.rest),
                    "measured_ms": milliseconds(seconds),
                    "goal_ms": milliseconds(wanted),
                }
            )
            if abs(miss) <= TOLERANCE:
                break
            budget = max(point.seconds + wanted - seconds, self.allocation.fastest)
        if progress is not None:
            progress("probe", _ROUNDS, _ROUNDS)
        return min(tried, key=lambda item: item[:2])[2], records


def _measure_network(
    base: _Measured, model: ir.Model, options: CompileOptions, levels: Sequence[int]
) -> list[float]:
    """Seconds of the dense network and of one with these levels, in one run.

    Nothing is tuned: the network has the kernels whose times were added up.
    """
    import onnx_ir as ir

    pruned = PruneWeights(base.table.settings(levels)).run(model.clone()).model
    probe = compile_model(ir.to_proto(pruned), options, None, base.table.hints(levels))
    return network_seconds([base.dense, probe], base.store, base.context)


def _search(
    base: _Measured,
    model: ir.Model,
    library: LevelLibrary,
    samples: Sequence[Mapping[str, Array]],
    seconds: float,
    progress: ProgressCallback | None,
) -> Coefficients:
    """Errors of layers weighted so that their sum tells about the network.

    How much is tried depends on the size of the model only, so that equal runs give equal levels.
    """
    table = base.table
    macs = max(sum(layer.macs for layer in base.dense.layers), 1)
    most = max(min(384, len(samples) // 2), 1)
    count = min(int(np.clip(_SEARCH_MACS / (100 * macs), 32, 384)), most)
    evaluations = int(np.clip(_SEARCH_MACS / (macs * count), 24, 80))

    def solve(errors: Array) -> tuple[int, ...]:
        solved = Allocation(table.times, errors)
        point = solved.best(max(seconds - table.rest, solved.fastest))
        assert point is not None
        return point.levels

    def tick(done: int, total: int) -> None:
        if progress is not None:
            progress("sensitivity", done, total)

    def weight(index: int, level: int) -> Array:
        return library(table.layers[index], table.setting(index, level)).weight

    count = enough_samples(model, count)

    def score(part: Sequence[Mapping[str, Array]]) -> Callable[[Sequence[int]], float]:
        runner = SampleRunner(model, part)
        return Stitcher(model, runner, table.layers, weight, library.correct).score

    return search_coefficients(
        table.errors,
        np.isfinite(table.times),
        solve,
        score(samples[:count]),
        score(samples[-count:]),
        evaluations,
        tick,
    )


def _out_of_reach(
    goal: Goal, wanted: float, fastest: float, dense: float, table: LevelTable
) -> QualityError:
    limit = (
        f"layers that stay dense take {table.rest * 1e3:.4g} ms"
        if table.rest > 0.5 * fastest
        else "every layer is at its fastest level then"
    )
    return QualityError(
        "the goal is out of reach by pruning these layers",
        where=goal.flag,
        expected=f"at least {fastest * 1e3:.4g} ms ({dense / fastest:.3g} times faster than dense)",
        got=f"{wanted * 1e3:.4g} ms, dense is {dense * 1e3:.4g} ms",
        hint=f"{limit}; ask for less, prune more layers (recipe), or take another block shape",
    )


def _missed(goal: Goal, wanted: float, measured: float) -> QualityError:
    return QualityError(
        "the pruned model misses the latency",
        where=goal.flag,
        expected=f"at most {wanted * 1e3:.4g} ms",
        got=f"{measured * 1e3:.4g} ms measured",
        hint="measure on an idle machine, tune with --tune full, or allow more time",
    )


def _error_record(found: Coefficients | None) -> dict[str, Any]:
    if found is None:
        return {
            "method": "sum of the layers' own errors",
            "note": "no calibration data: which layers matter more to the network is not known",
        }
    return {
        "method": f"{found.prior} prior with searched coefficients",
        "divergence": rounded(found.score),
        "divergence_of_plain_errors": rounded(found.plain_score),
        "networks_scored": found.evaluations,
        "coefficients": [rounded(value) for value in found.values.tolist()],
    }
