"""Sliding-window geometry of convolution-like operators, one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from effc.kernels.region import Op

__all__ = ["Axis", "window_axes"]


@dataclass(frozen=True)
class Axis:
    """One spatial axis: output ``o`` reads inputs ``o*stride - before + k*dilation``.

    ``after`` is the padding that the model states; with ``ceil_mode`` windows may
    reach further than that.
    """

    size: int
    out: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @cached_property
    def reach(self) -> int:
        """Elements that one window spans."""
        return (self.kernel - 1) * self.dilation + 1

    def extent(self, outputs: int) -> int:
        """Padded elements that ``outputs`` consecutive windows span."""
        return (outputs - 1) * self.stride + self.reach

    def valid(self, out: int) -> int:
        """How many taps of output ``out`` fall on real input."""
        first = out * self.stride - self.before
        return sum(0 <= first + k * self.dilation < self.size for k in range(self.kernel))

    def stated(self, out: int) -> int:
        """How many taps of output ``out`` fall on input or stated padding."""
        first = out * self.stride - self.before
        return sum(first + k * self.dilation < self.size + self.after for k in range(self.kernel))


def window_axes(
    op: Op, spatial_in: Sequence[int], kernel: Sequence[int], spatial_out: Sequence[int]
) -> tuple[Axis, ...]:
    """Read ``strides``, ``dilations``, ``pads`` and ``auto_pad`` of an operator.

    Args:
        op: Convolution or pooling operator.
        spatial_in: Spatial input extents.
        kernel: Window extents, same length.
        spatial_out: Spatial output extents, same length.
    """
    rank = len(spatial_in)
    strides = list(op.attrs.get("strides") or [1] * rank)
    dilations = list(op.attrs.get("dilations") or [1] * rank)
    pads = list(op.attrs.get("pads") or [0] * (2 * rank))
    mode = op.attrs.get("auto_pad", "NOTSET")
    axes = []
    for i in range(rank):
        before, after = int(pads[i]), int(pads[rank + i])
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            reach = (kernel[i] - 1) * dilations[i] + 1
            total = max((spatial_out[i] - 1) * strides[i] + reach - spatial_in[i], 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            after = total - before
        elif mode == "VALID":
            before = after = 0
        axes.append(
            Axis(
                int(spatial_in[i]),
                int(spatial_out[i]),
                int(kernel[i]),
                int(strides[i]),
                int(dilations[i]),
                before,
                after,
            )
        )
    return tuple(axes)
