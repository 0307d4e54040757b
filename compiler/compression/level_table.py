"""Times and errors of all layers at all levels of sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from effc.compression.allocation import Allocation, Point
from effc.compression.level_library import LevelLibrary
from effc.errors import UnsupportedError, UsageError
from effc.kernels.region import Region, Value
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.project import projection_mask
from effc.passes.pruning.prune_weights import Setting
from effc.passes.pruning.scheme import PATTERN_SPARSITY, Scheme
from effc.tuning.level_times import Family, LevelTimes

__all__ = ["LevelTable", "levels_of", "milliseconds", "rounded"]

Array = np.ndarray[Any, Any]

_REMOVED = 0.2
_MOST = 0.95
_FRONT_POINTS = 48


def levels_of(scheme: Scheme) -> tuple[float, ...]:
    """Sparsities to choose from, 0 first.

    Raises:
        UsageError: Zeros are not what the scheme makes.
    """
    if scheme.kind == "channel":
        raise UsageError(
            "levels from measured time are for schemes that make zeros in weights",
            where="--prune channel",
            hint="give --sparsity S instead of --speedup or --latency-ms",
        )
    if scheme.fixed_sparsity is not None:
        return (0.0, scheme.fixed_sparsity)
    levels, kept = [0.0], 1.0
    while (kept := kept * (1 - _REMOVED)) > 1 - _MOST:
        levels.append(round(1 - kept, 4))
    if scheme.kind == "pattern":
        return (0.0, PATTERN_SPARSITY, *(s for s in levels if s > PATTERN_SPARSITY + 0.02))
    return tuple(levels)


class LevelTable:
    """Times and errors of all layers at all levels.

    Args:
        layers: Layers that may be pruned.
        settings: Their schemes; those without a sparsity are free.
        regions: What the dense network is compiled as.
        compiled: Layers of that network by name; passes before compilation may have made them
            smaller (dead channels).

    Raises:
        UnsupportedError: A layer is not the anchor of a region.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        settings: Mapping[str, Setting],
        regions: Sequence[Region],
        compiled: Mapping[str, Layer],
    ) -> None:
        self.layers = layers
        self.schemes = [settings[layer.name].scheme for layer in layers]
        self.fixed = [settings[layer.name].sparsity for layer in layers]
        self.levels = [
            levels_of(scheme) if fixed is None else (0.0, fixed)
            for scheme, fixed in zip(self.schemes, self.fixed, strict=True)
        ]
        self.shape = (len(layers), max(map(len, self.levels)))
        self.times = np.full(self.shape, np.inf)
        self.errors = np.zeros(self.shape)
        self.rest = 0.0
        anchored = {r.anchor.name: r for r in regions if r.anchor is not None}
        members: dict[tuple[str, Scheme, float | None], list[int]] = {}
        for index, layer in enumerate(layers):
            region = anchored.get(layer.name)
            if region is None or layer.name not in compiled:
                raise UnsupportedError(
                    "the layer is not computed on its own, so it has no time of its own",
                    where=layer.name,
                    hint="set dense = true for it in a recipe",
                )
            kind = (region.key, self.schemes[index], self.fixed[index])
            members.setdefault(kind, []).append(index)
        self.members = list(members.values())
        self.families = [self._family(anchored, compiled, indices) for indices in self.members]

    def _family(
        self,
        anchored: Mapping[str, Region],
        compiled: Mapping[str, Layer],
        indices: Sequence[int],
    ) -> Family:
        """Layers that share their times; the first one stands for all."""
        index = indices[0]
        name = self.layers[index].name
        regions = _at_levels(
            anchored[name], compiled[name], self.schemes[index], self.levels[index]
        )
        return Family(tuple(regions), len(indices))

    def set_times(self, found: Sequence[LevelTimes], network: float) -> None:
        """Enter measured times; the rest of the network's time is that of everything else.

        Layers measured alone can take longer than in the network; they are then scaled down so
        that together they take as long as the dense network, and nothing is left for the rest.
        """
        by_index = {
            index: times
            for indices, times in zip(self.members, found, strict=True)
            for index in indices
        }
        self.found = [by_index[index] for index in range(len(self.layers))]
        prunable = sum(times.dense for times in self.found)
        scale = min(1.0, network / prunable)
        self.rest = max(network - prunable, 0.0)
        for index, times in enumerate(self.found):
            for level, seconds in enumerate(times.seconds):
                self.times[index, level] = np.inf if seconds is None else seconds * scale
            if self.fixed[index] is not None and np.isfinite(self.times[index, 1]):
                self.times[index, 0] = np.inf
        self.dense = [times.dense * scale for times in self.found]

    def set_errors(self, library: LevelLibrary) -> None:
        """Ask the pruning method for the error of every level that has a time."""
        for index, layer in enumerate(self.layers):
            for level in np.flatnonzero(np.isfinite(self.times[index])).tolist():
                if level:
                    self.errors[index, level] = library.loss(layer, self.setting(index, level))

    def setting(self, index: int, level: int) -> Setting:
        """Scheme and sparsity of a layer at a level."""
        return Setting(self.schemes[index], self.levels[index][level])

    def settings(self, levels: Sequence[int]) -> dict[str, Setting]:
        """The same of all layers, by name."""
        return {
            layer.name: self.setting(index, levels[index])
            for index, layer in enumerate(self.layers)
        }

    def hints(self, levels: Sequence[int]) -> dict[str, Any]:
        """The kernels that the times of these levels are of, by layer name."""
        kernels = [times.kernels[level] for times, level in zip(self.found, levels, strict=True)]
        names = [layer.name for layer in self.layers]
        return {name: k for name, k in zip(names, kernels, strict=True) if k is not None}

    def describe(self, allocation: Allocation, point: Point) -> dict[str, Any]:
        """The choice, its alternatives and every layer's times."""
        front = allocation.front(_FRONT_POINTS)
        rows = []
        for index, (layer, level) in enumerate(zip(self.layers, point.levels, strict=True)):
            times, row = self.found[index], self.times[index]
            kernel, dense = times.kernels[level], times.kernels[0]
            rows.append(
                {
                    "name": layer.name,
                    "scheme": str(self.schemes[index]),
                    "sparsity": self.levels[index][level],
                    "error": rounded(allocation.errors[index, level]),
                    "seconds": rounded(row[level]),
                    "dense_seconds": rounded(self.dense[index]),
                    "kernel": kernel[0] if kernel is not None else "",
                    "dense_kernel": dense[0] if dense is not None else "",
                    "levels": [
                        {"sparsity": s, "seconds": rounded(t) if np.isfinite(t) else None}
                        for s, t in zip(self.levels[index], row.tolist(), strict=False)
                    ],
                }
            )
        return {
            "chosen": self._spot(point),
            "front": [self._spot(p) for p in front],
            "uniform": self._uniform(allocation),
            "layers": rows,
        }

    def _spot(self, point: Point) -> dict[str, float]:
        return {"ms": milliseconds(point.seconds + self.rest), "error": rounded(point.error)}

    def _uniform(self, allocation: Allocation) -> list[dict[str, float]]:
        """The same level for all layers, where all have it."""
        if len(set(self.levels)) != 1:
            return []
        points = [allocation.point([level] * len(self.layers)) for level in range(self.shape[1])]
        return [
            {"sparsity": sparsity, **self._spot(point)}
            for sparsity, point in zip(self.levels[0], points, strict=True)
            if np.isfinite(point.seconds)
        ]


def _at_levels(
    region: Region, layer: Layer, scheme: Scheme, levels: Sequence[float]
) -> list[Region]:
    """The region with the layer's weights pruned by magnitude to each level."""
    found = [region]
    weight = layer.weight()
    for sparsity in levels[1:]:
        mask = projection_mask(weight, scheme, sparsity, groups=layer.groups)
        found.append(_masked(region, layer.stored(mask)))
    return found


def _masked(region: Region, mask: Array) -> Region:
    """The region with zeros where the mask is zero."""
    anchor = region.ops[0]
    old = anchor.inputs[1]
    assert old is not None
    assert old.const is not None
    weight = np.where(mask != 0, old.const, np.zeros((), old.const.dtype))
    inputs = (anchor.inputs[0], Value(old.name, old.type, weight), *anchor.inputs[2:])
    new = replace(anchor, inputs=inputs)
    return replace(region, ops=(new, *region.ops[1:]), anchor=new)


def milliseconds(seconds: float) -> float:
    """Seconds as milliseconds, as they are printed."""
    return rounded(seconds * 1e3)


def rounded(value: float) -> float:
    """Five digits: more would be noise."""
    return float(f"{value:.5g}")
