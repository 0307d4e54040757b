"""Time of a layer at every level of sparsity, measured.

A layer at a level is an ordinary layer whose zeros are part of its signature, so its candidates
are measured and remembered as any other's. What is special is the choice of candidates: there are
many levels, and neighbouring ones like the same kernels. Levels are visited from coarse to
fine (the middle, the ends, the quarters ...), so a time budget that ends early leaves a coarser
grid, not one with a hole; each gets the best predicted sparse candidates and the winners of the
nearest levels that were measured before it, and in the end the winners of both its neighbours.
Dense candidates do not depend on the level and are measured once, at level 0.

A level's time is the least of its measured candidates and of the dense ones. Levels without
a measurement have no time: a prediction ranks candidates and never stands for a time. The result is
kept in the database, so that a later run finds exactly the same times however many measurements
other compilations have added meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effc.devices.target import Target
from effc.errors import ToolError
from effc.kernels import registry
from effc.kernels.region import Region
from effc.kernels.template import Choice, Config
from effc.tuning.context import Context
from effc.tuning.database import Database
from effc.tuning.search import Effort, Layer, Progress, Search, name_of

__all__ = ["Family", "LevelTimes", "coarse_to_fine", "effort_of", "level_times"]

_KIND = "levels"


@dataclass(frozen=True)
class Family:
    """Layers of a network that share their kernels.

    Attributes:
        regions: One of them at every level, the dense one first.
        count: How many there are.
    """

    regions: tuple[Region, ...]
    count: int

    @property
    def key(self) -> str:
        """What the times depend on."""
        return hashlib.sha256("\n".join(r.key for r in self.regions).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class LevelTimes:
    """Measured times of one family.

    Attributes:
        seconds: Per level; None where nothing was measured.
        kernels: Template and configuration of each time.
        dense: Time of the fastest dense kernel, the time of level 0.
    """

    seconds: tuple[float | None, ...]
    kernels: tuple[tuple[str, Config] | None, ...]

    @property
    def dense(self) -> float:
        assert self.seconds[0] is not None
        return self.seconds[0]


def effort_of(mode: str | int) -> Effort:
    """How thoroughly to measure levels in a tuning mode."""
    if mode == "quick":
        return Effort("quick", 1_000_000, 2, 420.0, 20, 0.12)
    if mode == "full":
        return Effort("full", 1_000_000, 8, float("inf"), 40, 1.0)
    return Effort(str(mode), int(mode), 2, float("inf"), 30, 0.3)


def coarse_to_fine(count: int) -> list[int]:
    """Levels 1 to ``count - 1``, the middle first, then the last, then middles of what is left."""
    order: list[int] = []
    gaps = [(0, count)]
    while gaps:
        begin, end = gaps.pop(0)
        middle = (begin + end) // 2
        if middle > begin:
            order.append(middle)
            gaps += [(begin, middle), (middle, end)]
    last = count - 1
    return [*order[:1], *([last] if last > 0 else []), *(o for o in order[1:] if o != last)][
        : max(last, 0)
    ]


def level_times(
    families: Sequence[Family],
    target: Target,
    store: Database,
    context: Context,
    mode: str | int,
    progress: Progress | None = None,
) -> list[LevelTimes]:
    """Measure what is not in the database yet.

    Args:
        families: Distinct layers with their levels; the dense ones should have been tuned.
        target: A target that this machine can measure.
        store: Where times are looked up and kept.
        context: What they depend on.
        mode: ``quick``, ``full`` or a number of measurements.
        progress: Called with candidates done, candidates in total, and a text.

    Returns:
        Times of each family.

    Raises:
        ToolError: Not even a dense kernel of some layer could be measured.
    """
    notes = store.notes(context.digest, _KIND)
    missing = [f for f in families if f.key not in notes]
    if missing:
        store.describe(context.digest, context.details)
        measured = _LevelSearch(missing, target, store, context, mode, progress).run()
        for family, times in zip(missing, measured, strict=True):
            store.note(context.digest, _KIND, family.key, _record(times))
        notes = store.notes(context.digest, _KIND)
    return [_times(notes[f.key]) for f in families]


def _record(times: LevelTimes) -> dict[str, object]:
    kernels = [
        None if k is None else {"template": k[0], "config": dict(k[1])} for k in times.kernels
    ]
    return {"seconds": list(times.seconds), "kernels": kernels}


def _times(record: dict[str, Any]) -> LevelTimes:
    kernels = tuple(None if k is None else (k["template"], k["config"]) for k in record["kernels"])
    return LevelTimes(tuple(record["seconds"]), kernels)


class _LevelSearch:
    """Measures all levels of some families."""

    def __init__(
        self,
        families: Sequence[Family],
        target: Target,
        store: Database,
        context: Context,
        mode: str | int,
        progress: Progress | None,
    ) -> None:
        known = store.measurements(context.digest)
        self.layers: list[list[Layer]] = []
        self.sparse: list[list[list[Choice]]] = []
        for family in families:
            layers = [
                Layer(region, registry.choices(region, target), family.count)
                for region in family.regions
            ]
            dense = {name_of(choice) for choice in layers[0].options}
            for layer in layers:
                layer.known = dict(known.get(layer.key, {}))
            self.layers.append(layers)
            self.sparse.append([[c for c in y.options if name_of(c) not in dense] for y in layers])
        self.effort = effort_of(mode)
        every = [layer for layers in self.layers for layer in layers]
        self.search = Search(every, target, self.effort, store, context, progress)
        self.order = coarse_to_fine(max(map(len, self.layers)))
        # both passes, as far as can be said before the first: winners are often predicted ones
        levels = sum(len(layers) - 1 for layers in self.layers)
        self.search.total = min(levels * (self.effort.per_layer + 2), self.effort.candidates)

    def run(self) -> list[LevelTimes]:
        untimed = [layers[0] for layers in self.layers if layers[0].seconds is None]
        going = self.search.spend([(layer, layer.untried()[:1]) for layer in untimed])
        for level in self.order:
            going = going and self.search.spend(self._plan(level, self.effort.per_layer))
        for level in self.order:
            going = going and self.search.spend(self._plan(level, 0))
        return [self._result(number) for number in range(len(self.layers))]

    def _plan(self, level: int, predicted: int) -> list[tuple[Layer, list[Choice]]]:
        """New candidates of every family at one level."""
        plan = []
        for layers, sparse in zip(self.layers, self.sparse, strict=True):
            if level >= len(layers) or not sparse[level]:
                continue
            by_name = {name_of(choice): choice for choice in sparse[level]}
            names = [name_of(c) for c in sparse[level][:predicted]]
            for near in self._measured_neighbours(layers, sparse, level):
                names.append(name_of(near))
            new = [n for n in dict.fromkeys(names) if n in by_name and n not in layers[level].known]
            if new:
                plan.append((layers[level], [by_name[name] for name in new]))
        return plan

    def _measured_neighbours(
        self, layers: list[Layer], sparse: list[list[Choice]], level: int
    ) -> list[Choice]:
        """The fastest sparse kernels of the nearest measured levels on both sides."""
        found = []
        for side in (range(level - 1, 0, -1), range(level + 1, len(layers))):
            for other in side:
                best = _fastest(layers[other], sparse[other])
                if best is not None:
                    found.append(best[1])
                    break
        return found

    def _result(self, number: int) -> LevelTimes:
        layers, sparse = self.layers[number], self.sparse[number]
        dense = _fastest(layers[0], layers[0].options)
        if dense is None:
            errors = [m.error for m in layers[0].known.values() if m.error]
            raise ToolError(
                "no kernel of a layer could be measured",
                where=layers[0].region.name,
                got=errors[0] if errors else "the number of measurements was spent before",
                hint="give --tune more measurements",
            )
        seconds: list[float | None] = [dense[0]]
        kernels: list[tuple[str, Config] | None] = [_kernel(dense[1])]
        for layer, options in zip(layers[1:], sparse[1:], strict=True):
            best = _fastest(layer, options)
            if not options:  # its zeros are too few for a sparse kernel
                best = dense
            elif best is not None:
                best = min(best, dense, key=lambda item: item[0])
            seconds.append(None if best is None else best[0])
            kernels.append(None if best is None else _kernel(best[1]))
        return LevelTimes(tuple(seconds), tuple(kernels))


def _fastest(layer: Layer, options: Sequence[Choice]) -> tuple[float, Choice] | None:
    """The least measured time among some candidates."""
    timed = [
        (measurement.seconds, name_of(choice), choice)
        for choice in options
        if (measurement := layer.known.get(name_of(choice))) is not None
        and measurement.seconds is not None
    ]
    if not timed:
        return None
    seconds, _, choice = min(timed, key=lambda item: item[:2])
    return seconds, choice


def _kernel(choice: Choice) -> tuple[str, Config]:
    return choice.template.name, dict(choice.config)
