"""Roots that share memory: results that lie over inputs, copies that lie where they were.

Pairs that a kernel allows to share memory (``Kernel.sharing``) are merged when nothing else
needs the overwritten bytes; so are the two sides of a copy, which then needs no code. Every root
ends in a *group* at a fixed shift; groups are what is placed (``effc.memory_plan``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from effc.kernels.region import Region
from effc.kernels.template import Kernel, Overlap
from effc.memory_plan import Buffer, Part

__all__ = ["Groups", "Pair", "is_copy", "pairs_of"]

Slots = Mapping[str, tuple[str, int]]

_WORD = 8  # bytes; results that lie over other bytes start at multiples of it


def is_copy(region: Region) -> bool:
    """Whether a region only copies bytes: sharing memory makes it unnecessary."""
    return len(region.ops) == 1 and region.ops[0].op_type == "Identity" and bool(region.inputs)


@dataclass(frozen=True)
class Pair:
    """An input and a result of a region that may share memory.

    Attributes:
        region: Name of the region.
        source, result: Names of the values.
        source_slot, result_slot: (root, byte offset) of each.
        source_bytes, result_bytes: Their sizes.
        shifts: Allowed ``address(result) - address(source)``, closed ranges (``Overlap``).
        span: First and last step of the region.
        copy: The result is the same bytes: both may stay alive at distance 0.
    """

    region: str
    source: str
    result: str
    source_slot: tuple[str, int]
    result_slot: tuple[str, int]
    source_bytes: int
    result_bytes: int
    shifts: tuple[tuple[int, int], ...]
    span: tuple[int, int]
    copy: bool

    def shared(self, shift: int) -> tuple[int, int]:
        """Bytes of the source that the result covers at a distance, as (begin, end)."""
        return max(shift, 0), min(self.source_bytes, self.result_bytes + shift)

    @property
    def most_shared(self) -> int:
        """The largest number of bytes that the two can have in common."""
        inner = sorted((0, self.source_bytes - self.result_bytes))  # one contains the other

        def common(low: int, high: int) -> int:
            nearest = [min(max(at, low), high) for at in inner]
            return max(end - begin for begin, end in map(self.shared, nearest))

        return max((common(*r) for r in self.shifts), default=0)

    def choices(self) -> list[int]:
        """Distances worth trying, the one with most shared bytes first."""
        found: dict[int, None] = {}
        for low, high in self.shifts:
            for at in (0, self.source_bytes - self.result_bytes, low, high):
                nearest = min(max(at, low), high)
                down = nearest - nearest % _WORD
                if low <= down <= high:
                    found[down] = None

        def common(shift: int) -> int:
            begin, end = self.shared(shift)
            return end - begin

        useful = [shift for shift in found if common(shift) > 0]
        return sorted(useful, key=lambda shift: (-common(shift), abs(shift), shift))


def pairs_of(
    regions: Sequence[Region],
    kernels: Mapping[str, Kernel],
    slots: Slots,
    spans: Mapping[str, tuple[int, int]],
    roots: Mapping[str, int],
) -> list[Pair]:
    """Every pair of values in the arena that may share memory, in execution order."""
    found = []
    for region in regions:
        sizes = {v.name: v.type.nbytes for v in (*region.inputs, *region.outputs)}
        copy = is_copy(region)
        sharing = kernels[region.name].sharing
        if copy:
            sharing = (Overlap(region.inputs[0].name, region.outputs[0].name, ((0, 0),)),)
        for o in sharing:
            if (
                o.source in sizes  # not a constant
                and sizes[o.source] > 0
                and sizes[o.result] > 0
                and slots[o.source][0] in roots
                and slots[o.result][0] in roots
                and not _read_twice(region, o.source, lambda name: slots[name])
            ):
                found.append(
                    Pair(
                        region.name,
                        o.source,
                        o.result,
                        slots[o.source],
                        slots[o.result],
                        sizes[o.source],
                        sizes[o.result],
                        o.shifts,
                        spans[region.name],
                        copy,
                    )
                )
    return found


def _read_twice(region: Region, source: str, place: Callable[[str], tuple[str, int]]) -> bool:
    """Whether a region reads bytes of ``source`` under another name as well."""
    home, begin = place(source)
    sizes = {value.name: value.type.nbytes for value in region.inputs}
    for name, nbytes in sizes.items():
        other, at = place(name)
        if name != source and other == home and -nbytes < at - begin < sizes[source]:
            return True
    return False


class Groups:
    """Roots merged by shared memory; every root has a home and a shift in it."""

    def __init__(self, parts: Mapping[str, Sequence[Part]], sizes: Mapping[str, int]) -> None:
        self.parts = {name: list(found) for name, found in parts.items()}
        self.sizes = dict(sizes)
        self.moved: dict[str, tuple[str, int]] = {}

    def home(self, root: str) -> tuple[str, int]:
        """Group that a root belongs to, and its byte offset there."""
        shift = 0
        while root in self.moved:
            root, step = self.moved[root]
            shift += step
        return root, shift

    def merge(self, pairs: Sequence[Pair], regions: Mapping[str, Region], slots: Slots) -> None:
        """Merge every pair that is safe, at the distance at which most bytes are shared."""
        for pair in pairs:
            region = regions[pair.region]
            if not _read_twice(region, pair.source, lambda name: self._place(slots[name])):
                any(self._join(pair, shift) for shift in pair.choices())

    def _place(self, slot: tuple[str, int]) -> tuple[str, int]:
        home, shift = self.home(slot[0])
        return home, slot[1] + shift

    def _join(self, pair: Pair, distance: int) -> bool:
        """Move one group into the other, with the result so far above the source, if allowed."""
        home_a, at_a = self._place(pair.source_slot)
        home_b, at_b = self._place(pair.result_slot)
        if home_a == home_b:
            return False
        whole_a = self.sizes[home_a] == pair.source_bytes
        whole_b = self.sizes[home_b] == pair.result_bytes
        shift = at_a + distance - at_b  # of group b inside group a
        begin, end = pair.shared(distance)
        if not (whole_a or whole_b or pair.copy) or not _compatible(
            self.parts[home_a], self.parts[home_b], shift, (at_a + begin, at_a + end), pair
        ):
            return False
        if shift >= 0:
            self._move(home_b, home_a, shift)
        else:
            self._move(home_a, home_b, -shift)
        return True

    def _move(self, child: str, parent: str, shift: int) -> None:
        self.moved[child] = (parent, shift)
        self.sizes[parent] = max(self.sizes[parent], self.sizes[child] + shift)
        self.parts[parent] += [
            replace(part, offset=part.offset + shift) for part in self.parts.pop(child)
        ]
        del self.sizes[child]

    def buffers(self) -> list[Buffer]:
        """One buffer per group; compound where its parts differ in time."""
        result = []
        for name, parts in self.parts.items():
            if not parts:
                result.append(Buffer(name, 0, 0, 0))
                continue
            first = min(p.first for p in parts)
            last = max(p.last for p in parts)
            joined = _join_touching(parts)
            whole = len(joined) == 1 and joined[0].nbytes == self.sizes[name]
            result.append(
                Buffer(name, self.sizes[name], first, last, () if whole else tuple(joined))
            )
        return result


def _compatible(
    old: Sequence[Part], new: Sequence[Part], shift: int, shared: tuple[int, int], pair: Pair
) -> bool:
    """Whether no part of ``old`` is overwritten while it is needed.

    Parts may overlap in bytes and time only inside the region of the pair:
    where the old one lies within the input, ends and the new one begins. The
    input of a copy need not end there: the bytes stay what they are.
    """
    span = pair.span
    for p in old:
        for q in new:
            begin = max(p.offset, q.offset + shift)
            end = min(p.offset + p.nbytes, q.offset + shift + q.nbytes)
            if begin >= end or p.last < q.first or q.last < p.first:
                continue
            handed_over = p.first < span[0] <= q.first <= span[1] and (
                pair.copy or p.last <= span[1]
            )
            if not (handed_over and shared[0] <= begin and end <= shared[1]):
                return False
    return True


def _join_touching(parts: Sequence[Part]) -> list[Part]:
    """Unite parts of the same bytes whose lifetimes follow each other or overlap."""
    joined: list[Part] = []
    for part in sorted(parts, key=lambda p: (p.offset, p.nbytes, p.first)):
        last = joined[-1] if joined else None
        if (
            last is not None
            and (last.offset, last.nbytes) == (part.offset, part.nbytes)
            and part.first <= last.last + 1
        ):
            joined[-1] = replace(last, last=max(last.last, part.last))
        else:
            joined.append(part)
    return joined
