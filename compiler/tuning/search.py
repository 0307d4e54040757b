"""Which candidates to measure next, and the loop that measures them.

First every layer gets its few most promising candidates, so that none is left
to a prediction alone. Then batches go where a network spends its (measured)
time: neighbours of a layer's best configuration so far, which differ in one knob,
before others in the order of their predicted cost. Each batch measures a layer's best
candidate again beside the new ones: only times of one run compare exactly.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from effc.devices.target import Target
from effc.kernels.region import Region
from effc.kernels.template import Choice
from effc.tuning.build import Candidate, Compiled, compile_candidates
from effc.tuning.context import Context
from effc.tuning.counts import BoardHarness
from effc.tuning.database import Database, Measurement, candidate_name
from effc.tuning.measure import Harness, Timing
from effc.tuning.testbed import EmulatedBoard

__all__ = ["Effort", "Layer", "Progress", "Search", "name_of"]

Progress = Callable[[int, int, str], None]

_BATCH = 24
"""Candidates per executable: their results are safe when it has run."""

_FIRST = 3
"""Candidates that every layer gets before any layer gets more."""

_STEP = 4
"""Candidates that a layer gets at a time after that."""


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
            return Effort("quick", 240, 16, 50.0, 30, 0.3)
        if mode == "full":
            return Effort("full", 1_000_000, 1_000_000, float("inf"), 60, 2.0)
        return Effort(str(mode), int(mode), 1_000_000, float("inf"), 40, 0.6)

    def covered_by(self, other: str) -> bool:
        """Whether a layer searched with effort ``other`` needs no search with this one."""
        return other == self.name or Effort.of(other).candidates >= self.candidates


@dataclass
class Layer:
    """A distinct layer and what is known about its candidates."""

    region: Region
    options: list[Choice]
    count: int = 0
    known: dict[str, Measurement] = field(default_factory=dict)
    tried: int = 0
    improved: bool = True  # by the last batch

    @property
    def key(self) -> str:
        return self.region.key

    def winner(self) -> Choice:
        """The fastest measured candidate, else the cheapest that has not failed."""
        names = {name_of(c): c for c in self.options}
        times = [
            (m.seconds, name)
            for name, m in self.known.items()
            if m.seconds is not None and name in names
        ]
        if times:
            return names[min(times)[1]]
        return next((c for c in self.options if name_of(c) not in self.known), self.options[0])

    def ranked(self) -> list[Choice]:
        """All candidates with their times: the winner, the other measured ones, the rest."""
        winner = self.winner()
        timed = [replace(c, seconds=self._time(c)) for c in self.options if c is not winner]
        timed.sort(key=lambda c: (c.seconds is None, c.seconds or 0.0, c.cost))
        return [replace(winner, seconds=self._time(winner)), *timed]

    def _time(self, choice: Choice) -> float | None:
        found = self.known.get(name_of(choice))
        return found.seconds if found is not None else None

    @property
    def seconds(self) -> float | None:
        """Time of the fastest measured candidate."""
        found = self.known.get(name_of(self.winner()))
        return found.seconds if found is not None else None

    def untried(self) -> list[Choice]:
        """Candidates without a measurement, the most promising first."""
        left = [c for c in _by_promise(self.options) if name_of(c) not in self.known]
        if self.seconds is None:
            return left
        best = self.winner()
        return sorted(left, key=lambda c: not _neighbours(c, best))  # stable


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


def _neighbours(one: Choice, other: Choice) -> bool:
    """Whether two candidates differ in one knob, and neither is predicted to be far worse."""
    if one.template is not other.template or one.config.keys() != other.config.keys():
        return False
    differences = sum(one.config[knob] != other.config[knob] for knob in one.config)
    return differences == 1 and one.cost <= 1.3 * other.cost


class Search:
    """One tuning run.

    Args:
        layers: Layers with more than one candidate.
        target: What to compile for.
        effort: When to stop.
        store: Where measurements go.
        context: What they depend on.
        progress: Called after every layer of a batch.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        target: Target,
        effort: Effort,
        store: Database,
        context: Context,
        progress: Progress | None,
    ) -> None:
        self.layers = layers
        self.target = target
        self.effort = effort
        self.store = store
        self.context = context
        self.progress = progress
        self.start = time.monotonic()
        self.batch_seconds = 0.0  # of the last batch
        self.done = 0
        self.total = min(
            sum(len(layer.untried()[: effort.per_layer]) for layer in layers), effort.candidates
        )

    def run(self) -> None:
        """Measure until the effort is spent; every result is stored at once."""
        by_weight = sorted(
            self.layers, key=lambda layer: (-layer.options[0].cost * layer.count, layer.key)
        )
        first = [
            (layer, layer.untried()[: max(_FIRST - len(layer.known), 0)]) for layer in by_weight
        ]
        if not self.spend(first):
            return
        while not self._late():
            batch = self._next_batch()
            if not batch:
                return
            self._measure(batch)

    def spend(self, plan: list[tuple[Layer, list[Choice]]]) -> bool:
        """Measure given candidates; False if the time was up before the last of them."""
        for batch in _batches(self._within(plan)):
            if self._late():
                return False
            self._measure(batch)
        return True

    def _late(self) -> bool:
        """Whether the time is up, or would be long before the end of another batch."""
        spent = time.monotonic() - self.start
        return spent + self.batch_seconds / 2 > self.effort.seconds

    def _within(self, plan: list[tuple[Layer, list[Choice]]]) -> list[tuple[Layer, list[Choice]]]:
        """Cut a plan to the number of candidates that the effort allows."""
        left = self.effort.candidates - self.done
        kept = []
        for layer, choices in plan:
            part = choices[: max(left, 0)]
            left -= len(part)
            if part:
                kept.append((layer, part))
        return kept

    def _next_batch(self) -> list[tuple[Layer, list[Choice]]]:
        """New candidates for the layers where they may save most time."""
        gains = []
        for layer in self.layers:
            room = min(_STEP, self.effort.per_layer - layer.tried)
            choices = layer.untried()[: max(room, 0)]
            if choices:
                # more of the same helps less and less, above all if the last ones did not
                spent = layer.seconds if layer.seconds is not None else float("inf")
                gain = spent * layer.count / (1 + layer.tried)
                gains.append((-gain if layer.improved else -gain / 3, layer.key, layer, choices))
        gains.sort(key=lambda item: item[:2])
        plan = self._within([(layer, choices) for _, _, layer, choices in gains])
        return next(_batches(plan), [])

    def _measure(self, batch: Sequence[tuple[Layer, list[Choice]]]) -> None:
        """Compile, link and run one batch, and store what comes out."""
        begin = time.monotonic()
        runs = [
            (layer, choices + [layer.winner()] * (layer.seconds is not None))
            for layer, choices in batch
        ]
        candidates = [Candidate(layer.region, c) for layer, choices in runs for c in choices]
        with tempfile.TemporaryDirectory(prefix="effc-tune-") as name:
            folder = Path(name)
            workers = min(len(os.sched_getaffinity(0)), len(candidates))
            compiled = compile_candidates(candidates, self.context.target, folder, workers)
            harness = self._harness(folder)
            harness.link([c for c in compiled if not c.error])
            harness.send(self._jobs([(layer, len(choices)) for layer, choices in runs], compiled))
            position = 0
            for (layer, choices), (_, new) in zip(runs, batch, strict=True):
                mine = compiled[position : position + len(choices)]
                position += len(choices)
                self._store(layer, choices, self._timings(harness, layer, mine))
                layer.tried += len(new)
                self._report(layer, len(new))
        self.batch_seconds = time.monotonic() - begin

    def _harness(self, folder: Path) -> Harness | BoardHarness:
        context, testbed = self.context, self.context.testbed
        if isinstance(testbed, EmulatedBoard):
            return BoardHarness(self.target, folder)
        return Harness(self.target, folder, context.threads, context.cold, testbed)

    def _jobs(
        self, layers: Sequence[tuple[Layer, int]], compiled: Sequence[Compiled]
    ) -> list[tuple[Region, list[Compiled], float, int]]:
        """What the harness will run: layers, each with its number of candidates."""
        seconds, rounds = self.effort.layer_seconds, self.effort.rounds
        left = iter(compiled)
        return [
            (layer.region, [c for c in islice(left, count) if not c.error], seconds, rounds)
            for layer, count in layers
        ]

    def _timings(
        self, harness: Harness | BoardHarness, layer: Layer, compiled: Sequence[Compiled]
    ) -> list[Timing]:
        good = [c for c in compiled if not c.error]
        seconds, rounds = self.effort.layer_seconds, self.effort.rounds
        timed = iter(harness.run(layer.region, good, seconds, rounds) if good else ())
        return [Timing(None, error=c.error) if c.error else next(timed) for c in compiled]

    def _store(self, layer: Layer, choices: Sequence[Choice], timings: Sequence[Timing]) -> None:
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
        before = layer.seconds
        self.store.add(new)
        layer.known = self.store.measurements(self.context.digest)[layer.key]
        layer.improved = before is None or (layer.seconds or before) < 0.98 * before

    def _report(self, layer: Layer, count: int) -> None:
        self.done += count
        if self.progress is None:
            return
        spent = time.monotonic() - self.start
        left = spent / self.done * (self.total - self.done)
        left = min(left, max(self.effort.seconds - spent, 0.0))
        shape = "x".join(map(str, layer.region.outputs[0].shape))
        text = f"{layer.region.ops[0].op_type} {shape}, about {left:.0f} s left"
        self.progress(self.done, self.total, text)


def _batches(
    plan: Sequence[tuple[Layer, list[Choice]]],
) -> Iterator[list[tuple[Layer, list[Choice]]]]:
    """Split a plan; candidates of one layer stay together unless they are very many."""
    batch: list[tuple[Layer, list[Choice]]] = []
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
