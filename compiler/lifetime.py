"""From kernels in order to buffers of the arena.

In: regions in execution order with their kernels, and the place of every value
inside its root (``effc.storage``). Out: an offset for each root and workspace.

Time is counted in stages, so an input that only the first stage of a kernel
reads makes room for a result that only its last stage writes. A root is cut
into pieces wherever the last use differs: a slice that stays alive does not
keep the rest, and an operand of a concatenation does not reserve the room of
the others before they are written. Pairs that a kernel allows to share memory
(``Kernel.inplace``) are merged when nothing else needs the overwritten bytes; so are
the two sides of a copy, which then needs no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from effc.kernels.region import Region
from effc.kernels.template import Kernel
from effc.memory_plan import Buffer, Part, plan

__all__ = ["ArenaPlan", "is_copy", "plan_arena"]

Slots = Mapping[str, tuple[str, int]]


@dataclass
class ArenaPlan:
    """Where the arena's contents lie.

    Attributes:
        offsets: Byte offset by root.
        workspaces: Byte offset by (region, workspace).
        size, lower_bound: Bytes, see ``MemoryPlan``.
        inplace: Pairs (region, input, output) that share memory.
        picture: Rows for a report: name, offset, bytes, first and last step.
    """

    offsets: dict[str, int]
    workspaces: dict[tuple[str, str], int]
    size: int
    lower_bound: int
    inplace: list[tuple[str, str, str]] = field(default_factory=list)
    picture: list[dict[str, int | str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Use:
    """Bytes of a root that a value occupies, and the steps at which it is touched."""

    value: str
    begin: int
    end: int
    first: int
    last: int


def is_copy(region: Region) -> bool:
    """Whether a region only copies bytes: sharing memory makes it unnecessary."""
    return len(region.ops) == 1 and region.ops[0].op_type == "Identity" and bool(region.inputs)


def plan_arena(
    regions: Sequence[Region],
    kernels: Mapping[str, Kernel],
    slots: Slots,
    roots: Mapping[str, int],
) -> ArenaPlan:
    """Plan the arena.

    Args:
        regions: In execution order.
        kernels: By region name.
        slots: (root, byte offset) of every value.
        roots: Bytes of every root that lies in the arena.
    """
    groups, spans = _pieces(regions, kernels, slots, roots)
    merged = _Groups(groups, dict(roots))
    inplace = merged.merge(regions, kernels, slots, spans)
    buffers = merged.buffers()
    for region in regions:
        buffers += _workspace_buffers(region, kernels[region.name], spans[region.name])
    result = plan(buffers)
    offsets = {}
    for name in roots:
        home, shift = merged.home(name)
        offsets[name] = result.offsets[home] + shift
    workspaces = {
        (region.name, name): result.offsets[_workspace(region, name)]
        for region in regions
        for name in kernels[region.name].workspaces
    }
    picture: list[dict[str, int | str]] = [
        {
            "name": buffer.name,
            "offset": result.offsets[buffer.name] + part.offset,
            "bytes": part.nbytes,
            "first": part.first,
            "last": part.last,
        }
        for buffer in buffers
        for part in buffer.pieces
    ]
    return ArenaPlan(offsets, workspaces, result.size, result.lower_bound, inplace, picture)


def _workspace(region: Region, name: str) -> str:
    return f"{region.name}/t:{name}"


def _workspace_buffers(region: Region, kernel: Kernel, span: tuple[int, int]) -> list[Buffer]:
    """Workspaces live from the first stage that takes them to the last one."""
    buffers = []
    for name, nbytes in kernel.workspaces.items():
        first, last = _touched(kernel, f"t:{name}", span)
        buffers.append(Buffer(_workspace(region, name), nbytes, first, last))
    return buffers


def _touched(kernel: Kernel, ref: str, span: tuple[int, int]) -> tuple[int, int]:
    """First and last step at which a stage takes ``ref``; the whole region if none does."""
    steps = [span[0] + i for i, stage in enumerate(kernel.stages) if ref in stage.args]
    return (steps[0], steps[-1]) if steps else span


def _pieces(
    regions: Sequence[Region],
    kernels: Mapping[str, Kernel],
    slots: Slots,
    roots: Mapping[str, int],
) -> tuple[dict[str, list[Part]], dict[str, tuple[int, int]]]:
    """Parts of every root with their lifetimes, and the steps of every region."""
    writes: dict[str, list[_Use]] = {name: [] for name in roots}
    reads: dict[str, list[_Use]] = {name: [] for name in roots}
    spans: dict[str, tuple[int, int]] = {}
    step = 0
    for region in regions:
        kernel = kernels[region.name]
        span = (step, step + max(len(kernel.stages), 1) - 1)
        step = span[1] + 1
        spans[region.name] = span
        for table, values in ((reads, region.inputs), (writes, region.outputs)):
            for value in values:
                root, begin = slots[value.name]
                if root in table and value.type.nbytes:
                    first, last = _touched(kernel, value.name, span)
                    end = begin + value.type.nbytes
                    table[root].append(_Use(value.name, begin, end, first, last))
    return {root: _cut(writes[root], reads[root]) for root in roots}, spans


def _cut(writes: Sequence[_Use], reads: Sequence[_Use]) -> list[Part]:
    """Cut each written range where the last use of its bytes changes."""
    parts: list[Part] = []
    for write in writes:
        uses = [r for r in reads if r.begin < write.end and write.begin < r.end]
        inner = {p for r in uses for p in (r.begin, r.end) if write.begin < p < write.end}
        points = sorted(inner | {write.begin, write.end})
        start = len(parts)
        for begin, end in pairwise(points):
            last = max([r.last for r in uses if r.begin <= begin and end <= r.end] + [write.last])
            previous = parts[-1] if len(parts) > start else None
            if previous is not None and previous.last == last:
                parts[-1] = replace(previous, nbytes=end - previous.offset)
            else:
                parts.append(Part(begin, end - begin, write.first, last))
    return parts


class _Groups:
    """Roots merged by in-place results; every root has a home and a shift in it."""

    def __init__(self, parts: dict[str, list[Part]], sizes: dict[str, int]) -> None:
        self.parts = parts
        self.sizes = sizes
        self.roots = frozenset(sizes)
        self.moved: dict[str, tuple[str, int]] = {}

    def home(self, root: str) -> tuple[str, int]:
        """Group that a root belongs to, and its byte offset there."""
        shift = 0
        while root in self.moved:
            root, step = self.moved[root]
            shift += step
        return root, shift

    def merge(
        self,
        regions: Sequence[Region],
        kernels: Mapping[str, Kernel],
        slots: Slots,
        spans: Mapping[str, tuple[int, int]],
    ) -> list[tuple[str, str, str]]:
        """Merge every in-place pair that is safe; returns (region, input, output)."""
        done = []
        for region in regions:
            sizes = {v.name: v.type.nbytes for v in (*region.inputs, *region.outputs)}
            copy = is_copy(region)
            pairs = kernels[region.name].inplace
            if copy:
                pairs = ((region.inputs[0].name, region.outputs[0].name),)
            for source, result in pairs:
                if (
                    source in sizes  # not a constant
                    and sizes[source] == sizes[result] > 0
                    and slots[source][0] in self.roots
                    and slots[result][0] in self.roots
                    and not self._read_twice(region, source, slots, sizes)
                    and self._join(
                        slots[source], slots[result], sizes[source], spans[region.name], copy
                    )
                ):
                    done.append((region.name, source, result))
        return done

    def _read_twice(
        self, region: Region, source: str, slots: Slots, sizes: Mapping[str, int]
    ) -> bool:
        """Whether the region reads bytes of ``source`` under another name as well."""
        begin = self._place(slots[source])
        for value in region.inputs:
            other = self._place(slots[value.name])
            if value.name != source and other[0] == begin[0]:
                apart = other[1] - begin[1]
                if -sizes[value.name] < apart < sizes[source]:
                    return True
        return False

    def _place(self, slot: tuple[str, int]) -> tuple[str, int]:
        home, shift = self.home(slot[0])
        return home, slot[1] + shift

    def _join(
        self,
        source: tuple[str, int],
        result: tuple[str, int],
        nbytes: int,
        span: tuple[int, int],
        copy: bool,
    ) -> bool:
        """Move one group into the other so that ``result`` covers ``source``, if allowed."""
        home_a, at_a = self._place(source)
        home_b, at_b = self._place(result)
        if home_a == home_b:
            return False
        whole_a = self.sizes[home_a] == nbytes
        whole_b = self.sizes[home_b] == nbytes
        shift = at_a - at_b  # of group b inside group a
        if not (whole_a or whole_b or copy) or not self._compatible(
            self.parts[home_a], self.parts[home_b], shift, (at_a, at_a + nbytes), span, copy
        ):
            return False
        if shift >= 0:
            self._move(home_b, home_a, shift)
        else:
            self._move(home_a, home_b, -shift)
        return True

    @staticmethod
    def _compatible(
        old: Sequence[Part],
        new: Sequence[Part],
        shift: int,
        shared: tuple[int, int],
        span: tuple[int, int],
        copy: bool,
    ) -> bool:
        """Whether no part of ``old`` is overwritten while it is needed.

        Parts may overlap in bytes and time only inside the region of the pair:
        where the old one lies within the input, ends and the new one begins. The
        input of a copy need not end there: the bytes stay what they are.
        """
        for p in old:
            for q in new:
                begin = max(p.offset, q.offset + shift)
                end = min(p.offset + p.nbytes, q.offset + shift + q.nbytes)
                if begin >= end or p.last < q.first or q.last < p.first:
                    continue
                handed_over = p.first < span[0] <= q.first <= span[1] and (
                    copy or p.last <= span[1]
                )
                if not (handed_over and shared[0] <= begin and end <= shared[1]):
                    return False
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
