"""Latency of whole compiled models on this machine, measured side by side and remembered.

Models take turns, so that a disturbance or a change of the clock hits all, and the time of a model
is its fastest run, as that of a layer is (docs/TUNING.md): other programs only add time. The
database keeps the result under a hash of all layers and their kernels, so that
compiling again reads the same latency instead of measuring another one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from effc.execute import open_library
from effc.manifest import build_manifest, library_path
from effc.tuning.context import Context
from effc.tuning.database import Database

if TYPE_CHECKING:
    from effc.compiled import CompiledModel

__all__ = ["network_key", "network_seconds"]

_KIND = "network"
_TURNS = 20
_TURN_S = 0.04
_RUNS = (2, 200)
"""Least and most runs of one turn."""


def network_key(compiled: CompiledModel) -> str:
    """Hash of what the latency of a model depends on: its layers in order, with their kernels."""
    layers = [(layer.key, layer.kernel, layer.config) for layer in compiled.layers]
    text = json.dumps([layers, compiled.options.threads], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def network_seconds(
    models: Sequence[CompiledModel], store: Database, context: Context
) -> list[float]:
    """Time of one inference of each model, all measured in one run.

    Args:
        models: Compiled for this machine.
        store: Where latencies are looked up and kept.
        context: What they depend on.

    Returns:
        Seconds per model, in order. Times that were measured together are looked up together:
        ratios of them are those of one run.
    """
    key = " ".join(network_key(model) for model in models)
    known = store.notes(context.digest, _KIND)
    if key not in known:
        store.describe(context.digest, context.details)
        store.note(context.digest, _KIND, key, {"seconds": _measure(models)})
        known = store.notes(context.digest, _KIND)
    return [float(seconds) for seconds in known[key]["seconds"]]


def _measure(models: Sequence[CompiledModel]) -> list[float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="effc-levels-")))
        runners, counts = [], []
        for number, model in enumerate(models):
            library = folder / str(number) / library_path(model)
            library.parent.mkdir(parents=True)
            manifest = build_manifest(model, model.link_library(library))
            runner = stack.enter_context(open_library(library, manifest, "local", None))
            once = runner.bench(3, 2).min_ms / 1e3
            runners.append(runner)
            counts.append(max(_RUNS[0], min(_RUNS[1], int(_TURN_S / once))))
        best = [float("inf")] * len(models)
        for turn in range(_TURNS):
            order = range(len(models)) if turn % 2 == 0 else reversed(range(len(models)))
            for number in order:
                stats = runners[number].bench(counts[number], 1)
                best[number] = min(best[number], stats.min_ms / 1e3)
    return best
