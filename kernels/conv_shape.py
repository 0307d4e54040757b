"""What a convolution computes and where its input elements lie.

``ConvShape`` is the operator's geometry for 1 to 3 spatial axes. ``Source``
is the layout that the product kernels read: either the input itself, or a copy
that is padded and split into stride phases. In both, output position
``(z, y, x)``, input channel ``c`` and kernel tap ``t`` meet at the flat offset

    c * channel + taps[t] + (z * extent[1] + y) * extent[2] + x

so that stride, dilation and padding are gone and a reduction index is one
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

from effc.kernels.region import DOMAIN, Op, Region

__all__ = ["ConvShape", "Source", "conv_refusal", "layout_of", "source_layout"]

Axes = tuple[int, ...]
_ALIGN = 4  # elements
_SPATIAL = {"quads": slice(2, -1), "first": slice(2, None), "last": slice(1, -1)}
"""Spatial axes of an input, by its layout."""


def layout_of(op: Op) -> str:
    """Where a convolution's input has its channels: ``first``, ``last``, or in ``quads``."""
    return str(op.attrs.get("layout", "quads")) if op.domain == DOMAIN else "first"


@dataclass(frozen=True)
class ConvShape:
    """A convolution ``[batch, groups*cin, *input] -> [batch, groups*cout, *output]``.

    ``cin`` and ``cout`` count one group. ``pads`` are those at the beginning of
    each axis; those at the end follow from ``output``. Of an integer convolution ``cin``
    counts quads of channels, and ``cout`` includes filters that only fill a quad.
    """

    batch: int
    groups: int
    cin: int
    cout: int
    input: Axes
    output: Axes
    kernel: Axes
    strides: Axes
    dilations: Axes
    pads: Axes

    @staticmethod
    def of(op: Op) -> ConvShape:
        """Geometry of a valid ``Conv`` or ``ConvInteger`` with static shapes."""
        data, weight = op.inputs[0], op.inputs[1]
        assert data is not None
        assert weight is not None
        quad = 4 if op.domain == DOMAIN else 1
        sizes = data.shape[_SPATIAL[layout_of(op)]]
        space = len(weight.shape) - 2
        ones = (1,) * space
        groups = int(op.attrs.get("group", 1))
        shape = ConvShape(
            batch=data.shape[0],
            groups=groups,
            cin=-(-weight.shape[1] // quad),
            cout=-(-weight.shape[0] // groups // quad) * quad,
            input=sizes,
            output=op.outputs[0].shape[2 : 2 + space],
            kernel=weight.shape[2:],
            strides=tuple(op.attrs.get("strides", ones)),
            dilations=tuple(op.attrs.get("dilations", ones)),
            pads=(0,) * space,
        )
        return ConvShape(**{**shape.__dict__, "pads": _begin_pads(op.attrs, shape)})

    @cached_property
    def taps(self) -> tuple[Axes, ...]:
        """Kernel positions in row-major order."""
        return tuple(product(*map(range, self.kernel)))

    @property
    def reduction(self) -> int:
        """Products per output element."""
        return self.cin * len(self.taps)

    @property
    def positions(self) -> int:
        """Output elements of one channel."""
        return prod(self.output)

    @property
    def input_positions(self) -> int:
        """Input elements of one channel."""
        return prod(self.input)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole operator."""
        return self.batch * self.groups * self.cout * self.positions * self.reduction


@dataclass(frozen=True)
class Source:
    """Layout of the product kernels' input, see the module's docstring.

    Attributes:
        copied: Whether it is a copy in a workspace, or the input itself.
        phases: The stride phases that some tap uses, one plane each.
        extent: Spatial extent of one plane.
        plane: Elements from one plane to the next.
        channel: Elements from one channel to the next.
        taps: Flat offset of each kernel tap.
        flat: Whether the output positions of one channel are contiguous.
    """

    copied: bool
    phases: tuple[Axes, ...]
    extent: Axes
    taps: tuple[int, ...]
    flat: bool

    @property
    def plane(self) -> int:
        return prod(self.extent)

    @property
    def channel(self) -> int:
        return len(self.phases) * self.plane


def source_layout(shape: ConvShape) -> Source:
    """The cheapest layout: the input itself where it is already flat, otherwise a copy."""
    shifts = [tuple(k * d for k, d in zip(tap, shape.dilations, strict=True)) for tap in shape.taps]
    split = [
        tuple(divmod(s, stride) for s, stride in zip(shift, shape.strides, strict=True))
        for shift in shifts
    ]
    of_tap = [tuple(phase for _, phase in axes) for axes in split]
    phases = tuple(sorted(set(of_tap)))
    extent = tuple(out + max(axes[i][0] for axes in split) for i, out in enumerate(shape.output))
    strides = [prod(extent[i + 1 :]) for i in range(len(extent))]
    flat = _contiguous(shape.output, extent)
    if not flat:
        # Rows and channels at multiples of 16 bytes, which Arm's loads can have as constants.
        extent = (*extent[:-1], -(-extent[-1] // _ALIGN) * _ALIGN)
        strides = [prod(extent[i + 1 :]) for i in range(len(extent))]
    plane = prod(extent)
    taps = tuple(
        phases.index(phase) * plane
        + sum(shift * step for (shift, _), step in zip(axes, strides, strict=True))
        for phase, axes in zip(of_tap, split, strict=True)
    )
    direct = flat and phases == ((0,) * len(extent),) and extent == shape.input
    direct = direct and not any(shape.pads) and set(shape.strides) == {1}
    return Source(not direct, phases, extent, taps, flat)


def conv_refusal(
    region: Region, dtypes: Sequence[str] = ("float32",), *, plain: bool = False
) -> str | None:
    """Why a region is no 8-bit convolution, nor one of ``dtypes``, with constant weights.

    Args:
        plain: Whether the input of an 8-bit one need not be quads.
    """
    op = region.anchor
    if op is None or (op.domain, op.op_type) not in (("", "Conv"), (DOMAIN, "ConvInteger")):
        return "not a convolution"
    data, weight = op.inputs[0], op.inputs[1]
    assert data is not None
    assert weight is not None
    integer = op.domain == DOMAIN
    if data.dtype not in (("int8", "uint8") if integer else dtypes):
        return f"the input is {data.dtype}"
    if integer and not plain and layout_of(op) != "quads":
        return "the input is not in quads"
    if weight.const is None:
        return "the weights are not constant"
    if len(op.inputs) > 2 and op.inputs[2] is not None and op.inputs[2].const is None:
        return "the bias is not constant"
    if not 3 <= len(weight.shape) <= 5:
        return f"{len(weight.shape) - 2} spatial axes, not 1 to 3"
    groups = int(op.attrs.get("group", 1))
    if integer and groups > 1 and (weight.shape[1] % 4 or weight.shape[0] // groups % 4):
        return "groups are not whole quads"
    if len(region.outputs) != 1:
        return "the region has more than one output"
    if 0 in data.shape or 0 in op.outputs[0].shape:
        return "an operand is empty"
    return None


def _contiguous(output: Axes, extent: Axes) -> bool:
    first = next((i for i, size in enumerate(output) if size != 1), len(output))
    return output[first + 1 :] == extent[first + 1 :]


def _begin_pads(attrs: dict[str, Any], shape: ConvShape) -> Axes:
    mode = attrs.get("auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("NOTSET", ""):
        return tuple(attrs.get("pads", (0,) * 2 * len(shape.input)))[: len(shape.input)]
    if mode == "VALID":
        return (0,) * len(shape.input)
    totals = [
        max(0, (o - 1) * s + (k - 1) * d + 1 - i)
        for i, o, k, s, d in zip(
            shape.input, shape.output, shape.kernel, shape.strides, shape.dilations, strict=True
        )
    ]
    return tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals)
