"""Choose a template and a configuration for every distinct layer.

Modes: ``none`` takes the cheapest prediction, or the recorded winner if a
database is named explicitly; ``quick`` measures the most promising candidates
within a time limit; ``full`` measures all; a number measures that many.

Measurements go through the database: what is there is not measured again, and
the winner is taken from there only, so the same database gives the same choice.
Layers that a mode has finished with are marked; a later run in the same or
a lesser mode replays them. An interrupted run keeps what it has measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels import registry
from effc.kernels.region import Region
from effc.kernels.template import Choice, Config
from effc.tuning.context import Context
from effc.tuning.database import Database, Measurement, candidate_name, default_path
from effc.tuning.search import Effort, Layer, Progress, Search, name_of
from effc.tuning.testbed import AnyTestbed, testbed_of

__all__ = ["Hints", "context_of", "tune"]

Known = Mapping[str, dict[str, Measurement]]
"""Measurements by ``Region.key`` and name of the candidate."""

Hints = Mapping[str, tuple[str, Config]]
"""Template and configuration that are likely to be good, by the name of a region's anchor node."""


def tune(
    regions: Sequence[Region],
    target: Target,
    mode: str | int,
    database: Path | None,
    threads: int,
    progress: Progress | None = None,
    hints: Hints | None = None,
    testbed: AnyTestbed | None = None,
) -> tuple[dict[str, list[Choice]], dict[str, object]]:
    """Choose how each distinct layer is computed.

    Args:
        regions: Layers of the model.
        target: What to compile for.
        mode: ``none``, ``quick``, ``full`` or a number of measurements.
        database: Tuning database; ``None`` means the user's default one.
        threads: Threads to optimise for.
        progress: Called with candidates done, candidates in total, and a text.
        testbed: What measures; this machine if ``None``.
        hints: What to try before anything else, and to take where nothing was measured.

    Returns:
        All choices per ``Region.key``, the chosen one first, and what was done (for the
        manifest; holds nothing that differs between a run and its replay).

    Raises:
        UnsupportedError: No template computes one of the layers.
        UsageError: The database cannot be read or written.
    """
    layers = _layers(regions, target, hints or {})
    info: dict[str, object] = {"mode": str(mode), "layers": len(layers)}
    if mode != "none" or database is not None:
        store = Database(database or default_path())
        context = context_of(regions, target, threads, testbed)
        if (reason := context.testbed.refusal(target)) is None:
            _recall(layers, store.measurements(context.digest))
        else:
            info.update(_recall_another(layers, store, context))
        if mode != "none" and reason is not None:
            info["not_measured"] = reason
        elif mode != "none":
            _search(layers, target, Effort.of(mode), store, context, progress)
        info.update(_summary(layers))
    return {key: layer.ranked() for key, layer in layers.items()}, info


def context_of(
    regions: Sequence[Region],
    target: Target,
    threads: int,
    testbed: AnyTestbed | None = None,
) -> Context:
    """What measurements of a network's layers depend on."""
    testbed = testbed or testbed_of(target)
    return Context(target, threads, _cold(regions, testbed), testbed)


def _recall(layers: dict[str, Layer], known: Known) -> None:
    """Give layers what was measured."""
    for key, measurements in known.items():
        if key in layers:
            layers[key].known = measurements


def _recall_another(layers: dict[str, Layer], store: Database, context: Context) -> dict[str, str]:
    """Take times of a device for a target that this machine cannot measure.

    Of devices that were measured for the same target, threads and toolchain, the one that
    knows most of the layers counts, the latest of several.
    """
    best, most, device = {}, 0, ""
    for digest, details in store.contexts().items():
        if not context.resembles(details):
            continue
        known = store.measurements(digest)
        count = sum(any(m.seconds for m in known.get(key, {}).values()) for key in layers)
        if count and count >= most:
            best, most, device = known, count, str(details["device"])
    _recall(layers, best)
    return {"measured_on": device} if device else {}


def _layers(regions: Sequence[Region], target: Target, hints: Hints) -> dict[str, Layer]:
    """Distinct layers by key."""
    layers: dict[str, Layer] = {}
    for region in regions:
        if region.key not in layers:
            options = registry.choices(region, target)
            if not options:
                raise UnsupportedError("no kernel computes this layer", where=region.name)
            layers[region.key] = Layer(region, _hinted_first(options, region, hints))
        layers[region.key].count += 1
    return layers


def _hinted_first(options: list[Choice], region: Region, hints: Hints) -> list[Choice]:
    """Candidates by predicted cost, but a hinted one first."""
    hint = hints.get(region.ops[0].name)
    if hint is None:
        return options
    name = candidate_name(*hint)
    return sorted(options, key=lambda choice: name_of(choice) != name)  # stable


def _cold(regions: Sequence[Region], testbed: AnyTestbed) -> bool:
    """Whether one inference reads more weights than the last cache keeps for the next one."""
    total = sum(value.type.nbytes for region in regions for value in region.constants)
    return 2 * total > testbed.last_cache_bytes


def _search(
    layers: dict[str, Layer],
    target: Target,
    effort: Effort,
    store: Database,
    context: Context,
    progress: Progress | None,
) -> None:
    """Measure layers that no earlier run has finished with."""
    finished = store.finished(context.digest)
    wanted = [
        layer
        for key, layer in layers.items()
        if len(layer.options) > 1 and not (key in finished and effort.covered_by(finished[key]))
    ]
    if wanted:
        store.describe(context.digest, context.details)
        Search(wanted, target, effort, store, context, progress).run()
        store.finish(context.digest, {layer.key: effort.name for layer in wanted})


def _summary(layers: dict[str, Layer]) -> dict[str, object]:
    known = [m for layer in layers.values() for m in layer.known.values()]
    return {
        "measured_layers": sum(layer.seconds is not None for layer in layers.values()),
        "measured_candidates": sum(m.seconds is not None for m in known),
        "failed_candidates": sum(m.seconds is None for m in known),
    }
