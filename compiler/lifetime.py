"""From kernels in order to buffers of the arena.

In: regions in execution order with their kernels, and the place of every value
inside its root (``effc.storage``). Out: an offset for each root and workspace.

Time is counted in stages, so an input that only the first stage of a kernel
reads makes room for a result that only its last stage writes. A root is cut
into pieces wherever the last use differs: a slice that stays alive does not
keep the rest, and an operand of a concatenation does not reserve the room of
the others before they are written. Results share memory with inputs that die where kernels allow it
(``effc.merging``). Where one worker runs everything (``serial``), the scratch of a stage is a
buffer like any other, which lives as long as the stage runs.

Plans are made with and without merged roots; where the better one is above the lower bound
(``effc.arena_bound``) and there are few roots, an integer program looks for the smallest
(``effc.integer_plan``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from effc.arena_bound import Bound, lower_bound
from effc.integer_plan import solve
from effc.kernels.region import Region
from effc.kernels.template import Kernel
from effc.memory_plan import Buffer, Part, plan
from effc.merging import Groups, Pair, pairs_of
from effc.placement import Problem

__all__ = ["ArenaPlan", "plan_arena"]

_CHOICES = 1_500  # of an integer program, where memory is scarce: seconds
_CHOICES_OF_LARGE = 400

Slots = Mapping[str, tuple[str, int]]


@dataclass
class ArenaPlan:
    """Where the arena's contents lie.

    Attributes:
        offsets: Byte offset by root.
        workspaces: Byte offset by (region, workspace); scratch is called ``scratch:STAGE``.
        size: Bytes, a multiple of the alignment.
        bound: No plan for this order is smaller than its bytes, and at which step that is so.
        proven: Whether no plan for this order is smaller than this one.
        inplace: Triples (region, input, output) that share memory.
        picture: Rows for a report: name, offset, bytes, first and last step.
    """

    offsets: dict[str, int]
    workspaces: dict[tuple[str, str], int]
    size: int
    bound: Bound
    proven: bool
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


def plan_arena(
    regions: Sequence[Region],
    kernels: Mapping[str, Kernel],
    slots: Slots,
    roots: Mapping[str, int],
    serial: bool = False,
    alignment: int = 64,
) -> ArenaPlan:
    """Plan the arena.

    Args:
        regions: In execution order.
        kernels: By region name.
        slots: (root, byte offset) of every value.
        roots: Bytes of every root that lies in the arena.
        serial: One worker runs all units in order.
        alignment: Of roots and workspaces.
    """
    parts, spans = _pieces(regions, kernels, slots, roots)
    pairs = pairs_of(regions, kernels, slots, spans, roots)
    own = [
        buffer
        for region in regions
        for buffer in _workspace_buffers(region, kernels[region.name], spans[region.name], serial)
    ]
    problem = Problem(parts, dict(roots), own, pairs, alignment)
    bound = lower_bound(problem, spans)
    most = _CHOICES if serial else _CHOICES_OF_LARGE
    best, proven = _place(problem, {r.name: r for r in regions}, slots, bound.nbytes, most)
    offsets = {name: best.get(name, 0) for name in roots}
    workspaces = {
        (region.name, name): best[_workspace(region, name)]
        for region in regions
        for name in _own_names(kernels[region.name], serial)
    }
    picture: list[dict[str, int | str]] = [
        {
            "name": name,
            "offset": best[name] + part.offset,
            "bytes": part.nbytes,
            "first": part.first,
            "last": part.last,
        }
        for name, pieces in problem.pieces().items()
        for part in pieces
    ]
    size = problem.size(best)
    return ArenaPlan(offsets, workspaces, size, bound, proven, _shared(pairs, offsets), picture)


def _place(
    problem: Problem, regions: Mapping[str, Region], slots: Slots, bound: int, most: int
) -> tuple[dict[str, int], bool]:
    """Offsets of roots and workspaces, and whether no smaller arena exists."""
    best: dict[str, int] | None = None
    for offsets in _plans(problem, regions, slots):
        if best is None or problem.size(offsets) < problem.size(best):
            best = offsets
        if problem.size(best) <= bound:
            return best, True
    assert best is not None
    return solve(problem, best, bound, most)


def _plans(
    problem: Problem, regions: Mapping[str, Region], slots: Slots
) -> Iterator[dict[str, int]]:
    """Plans by first fit: pairs at the distance at which most is shared, at any, only copies."""
    for pairs in (problem.pairs, [p for p in problem.pairs if p.copy]):
        groups = Groups(problem.parts, problem.roots)
        groups.merge(pairs, regions, slots)
        result = plan([*groups.buffers(), *problem.own], problem.alignment)
        offsets = {buffer.name: result.offsets[buffer.name] for buffer in problem.own}
        for name in problem.roots:
            home, shift = groups.home(name)
            offsets[name] = result.offsets[home] + shift
        yield offsets
        if pairs is problem.pairs and len(problem.pairs) > sum(p.copy for p in problem.pairs):
            apart = plan(problem.buffers(), problem.alignment, problem.conflicts()).offsets
            yield {**dict.fromkeys(problem.pieces(), 0), **apart}


def _shared(pairs: Sequence[Pair], offsets: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """The pairs that have bytes in common in a plan."""
    found = []
    for pair in pairs:
        (source, a), (result, b) = pair.source_slot, pair.result_slot
        begin, end = pair.shared(offsets[result] + b - offsets[source] - a)
        if begin < end:
            found.append((pair.region, pair.source, pair.result))
    return found


def _workspace(region: Region, name: str) -> str:
    return f"{region.name}/t:{name}"


def _own_names(kernel: Kernel, serial: bool) -> list[str]:
    """Workspaces of a kernel, and the scratch of its stages if that is planned."""
    scratch = [f"scratch:{i}" for i, stage in enumerate(kernel.stages) if "scratch" in stage.args]
    return [*kernel.workspaces, *(scratch if serial else ())]


def _workspace_buffers(
    region: Region, kernel: Kernel, span: tuple[int, int], serial: bool
) -> list[Buffer]:
    """Workspaces live from the first stage that takes them to the last one."""
    buffers = []
    for name, nbytes in kernel.workspaces.items():
        first, last = _touched(kernel, f"t:{name}", span)
        buffers.append(Buffer(_workspace(region, name), nbytes, first, last))
    for i, stage in enumerate(kernel.stages):
        if serial and "scratch" in stage.args:
            name = _workspace(region, f"scratch:{i}")
            buffers.append(Buffer(name, stage.scratch, span[0] + i, span[0] + i))
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
