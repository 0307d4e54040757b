"""Where every tensor of a compiled model is stored, when, and which of the user's tensors it is.

``effc compare`` reads the tensors of a running artifact through the profiling hook: after call
``step`` the bytes of a value are at a known place, and no earlier and perhaps not much later.
Values inside regions are never stored. For 8-bit tensors the record says what real numbers they
stand for: ``scale * (q - zero_point)``, in quads or row by row (docs/QUANTIZATION.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from effc.kernels.region import Value
from effc.passes.origin import origin_of
from effc.program import Pointer, Port, Program, StorageClass

if TYPE_CHECKING:
    import onnx

    from effc.regions import Graph
    from effc.view_plan import ViewPlan

__all__ = ["Grid", "StoredValue", "graded_ports", "stored_values"]


@dataclass(frozen=True)
class Grid:
    """What an 8-bit tensor of the model stands for.

    Attributes:
        real: Name of the float tensor.
        scale: Of the whole tensor.
        zero: Zero point in ``dtype``.
        dtype: ``int8`` or ``uint8``, as in the model.
    """

    real: str
    scale: float
    zero: int
    dtype: str


@dataclass(frozen=True)
class StoredValue:
    """A tensor that is in memory at some time of an inference.

    Attributes:
        name: In the compiled graph.
        onnx: The tensor of the compiled model that it stands for, if known.
        real: The float tensor that this one was rounded from, if it is 8 bits or follows such.
        dtype, shape: As stored.
        layout: ``row-major`` or ``quads``.
        scale, zero_point: Of an 8-bit tensor with known meaning.
        step: It is complete after this call; -1 for inputs.
        place: Where it is.
    """

    name: str
    onnx: str | None
    real: str | None
    dtype: str
    shape: tuple[int, ...]
    layout: str
    scale: float | None
    zero_point: int | None
    step: int
    place: Pointer


def stored_values(
    graph: Graph, views: ViewPlan, program: Program, model: onnx.ModelProto
) -> tuple[StoredValue, ...]:
    """All tensors that a program stores, by the time they are complete.

    Args:
        graph: The model as regions.
        views: What became of them.
        program: As ``build_program`` made it.
        model: The imported model: shapes, scales and zero points by its own names.
    """
    places = cast("Mapping[str, Pointer]", program.metadata["places"])
    known = _Model(model)
    values = {v.name: v for v in graph.inputs}
    values |= {v.name: v for region in graph.regions for v in region.outputs}
    found = []
    for name, value in values.items():
        place = places.get(name)
        if place is None or place.storage is StorageClass.WEIGHTS or not value.type.nbytes:
            continue
        step = -1
        if place.storage is not StorageClass.INPUT:
            step = _complete(value, views, program)
            if step < 0:
                continue
        found.append(known.stored(value, place, step))
    return tuple(sorted(found, key=lambda v: v.step))


def graded_ports(
    ports: Sequence[Port], storage: StorageClass, values: Sequence[StoredValue]
) -> tuple[Port, ...]:
    """Inputs or outputs with scale and zero point where they are quantized."""
    known = {
        (value.place.index, value.dtype): value
        for value in values
        if value.place.storage is storage and value.place.offset == 0 and value.scale is not None
    }
    found = [known.get((number, port.type.dtype)) for number, port in enumerate(ports)]
    return tuple(
        port if v is None else replace(port, scale=v.scale, zero_point=v.zero_point)
        for port, v in zip(ports, found, strict=True)
    )


def _complete(value: Value, views: ViewPlan, program: Program) -> int:
    """The last call that writes bytes of a value, -1 if none does."""
    ends = cast("Mapping[str, int]", program.metadata["ends"])
    slot = views.slots[value.name]
    steps = [-1]
    for region in views.regions:
        for other in region.outputs:
            at = views.slots[other.name]
            apart = at.offset - slot.offset
            if at.root == slot.root and -other.type.nbytes < apart < value.type.nbytes:
                steps.append(ends[region.name] - 1)
    return max(steps)


class _Model:
    """Names, shapes and grids of the tensors of an imported model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        infos = [*graph.input, *graph.value_info, *graph.output]
        self.origins = {v.name: origin_of(v) for v in infos}
        self.shapes = {
            origin_of(v): tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in infos
        }
        self.grids: dict[str, Grid] = {}
        self.real: dict[str, str] = {}  # float tensor that one stands for
        constants = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.domain:
                self._quantizer(node, constants)

    def _quantizer(self, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
        import onnx

        x, *parameters = node.input
        if not parameters or any(name and name not in constants for name in parameters):
            return
        scale, *zeros = (onnx.numpy_helper.to_array(constants[n]) for n in parameters if n)
        zero = zeros[0] if zeros else np.zeros((), np.uint8)
        if scale.size != 1 or x in constants or zero.dtype.name not in ("int8", "uint8"):
            return
        quantize = node.op_type == "QuantizeLinear"
        x, y = (self.origins.get(name, name) for name in (x, node.output[0]))
        integers, real = (y, self.real.get(x, x)) if quantize else (x, y)
        grid = Grid(real, float(scale.item()), int(zero.item()), zero.dtype.name)
        grid = self.grids.setdefault(integers, grid)
        if not quantize:
            self.real[y] = grid.real

    def stored(self, value: Value, place: Pointer, step: int) -> StoredValue:
        """The record of a value of the compiled graph."""
        name = value.origin
        shape = self.shapes.get(name or "")
        quads = shape is not None and value.shape == _quads(shape)
        grid = self.grids.get(name or "") if value.dtype in ("int8", "uint8") else None
        shift = 0
        if grid is not None and grid.dtype != value.dtype:
            shift = 128 if value.dtype == "uint8" else -128
        return StoredValue(
            name=value.name,
            onnx=name,
            real=grid.real if grid is not None else self.real.get(name or ""),
            dtype=value.dtype,
            shape=value.shape,
            layout="quads" if quads else "row-major",
            scale=None if grid is None else grid.scale,
            zero_point=None if grid is None else grid.zero + shift,
            step=step,
            place=place,
        )


def _quads(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a feature map ``[N, C, ...]`` in quads."""
    if len(shape) < 3:
        return ()
    return (shape[0], -(-shape[1] // 4), *shape[2:], 4)
