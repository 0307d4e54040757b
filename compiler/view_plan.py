"""Which tensors share bytes by what operators mean: views, concatenations, copies.

Known before kernels are chosen: :func:`plan_views` takes the regions of the graph, drops those that
only give existing bytes a new shape (``effc.views``), lets the operands of a concatenation be
written straight into its result, inserts copies where a tensor must also be elsewhere (a model
output that is a model input, a value concatenated twice ...) and orders what is left
(``effc.order``).

A copy is an ordinary region with the one operator ``Identity`` over flat
tensors; it gets its kernel like any other region.

Every value belongs to a *root*: a model input, a model output, a tensor of the
weights or a buffer of the arena, at a byte offset in it. Roots in the arena
start at multiples of 64 (of 16 on microcontrollers); a value inside a root has
only the alignment of its elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from effc.errors import InternalError
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.order import order_regions
from effc.program import StorageClass
from effc.views import VIEW_OPS, concat_offsets, view_offsets

__all__ = ["Root", "Slot", "ViewPlan", "plan_views"]


@dataclass(frozen=True)
class Slot:
    """Place of a value: byte offset in a root."""

    root: str
    offset: int


@dataclass
class Root:
    """Memory that values live in.

    Attributes:
        nbytes: Its size.
        storage: Arena, or memory of the caller or of the weights.
        index: Position among the model's inputs or outputs.
        const: Contents when it belongs to the weights.
    """

    nbytes: int
    storage: StorageClass = StorageClass.ARENA
    index: int = 0
    const: np.ndarray | None = None


@dataclass
class ViewPlan:
    """Result of :func:`plan_views`.

    Attributes:
        regions: What needs a kernel, in execution order.
        slots: Place of every runtime value by name.
        roots: Memory by name.
        notes: One sentence per view operator and copy, for the report.
    """

    regions: tuple[Region, ...] = ()
    slots: dict[str, Slot] = field(default_factory=dict)
    roots: dict[str, Root] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def places(self) -> dict[str, tuple[str, int]]:
        """(root, byte offset) of every runtime value."""
        return {name: (slot.root, slot.offset) for name, slot in self.slots.items()}

    @property
    def arena_roots(self) -> dict[str, int]:
        """Bytes of every root that lies in the arena."""
        return {
            name: root.nbytes
            for name, root in self.roots.items()
            if root.storage is StorageClass.ARENA
        }


def plan_views(
    regions: Sequence[Region], inputs: Sequence[Value], outputs: Sequence[Value]
) -> ViewPlan:
    """Decide what is a view, what is copied, and in which order the rest runs.

    Args:
        regions: In a valid execution order; regions whose only operator is in
            ``effc.views.VIEW_OPS`` may disappear.
        inputs: Model inputs; their memory is only read.
        outputs: Model outputs in order, possibly inputs, constants or duplicates.

    Returns:
        The plan; its regions are what kernels must be built for.

    Raises:
        InternalError: A value is read before any region writes it.
    """
    return _ViewPlanner(regions, inputs, outputs).run()


class _ViewPlanner:
    """State of one :func:`plan_views`: values find their root through ``links``."""

    def __init__(
        self, regions: Sequence[Region], inputs: Sequence[Value], outputs: Sequence[Value]
    ) -> None:
        self.source = list(regions)
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.plan = ViewPlan()
        self.values: dict[str, Value] = {}
        self.links: dict[str, Slot] = {}
        self.written: dict[str, int] = {}  # position of the region that writes a root
        self.names = {r.name for r in regions}
        self.value_names = {v.name for r in regions for op in r.ops for v in op.outputs}

    def run(self) -> ViewPlan:
        for position, value in enumerate(self.inputs):
            self._add_root(value, Root(value.type.nbytes, StorageClass.INPUT, position))
        concats: list[tuple[int, Region]] = []
        kept: list[tuple[int, Region]] = []  # (position in the source, region)
        for position, region in enumerate(self.source):
            self._read(region)
            for value in region.outputs:
                self._add_root(value, Root(value.type.nbytes))
                self.written[value.name] = position
            if not self._try_view(region):
                is_concat = len(region.ops) == 1 and region.ops[0].op_type == "Concat"
                (concats if is_concat else kept).append((position, region))
        end = len(self.source)
        for index, value in enumerate(self.outputs):
            if (copy := self._claim_output(index, value)) is not None:
                kept.append((end, copy))
        for position, region in concats:
            parts = self._try_concat(region)
            if parts is not None:
                kept.extend((position, part) for part in parts)
            else:
                kept.extend(self._inserts(position, region))
        kept.sort(key=lambda item: item[0])  # stable
        for name in self.values:
            self.plan.slots[name] = self._find(name)
        self.plan.roots = {
            name: root for name, root in self.plan.roots.items() if name not in self.links
        }
        self.plan.regions = tuple(
            order_regions(
                [region for _, region in kept],
                self.plan.places,
                set(self.plan.arena_roots),
            ).regions
        )
        return self.plan

    def _add_root(self, value: Value, root: Root) -> None:
        self.values[value.name] = value
        self.plan.roots[value.name] = root

    def _read(self, region: Region) -> None:
        """Check the inputs of a region; constants read at run time join the weights."""
        for value in region.inputs:
            if value.name in self.values:
                continue
            if value.const is None:
                raise InternalError(
                    f"value {value.name!r} is read before it is written", where=region.name
                )
            self._add_const(value)

    def _add_const(self, value: Value) -> None:
        assert value.const is not None
        self._add_root(value, Root(value.type.nbytes, StorageClass.WEIGHTS, const=value.const))

    def _find(self, name: str) -> Slot:
        """Root and offset of a value."""
        offset = 0
        while name in self.links:
            link = self.links[name]
            name, offset = link.root, offset + link.offset
        return Slot(name, offset)

    def _whole(self, name: str) -> bool:
        """Whether the value is all of its root."""
        slot = self._find(name)
        return slot.offset == 0 and self._root(name).nbytes == self.values[name].type.nbytes

    def _root(self, name: str) -> Root:
        return self.plan.roots[self._find(name).root]

    def _try_view(self, region: Region) -> bool:
        """Let the outputs of a one-operator region alias its first input, if they can."""
        if len(region.ops) != 1 or region.ops[0].op_type not in VIEW_OPS - {"Concat"}:
            return False
        op = region.ops[0]
        offsets = view_offsets(op)
        if offsets is None:
            return False
        base = op.inputs[0]
        assert base is not None
        if base.name not in self.values:
            self._add_const(base)
        for value, offset in zip(op.outputs, offsets, strict=True):
            self.values.setdefault(value.name, value)
            self.links[value.name] = Slot(base.name, offset)
        self.plan.notes.append(f"{op.name or region.name}: {op.op_type} is a view of {base.name}")
        return True

    def _claim_output(self, index: int, value: Value) -> Region | None:
        """Give a model output its place; a copy when its bytes must also be elsewhere."""
        if value.name not in self.values:
            if value.const is None:
                raise InternalError(f"model output {value.name!r} is never written")
            self._add_const(value)
        root = self._root(value.name)
        if root.storage is StorageClass.ARENA and self._whole(value.name):
            root.storage, root.index = StorageClass.OUTPUT, index
            return None
        target = self._new_value(f"{value.name}.out{index}", value.type)
        self._add_root(target, Root(value.type.nbytes, StorageClass.OUTPUT, index))
        return self._copy(value, target, f"output {index} ({value.name})")

    def _try_concat(self, region: Region) -> list[Region] | None:
        """Place the operands of a concatenation inside its result.

        Returns:
            Copies for the operands that must stay elsewhere, or ``None`` if the
            concatenation needs its kernel.
        """
        op = region.ops[0]
        offsets = concat_offsets(op)
        if offsets is None:
            return None
        result = op.outputs[0]
        direct = 0
        pending: list[tuple[Value, int]] = []
        for value, offset in zip(op.inputs, offsets, strict=True):
            assert value is not None
            if value.type.nbytes == 0:
                continue
            if value.name not in self.values:
                self._add_const(value)
            if self._root(value.name).storage is StorageClass.ARENA and self._whole(value.name):
                self.links[self._find(value.name).root] = Slot(result.name, offset)
                direct += 1
            else:
                pending.append((value, offset))
        if not direct:
            return None
        copies = []
        for number, (value, offset) in enumerate(pending):
            target = self._new_value(f"{result.name}.part{number}", value.type)
            self.values[target.name] = target
            self.links[target.name] = Slot(result.name, offset)
            copies.append(self._copy(value, target, f"operand of {op.name or region.name}"))
        self.plan.notes.append(
            f"{op.name or region.name}: {direct} operands are written into the result of Concat"
        )
        return copies

    def _inserts(self, position: int, region: Region) -> list[tuple[int, Region]]:
        """A region per operand of a concatenation whose operands lie interleaved in the result.

        Each can run as soon as its operand is there, which then may be dropped.
        """
        op = region.ops[0]
        result = op.outputs[0]
        axis = int(op.attrs.get("axis", 0)) % len(result.shape)
        found, start = [], 0
        for number, value in enumerate(op.inputs):
            assert value is not None
            attrs = {"axis": axis, "start": start}
            start += value.shape[axis]
            if value.type.nbytes == 0:
                continue
            name = _unused(f"{result.name}.insert{number}", self.value_names | self.values.keys())
            part = Value(name, result.type)
            self.values[name] = part
            self.links[name] = Slot(result.name, 0)
            insert = Op("Insert", (value,), (part,), attrs, op.name, DOMAIN)
            label = _unused(f"{region.name}_{number}", self.names)
            self.names.add(label)
            inputs = () if value.const is not None else (value,)
            at = self.written.get(self._find(value.name).root, 0) if inputs else position
            found.append((at, Region(label, (insert,), insert, inputs, (part,))))
        self.plan.notes.append(f"{op.name or region.name}: operands are copied one by one")
        return found

    def _new_value(self, wanted: str, kind: TensorType) -> Value:
        name = _unused(wanted, self.value_names | self.values.keys())
        return Value(name, TensorType((kind.size,), kind.dtype))

    def _copy(self, source: Value, target: Value, why: str) -> Region:
        """Region that copies the bytes of ``source`` to ``target``."""
        flat = Value(source.name, target.type)
        name = _unused("copy_" + re.sub(r"\W", "_", target.name, flags=re.ASCII), self.names)
        self.names.add(name)
        self.plan.notes.append(f"{name}: copies {source.name}, {why}")
        op = Op("Identity", (flat,), (target,), name=name)
        return Region(name, (op,), op, (flat,), (target,))


def _unused(wanted: str, taken: set[str]) -> str:
    """``wanted``, with a number behind it if it is taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name
