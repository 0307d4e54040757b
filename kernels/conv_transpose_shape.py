"""Geometry of a transposed convolution: phases, taps in order of use, layouts of data and weights.

See ``conv_transpose``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from effc.kernels.plane import Plane
from effc.kernels.region import Op
from effc.kernels.window import Axis

__all__ = [
    "Phases",
    "TransposeShape",
    "pack",
    "padded_plane",
    "phase_weights",
    "sequence",
    "shape_of",
    "tile_weights",
]


@dataclass(frozen=True)
class Phases:
    """One spatial axis: which taps, at which input shifts, make each output phase."""

    size: int
    out: int
    kernel: int
    stride: int
    dilation: int
    before: int

    @cached_property
    def count(self) -> int:
        """Positions per phase: output ``stride * q + phase`` for ``q < count``."""
        return -(-self.out // self.stride)

    def taps(self, phase: int) -> list[tuple[int, int]]:
        """(kernel tap, input shift): output q of the phase reads input ``q + shift``."""
        found = []
        for k in range(self.kernel):
            distance = phase + self.before - k * self.dilation
            if distance % self.stride == 0:
                found.append((k, distance // self.stride))
        return found

    @cached_property
    def window(self) -> Axis:
        """The input window that covers the taps of all phases."""
        shifts = [s for phase in range(self.stride) for _, s in self.taps(phase)]
        low, high = min([0, *shifts]), max([0, *shifts])
        return Axis(self.size, self.count, high - low + 1, before=-low)


@dataclass(frozen=True)
class TransposeShape:
    """Geometry; ``cin`` and ``cout`` count one group."""

    batch: int
    groups: int
    cin: int
    cout: int
    y: Phases
    x: Phases

    @property
    def view(self) -> tuple[int, int, int]:
        return (self.batch, self.groups * self.cout, self.y.out * self.x.out)


def shape_of(op: Op) -> TransposeShape:
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    rank = len(data.shape) - 2
    out = op.outputs[0].shape[2:]
    strides = list(op.attrs.get("strides") or [1] * rank)
    dilations = list(op.attrs.get("dilations") or [1] * rank)
    extra = list(op.attrs.get("output_padding") or [0] * rank)
    axes = []
    for i in range(rank):
        size, kernel = data.shape[2 + i], weight.shape[2 + i]
        reach = strides[i] * (size - 1) + extra[i] + (kernel - 1) * dilations[i] + 1
        before = _pad_before(op, i, reach - out[i])
        axes.append(Phases(size, out[i], kernel, strides[i], dilations[i], before))
    y = axes[0] if rank == 2 else Phases(1, 1, 1, 1, 1, 0)
    groups = int(op.attrs.get("group", 1))
    return TransposeShape(
        data.shape[0], groups, data.shape[1] // groups, weight.shape[1], y, axes[-1]
    )


def _pad_before(op: Op, axis: int, total: int) -> int:
    """Output elements cut off at the beginning; ``total`` at both ends together."""
    mode = op.attrs.get("auto_pad", "NOTSET")
    if "output_shape" not in op.attrs and mode == "NOTSET":
        pads = op.attrs.get("pads")
        return int(pads[axis]) if pads else 0
    if mode == "VALID":
        return 0
    total = max(total, 0)
    return total // 2 if mode == "SAME_UPPER" else total - total // 2


def sequence(shape: TransposeShape, phase: int) -> list[tuple[int, int, int, int, int]]:
    """Products of one row of phases in order of use: (ky, kx, dy, dx, column phase).

    Ordered by shift, so that products with the same input vector are neighbours.
    """
    found = [
        (ky, kx, dy, dx, column)
        for ky, dy in shape.y.taps(phase)
        for column in range(shape.x.stride)
        for kx, dx in shape.x.taps(column)
    ]
    return sorted(found, key=lambda item: (item[2], item[3], item[4], item[0], item[1]))


def phase_weights(shape: TransposeShape, phase: int) -> int:
    """Weights of one output channel for one row of phases."""
    return len(sequence(shape, phase)) * shape.cin


def tile_weights(shape: TransposeShape) -> int:
    """Weights of one output channel."""
    return sum(phase_weights(shape, phase) for phase in range(shape.y.stride))


def pack(shape: TransposeShape, weight: np.ndarray, rows: int) -> np.ndarray:
    """[groups * cin, cout, kh, kw] to [groups][tile][row phase][cin][product][rows]."""
    w = weight.reshape(shape.groups, shape.cin, shape.cout // rows, rows, shape.y.kernel, -1)
    parts = []
    for phase in range(shape.y.stride):
        steps = sequence(shape, phase)
        if steps:
            picked = np.stack([w[..., ky, kx] for ky, kx, *_ in steps], axis=3)
            parts.append(picked.swapaxes(1, 2).reshape(shape.groups, shape.cout // rows, -1))
    packed = np.concatenate(parts, axis=2) if parts else np.zeros((1,), weight.dtype)
    return np.ascontiguousarray(packed).reshape(-1)


def padded_plane(shape: TransposeShape, lanes: int) -> Plane:
    vectors = -(-shape.x.out // (lanes * shape.x.stride))
    slack = max(vectors * lanes - shape.x.count, 0)
    return Plane(shape.y.window, shape.x.window, lanes, shape.y.count, slack)
