"""Where every tensor lives: in-place results, arena offsets, packed weights; the list of calls.

:func:`build_program` takes the kernels of the regions that ``effc.view_plan`` left, merges in-place
pairs, plans the arena (``effc.memory_plan``), packs the weights and lists the calls. Aliasing must
be known before kernels are chosen, lifetimes only afterwards: so these are two steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effc.joint import best_of_orders
from effc.kernels.region import Region, Value
from effc.kernels.template import Kernel
from effc.lifetime import ArenaPlan, plan_arena
from effc.memory_plan import align_up
from effc.merging import is_copy
from effc.order import Order, order_regions
from effc.order_graph import build_graph
from effc.packed_weights import PackedWeights
from effc.program import Call, Pointer, Port, Program, StorageClass
from effc.view_plan import ViewPlan

__all__ = ["build_program"]

_ALIGNMENT = 64
_SERIAL_ALIGNMENT = 16  # of microcontrollers, whose vectors are at most that long


def build_program(
    name: str,
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    regions: Sequence[Region],
    kernels: Mapping[str, Kernel],
    symbols: Mapping[tuple[str, int], str],
    view_plan: ViewPlan,
    serial: bool = False,
) -> Program:
    """Order the regions for their kernels, and give every pointer of every stage its address.

    Args:
        name: C identifier prefix of the model.
        inputs, outputs: Model inputs and outputs, as given to :func:`plan_views`.
        regions: ``view_plan.regions``, or a permutation of them that is a valid order; reordered
            if the kernels' workspaces and results in place make another order smaller.
        kernels: Kernel of each region by region name.
        symbols: C symbol of each stage by (region name, number of the stage).
        view_plan: Result of :func:`plan_views`.
        serial: One worker runs everything (microcontrollers): scratch is part of the arena, and
            results may lie over inputs that later units still read from.

    Returns:
        The program. For reports, ``metadata`` holds ``regions`` (in execution order), ``peak`` (the
        step that needs most, see ``effc.arena_bound``, and what is proven), ``memory`` (pieces of
        the arena: name, offset, bytes, first and last call), ``views`` (what became of view
        operators, and why copies exist) and ``inplace`` (region, input, output that share memory);
        for traces ``places`` (pointer of every runtime value) and ``ends`` (number of calls up to
        the end of each region).
    """
    alignment = _SERIAL_ALIGNMENT if serial else _ALIGNMENT
    weights = PackedWeights(alignment)
    placed = _placed_roots(view_plan, weights)
    regions, arena, peak = _plan_memory(regions, kernels, view_plan, serial, alignment)
    slots = view_plan.places
    addresses = _Addresses(slots, placed, arena, serial)
    calls: list[Call] = []
    ends: dict[str, int] = {}
    for region in regions:
        kernel = kernels[region.name]
        packed = {key: weights.add(array) for key, array in kernel.weights.items()}
        for number, stage in enumerate(kernel.stages):
            pointers = tuple(addresses.of(ref, region, number, packed) for ref in stage.args)
            done_already = is_copy(region) and len(set(pointers)) == 1
            if stage.extent > 0 and not done_already:
                calls.append(
                    Call(
                        symbols[region.name, number],
                        pointers,
                        stage.extent,
                        region.name,
                        tuple(op.name for op in region.ops if op.name),
                        stage.bounds,
                    )
                )
        ends[region.name] = len(calls)
    scratch = [0 if serial else s.scratch for k in kernels.values() for s in k.stages]
    return Program(
        name,
        tuple(Port(v.name, v.type) for v in inputs),
        tuple(Port(v.name, v.type) for v in outputs),
        tuple(calls),
        weights.blob(),
        arena.size,
        arena.bound.nbytes,
        align_up(max(scratch, default=0), _ALIGNMENT),
        {
            "regions": tuple(regions),
            "peak": peak,
            "memory": arena.picture,
            "views": list(view_plan.notes),
            "inplace": [list(pair) for pair in arena.inplace],
            "places": {value: addresses.of_value(value) for value in slots},
            "ends": ends,
        },
        weight_blocks=tuple((offset, data.size) for offset, data in weights.arrays),
    )


def _placed_roots(view_plan: ViewPlan, weights: PackedWeights) -> dict[str, Pointer]:
    """Roots outside the arena; constants join the weights."""
    placed: dict[str, Pointer] = {}
    for name, root in view_plan.roots.items():
        if root.const is not None:
            placed[name] = Pointer(StorageClass.WEIGHTS, 0, weights.add(root.const))
        elif root.storage is not StorageClass.ARENA:
            placed[name] = Pointer(root.storage, root.index)
    return placed


def _plan_memory(
    regions: Sequence[Region],
    kernels: Mapping[str, Kernel],
    view_plan: ViewPlan,
    serial: bool,
    alignment: int,
) -> tuple[Sequence[Region], ArenaPlan, dict[str, object]]:
    """The order that the regions run in, the arena, and what is known of its peak."""
    slots, roots = view_plan.places, view_plan.arena_roots
    order = order_regions(regions, slots, set(roots), kernels, serial)
    regions = order.regions

    def place(ordered: Sequence[Region]) -> ArenaPlan:
        return plan_arena(ordered, kernels, slots, roots, serial, alignment)

    arena = place(regions)
    optimal = order.proven and arena.size <= align_up(order.peak, alignment)
    if serial and order.proven and not optimal:
        graph = build_graph(regions, slots, set(roots), kernels, serial)
        regions, arena, optimal = best_of_orders(graph, regions, arena, place)
    return regions, arena, _peak(arena, order, optimal)


def _peak(arena: ArenaPlan, order: Order, optimal: bool) -> dict[str, object]:
    """What the manifest says about the largest step and about proofs."""
    return {
        "region": arena.bound.region,
        "step": arena.bound.step,
        "live": [{"name": name, "bytes": nbytes} for name, nbytes in arena.bound.live],
        "shared_bytes": arena.bound.shared,
        "order_bound_bytes": order.peak if order.proven else None,
        "order_proven": order.proven,
        "plan_proven": arena.proven,
        "optimal": optimal,
    }


@dataclass(frozen=True)
class _Addresses:
    """Where everything that stages refer to lies.

    Attributes:
        slots: (root, byte offset) of every value.
        placed: Roots outside the arena.
        arena: Offsets of the others, and of workspaces.
        serial: Whether scratch is part of the arena.
    """

    slots: Mapping[str, tuple[str, int]]
    placed: Mapping[str, Pointer]
    arena: ArenaPlan
    serial: bool

    def of(self, ref: str, region: Region, stage: int, packed: Mapping[str, int]) -> Pointer:
        """Address of one of ``Stage.args``; ``packed`` are the offsets of the kernel's weights."""
        if ref == "scratch" and not self.serial:
            return Pointer(StorageClass.SCRATCH)
        if ref.startswith("w:"):
            return Pointer(StorageClass.WEIGHTS, 0, packed[ref[2:]])
        if ref == "scratch" or ref.startswith("t:"):
            name = f"scratch:{stage}" if ref == "scratch" else ref[2:]
            return Pointer(StorageClass.ARENA, 0, self.arena.workspaces[region.name, name])
        return self.of_value(ref)

    def of_value(self, name: str) -> Pointer:
        """Address of a value."""
        root, offset = self.slots[name]
        if root in self.placed:
            base = self.placed[root]
            return Pointer(base.storage, base.index, base.offset + offset)
        return Pointer(StorageClass.ARENA, 0, self.arena.offsets[root] + offset)
