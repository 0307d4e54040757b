"""What the search for an order knows of a graph: dependencies, tensors, bytes per step.

Regions and tensors are numbers, sets of regions are bit sets. A tensor is a piece of a root whose
bytes have the same readers. A region is one moment per stage of its kernel (one altogether, while
kernels are unknown): at each some results are there already and some inputs are no longer needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from effc.kernels.region import Region, Value
from effc.kernels.template import Kernel
from effc.merging import Pair, is_copy, pairs_of

__all__ = ["Graph", "bits", "build_graph"]

Slots = Mapping[str, tuple[str, int]]
_Piece = tuple[str, int, int]  # root, begin, end


@dataclass
class _Tensor:
    nbytes: int
    writers: int = 0  # bit sets of regions
    readers: int = 0


@dataclass(frozen=True)
class _Shared:
    """Bytes that a result may share with inputs that die."""

    result: int  # bytes
    sources: tuple[tuple[int, tuple[int, ...]], ...]  # (bytes in common at most, tensors)


@dataclass(frozen=True)
class _Moment:
    """One stage of a region."""

    own: int  # bytes of workspaces and scratch
    made: tuple[int, ...]  # tensors written that are there
    gone: tuple[int, ...]  # tensors read that are not needed any more
    shared: tuple[_Shared, ...]


@dataclass
class Graph:
    """Regions as bit positions.

    Attributes:
        needs: Regions that must be done before, as bit sets.
        users: Regions that need this one.
        exact: Whether peaks are lower bounds for any plan: not so where copies may stay in place.
    """

    needs: list[int]
    users: list[list[int]]
    tensors: list[_Tensor]
    made: list[list[int]]
    read: list[list[int]]
    moments: list[list[_Moment]]
    exact: bool

    def step(self, done: int, i: int) -> tuple[int, int]:
        """Bytes that region ``i`` needs beside the live ones, and the change of these behind it."""
        after = done | 1 << i
        fresh = {t for t in self.made[i] if not self.tensors[t].writers & done}
        dying = {t for t in self.read[i] if self._dead(t, after)}
        needed = max(self._needed(moment, fresh, dying) for moment in self.moments[i])
        change = sum(self.tensors[t].nbytes for t in fresh)
        change -= sum(self.tensors[t].nbytes for t in dying)
        change -= sum(self.tensors[t].nbytes for t in self.made[i] if self._dead(t, after))
        return needed, change

    def step_bound(self) -> int:
        """Bytes that some region needs at once in any order."""
        most = 0
        for i, moments in enumerate(self.moments):
            inputs = sum(self.tensors[t].nbytes for t in self.read[i])
            dying = set(self.read[i])
            fresh = set(self.made[i])
            most = max([most, *(inputs + self._needed(m, fresh, dying) for m in moments)])
        return most

    def _dead(self, t: int, done: int) -> bool:
        tensor = self.tensors[t]
        return not (tensor.writers | tensor.readers) & ~done

    def _needed(self, moment: _Moment, fresh: set[int], dying: set[int]) -> int:
        total = moment.own + sum(self.tensors[t].nbytes for t in moment.made if t in fresh)
        total -= sum(self.tensors[t].nbytes for t in moment.gone if t in dying)
        for shared in moment.shared:
            common = sum(
                min(most, sum(self.tensors[t].nbytes for t in tensors if t in dying))
                for most, tensors in shared.sources
            )
            total -= min(common, shared.result)
        return total


def bits(mask: int) -> list[int]:
    """Positions of the bits that are set."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


def build_graph(
    regions: Sequence[Region],
    slots: Slots,
    arena_roots: frozenset[str] | set[str],
    kernels: Mapping[str, Kernel] | None = None,
    serial: bool = False,
) -> Graph:
    """Dependencies and tensors; arguments as those of ``effc.order.order_regions``."""
    return _Builder(regions, slots, arena_roots, kernels, serial).graph()


class _Builder:
    """State of one :func:`build_graph`."""

    def __init__(
        self,
        regions: Sequence[Region],
        slots: Slots,
        arena_roots: frozenset[str] | set[str],
        kernels: Mapping[str, Kernel] | None,
        serial: bool,
    ) -> None:
        self.regions, self.slots, self.roots = regions, slots, arena_roots
        self.kernels, self.serial = kernels, serial
        self.pieces = self._cut()
        self.number = {piece: i for i, piece in enumerate(self.pieces)}
        self.by_root: dict[str, list[tuple[int, _Piece]]] = {}
        for i, piece in enumerate(self.pieces):
            self.by_root.setdefault(piece[0], []).append((i, piece))

    def graph(self) -> Graph:
        """See :func:`build_graph`."""
        count = len(self.regions)
        tensors = [_Tensor(end - begin) for _, begin, end in self.pieces]
        made: list[list[int]] = [[] for _ in range(count)]
        read: list[list[int]] = [[] for _ in range(count)]
        for i, region in enumerate(self.regions):
            made[i] = list(dict.fromkeys(t for v in region.outputs for t in self._of(v)))
            for t in made[i]:
                tensors[t].writers |= 1 << i
            read[i] = list(dict.fromkeys(t for v in region.inputs for t in self._of(v)))
        for i in range(count):
            read[i] = [t for t in read[i] if tensors[t].writers]
            for t in read[i]:
                tensors[t].readers |= 1 << i
        needs = [0] * count
        for i in range(count):
            for t in read[i]:
                if t not in made[i]:
                    needs[i] |= tensors[t].writers
        users: list[list[int]] = [[] for _ in range(count)]
        for i, need in enumerate(needs):
            for j in bits(need):
                users[j].append(i)
        moments = self._moments(made, read)
        for t, piece in enumerate(self.pieces):  # others only order the regions
            if piece[0] not in self.roots:
                tensors[t].nbytes = 0
        exact = not any(is_copy(region) for region in self.regions)
        return Graph(needs, users, tensors, made, read, moments, exact)

    def _cut(self) -> list[_Piece]:
        """Written ranges, cut wherever a region reads or writes only a part."""
        points: dict[str, set[int]] = {}
        written: dict[str, list[tuple[int, int]]] = {}
        for region in self.regions:
            for values, outputs in ((region.inputs, False), (region.outputs, True)):
                for value in values:
                    root, begin = self.slots[value.name]
                    end = begin + value.type.nbytes
                    points.setdefault(root, set()).update((begin, end))
                    if outputs:
                        written.setdefault(root, []).append((begin, end))
        return [
            (root, begin, end)
            for root, ranges in written.items()
            for begin, end in pairwise(sorted(points[root]))
            if any(b <= begin and end <= e for b, e in ranges)
        ]

    def _of(self, value: Value) -> list[int]:
        """Tensors that a value consists of."""
        root, begin = self.slots[value.name]
        end = begin + value.type.nbytes
        return [t for t, (_, b, e) in self.by_root.get(root, ()) if begin <= b and e <= end]

    def _moments(
        self, made: Sequence[Sequence[int]], read: Sequence[Sequence[int]]
    ) -> list[list[_Moment]]:
        if self.kernels is None:
            return [[_Moment(0, tuple(made[i]), (), ())] for i in range(len(self.regions))]
        everywhere = {region.name: (0, 0) for region in self.regions}
        sizes = dict.fromkeys(self.roots, 0)
        pairs: dict[str, list[Pair]] = {}
        for pair in pairs_of(self.regions, self.kernels, self.slots, everywhere, sizes):
            pairs.setdefault(pair.region, []).append(pair)
        return [
            self._stages(region, self.kernels[region.name], pairs.get(region.name, []))
            for region in self.regions
        ]

    def _stages(self, region: Region, kernel: Kernel, pairs: Sequence[Pair]) -> list[_Moment]:
        values = {v.name: self._of(v) for v in (*region.inputs, *region.outputs)}
        count = max(len(kernel.stages), 1)
        touched = {name: _touched(kernel, name, count) for name in values}
        rooms = [
            (nbytes, _touched(kernel, f"t:{name}", count))
            for name, nbytes in kernel.workspaces.items()
        ]
        moments = []
        for now in range(count):
            own = sum(nbytes for nbytes, (a, b) in rooms if a <= now <= b)
            if self.serial and kernel.stages:
                own += kernel.stages[now].scratch
            there = [v.name for v in region.outputs if touched[v.name][0] <= now]
            needed = {t for v in region.inputs if touched[v.name][1] >= now for t in values[v.name]}
            gone = {t for v in region.inputs for t in values[v.name]} - needed
            made = dict.fromkeys(t for name in there for t in values[name])
            shared = []
            for result in there:
                sources = tuple(
                    (p.most_shared, tuple(values[p.source]))
                    for p in pairs
                    if p.result == result and touched[p.source][1] >= now
                )
                if sources:
                    nbytes = next(v.type.nbytes for v in region.outputs if v.name == result)
                    shared.append(_Shared(nbytes, sources))
            moments.append(_Moment(own, tuple(made), tuple(sorted(gone)), tuple(shared)))
        return moments


def _touched(kernel: Kernel, ref: str, count: int) -> tuple[int, int]:
    """First and last stage that takes ``ref``; all if none does."""
    stages = [i for i, stage in enumerate(kernel.stages) if ref in stage.args]
    return (stages[0], stages[-1]) if stages else (0, count - 1)
