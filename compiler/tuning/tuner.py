"""Choose a template and a configuration for every distinct layer.

Modes: ``none`` takes the cheapest prediction, or the recorded winner if a
database is named explicitly; ``quick`` measures the most promising candidates
within a time limit; ``full`` measures all; a number measures that many. Layers
are weighted by predicted time, so that effort goes where a network spends it.

Measurements go through the database: what is there is not measured again, and
the winner is taken from there only, so the same database gives the same choice.
Layers that a mode has finished with are marked; a later run in the same or
a lesser mode replays them. An interrupted run keeps what it has measured.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels import registry
from effc.kernels.region import Region
from effc.kernels.template import Choice
from effc.tuning.build import Candidate, Compiled, compile_candidates
from effc.tuning.context import Context, device_name
from effc.tuning.database import Database, Measurement, candidate_name, default_path
from effc.tuning.measure import Harness, Timing, refusal

__all__ = ["Effort", "tune"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Effort:
    """How thoroughly to search.

    Attributes:
        name: Recorded in the database.
        candidates: Most candidates measured in total.
        per_layer: Most candidates measured per layer.
        seconds: No new batch starts after this time.
        rounds: Most runs per candidate.
        layer_seconds: Time for the runs of one layer's candidates.
    """

    name: str
    candidates: int
    per_layer: int
    seconds: float
    rounds: int
    layer_seconds: float

    @staticmethod
    def of(mode: str | int) -> Effort:
        """The effort of a tuning mode (``quick``, ``full`` or a number of measurements)."""
        if mode == "quick":
            return Effort("quick", 180, 10, 60.0, 30, 0.3)
        if mode == "full":
            return Effort("full", 1_000_000, 1_000_000, float("inf"), 60, 3.0)
        return Effort(str(mode), int(mode), 1_000_000, float("inf"), 40, 1.0)


_BATCH = 24
"""Candidates per executable: their results are safe when it has run."""


@dataclass
class _Layer:
    """A distinct layer and what is known about its candidates."""

    region: Region
    options: list[Choice]
    count: int = 0
    known: dict[str, Measurement] = field(default_factory=dict)
    planned: int = 0

    @property
    def key(self) -> str:
        return self.region.key

    @property
    def weight(self) -> float:
        """Predicted cycles that the model spends in such layers."""
        return self.options[0].cost * self.count

    def untried(self) -> list[Choice]:
        """Candidates without a measurement, the most promising first."""
        return [c for c in _by_promise(self.options) if name_of(c) not in self.known]

    def winner(self) -> Choice:
        """The fastest measured candidate, else the cheapest predicted one."""
        timed = [(m.seconds, name) for name, m in self.known.items() if m.seconds is not None]
        names = {name_of(c): c for c in self.options}
        timed = sorted((s, name) for s, name in timed if name in names)
        if timed:
            return names[timed[0][1]]
        return next((c for c in self.options if name_of(c) not in self.known), self.options[0])


def name_of(choice: Choice) -> str:
    """Name of a candidate in the database."""
    return candidate_name(choice.template.name, choice.config)


def _by_promise(options: Sequence[Choice]) -> list[Choice]:
    """By predicted cost, but the best of each template first: predictions of different
    templates compare less well than those of one."""
    first: dict[str, Choice] = {}
    for choice in options:
        first.setdefault(choice.template.name, choice)
    leaders = [c for c in first.values() if c.cost <= 4 * options[0].cost]
    return leaders + [c for c in options if not any(c is leader for leader in leaders)]


def tune(
    regions: Sequence[Region],
    target: Target,
    mode: str | int,
    database: Path | None,
    threads: int,
    progress: Progress | None = None,
) -> tuple[dict[str, Choice], dict[str, object]]:
    """Choose how each distinct layer is computed.

    Args:
        regions: Layers of the model.
        target: What to compile for.
        mode: ``none``, ``quick``, ``full`` or a number of measurements.
        database: Tuning database; ``None`` means the user's default one.
        threads: Threads to optimise for.
        progress: Called with candidates done, candidates in total, and a text.

    Returns:
        One choice per ``Region.key``, and what was done (for the manifest; holds
        nothing that differs between a run and its replay).

    Raises:
        UnsupportedError: No template computes one of the layers.
        UsageError: The database cannot be read or written.
    """
    layers = _layers(regions, target)
    reason = refusal(target)
    info: dict[str, object] = {"mode": str(mode), "layers": len(layers)}
    if mode == "none" and database is None:
        return {key: layer.winner() for key, layer in layers.items()}, info
    store = Database(database or default_path())
    context = Context(target, threads, device_name())
    _recall(layers, store, context)
    if mode != "none" and reason is not None:
        info["not_measured"] = reason
    elif mode != "none":
        effort = Effort.of(mode)
        _Search(layers, target, effort, store, context, threads, progress).run()
    info["measured_layers"] = sum(
        any(m.seconds is not None for m in layer.known.values()) for layer in layers.values()
    )
    info["measurements"] = sum(len(layer.known) for layer in layers.values())
    return {key: layer.winner() for key, layer in layers.items()}, info


def _layers(regions: Sequence[Region], target: Target) -> dict[str, _Layer]:
    layers: dict[str, _Layer] = {}
    for region in regions:
        if region.key not in layers:
            options = registry.choices(region, target)
            if not options:
                raise UnsupportedError("no kernel computes this layer", where=region.name)
            layers[region.key] = _Layer(region, options)
        layers[region.key].count += 1
    return layers


def _recall(layers: dict[str, _Layer], store: Database, context: Context) -> None:
    for key, known in store.measurements(context.digest).items():
        if key in layers:
            layers[key].known = known


class _Search:
    """One tuning run."""

    def __init__(
        self,
        layers: dict[str, _Layer],
        target: Target,
        effort: Effort,
        store: Database,
        context: Context,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.layers = layers
        self.target = target
        self.effort = effort
        self.store = store
        self.context = context
        self.threads = threads
        self.progress = progress
        self.start = time.monotonic()
        self.done = 0
        self.total = 0

    def run(self) -> None:
        """Measure what the effort asks for and mark the layers as finished."""
        finished = self.store.finished(self.context.digest)
        ranks = {"quick": 1, "full": 2}
        wanted = ranks.get(self.effort.name, 0)
        open_layers = [
            layer
            for key, layer in self.layers.items()
            if len(layer.options) > 1
            and not (
                finished.get(key) == self.effort.name
                or ranks.get(finished.get(key, ""), 0) > wanted
            )
        ]
        plan = self._plan(open_layers)
        self.total = sum(len(choices) for _, choices in plan)
        if not self.total:
            return
        self.store.describe(self.context.digest, self.context.details)
        for batch in _batches(plan):
            if time.monotonic() - self.start > self.effort.seconds:
                break
            self._measure(batch)
        self.store.finish(
            self.context.digest, {layer.key: self.effort.name for layer in open_layers}
        )

    def _plan(self, layers: Sequence[_Layer]) -> list[tuple[_Layer, list[Choice]]]:
        """Candidates per layer: every layer gets two, the rest go where most time is spent."""
        left = self.effort.candidates
        queues = {layer.key: layer.untried()[: self.effort.per_layer] for layer in layers}
        by_weight = sorted(layers, key=lambda layer: (-layer.weight, layer.key))
        for share in (1, 2):
            for layer in by_weight:
                if left > 0 and layer.planned < min(share, len(queues[layer.key])):
                    layer.planned += 1
                    left -= 1
        while left > 0:
            hungry = [layer for layer in by_weight if layer.planned < len(queues[layer.key])]
            if not hungry:
                break
            # the gain from one more candidate falls quickly with those already tried
            best = max(hungry, key=lambda layer: layer.weight / (1 + layer.planned) ** 2)
            best.planned += 1
            left -= 1
        return [(layer, queues[layer.key][: layer.planned]) for layer in by_weight if layer.planned]

    def _measure(self, batch: Sequence[tuple[_Layer, list[Choice]]]) -> None:
        """Compile, link and run one batch, and store what comes out."""
        candidates = [Candidate(layer.region, c) for layer, choices in batch for c in choices]
        with tempfile.TemporaryDirectory(prefix="effc-tune-") as name:
            folder = Path(name)
            workers = min(len(os.sched_getaffinity(0)), len(candidates))
            compiled = compile_candidates(candidates, self.target, folder, workers)
            harness = Harness(self.target, folder, self.threads)
            harness.link([c for c in compiled if not c.error])
            position = 0
            for layer, choices in batch:
                mine = compiled[position : position + len(choices)]
                position += len(choices)
                timings = self._timings(harness, layer, mine)
                self._store(layer, choices, timings)
                self._report(layer, len(choices))

    def _timings(
        self, harness: Harness, layer: _Layer, compiled: Sequence[Compiled]
    ) -> list[Timing]:
        good = [c for c in compiled if not c.error]
        seconds, rounds = self.effort.layer_seconds, self.effort.rounds
        timed = iter(harness.run(layer.region, good, seconds, rounds) if good else ())
        return [Timing(None, error=c.error) if c.error else next(timed) for c in compiled]

    def _store(self, layer: _Layer, choices: Sequence[Choice], timings: Sequence[Timing]) -> None:
        new = [
            Measurement(
                context=self.context.digest,
                key=layer.key,
                template=choice.template.name,
                config=dict(choice.config),
                seconds=timing.seconds,
                quartile=timing.quartile,
                rounds=timing.rounds,
                error=timing.error[:400],
            )
            for choice, timing in zip(choices, timings, strict=True)
        ]
        self.store.add(new)
        layer.known = {**layer.known, **{m.name: m for m in new}}

    def _report(self, layer: _Layer, count: int) -> None:
        self.done += count
        if self.progress is None:
            return
        spent = time.monotonic() - self.start
        left = spent / self.done * (self.total - self.done)
        left = min(left, max(self.effort.seconds - spent, 0.0))
        op = layer.region.ops[0]
        shape = "x".join(map(str, layer.region.outputs[0].shape))
        self.progress(self.done, self.total, f"{op.op_type} {shape}, about {left:.0f} s left")


def _batches(
    plan: Sequence[tuple[_Layer, list[Choice]]],
) -> Iterator[list[tuple[_Layer, list[Choice]]]]:
    """Split the plan; candidates of one layer stay together unless they are very many."""
    batch: list[tuple[_Layer, list[Choice]]] = []
    size = 0
    for layer, choices in plan:
        for begin in range(0, len(choices), _BATCH):
            part = choices[begin : begin + _BATCH]
            if batch and size + len(part) > _BATCH:
                yield batch
                batch, size = [], 0
            batch.append((layer, part))
            size += len(part)
    if batch:
        yield batch
