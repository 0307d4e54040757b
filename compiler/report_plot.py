"""Axes of the report's plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Frame", "Scale"]


class Scale:
    """From values to positions on an axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high if high > low else low + 1.0
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[dict[str, Any]]:
        """About six round numbers with their positions."""
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        count = math.floor(self.high / step + 1e-9)
        values = [n * step for n in range(math.ceil(self.low / step - 1e-9), count + 1)]
        return [{"at": self(value), "text": f"{value:g}"} for value in values]


@dataclass(frozen=True)
class Frame:
    """A plot's size and the margins around what is drawn, in pixels."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    def x(self, low: float, high: float, inset: float = 0) -> Scale:
        """The horizontal axis, ``inset`` from both sides."""
        return Scale(low, high, self.left + inset, self.width - self.right - inset)

    def y(self, low: float, high: float) -> Scale:
        """The vertical axis, upwards."""
        return Scale(low, high, self.height - self.bottom, self.top)

    def describe(self) -> dict[str, int]:
        """For the template: the size, and where the margins end."""
        return {
            "width": self.width,
            "height": self.height,
            "left": self.left,
            "right": self.width - self.right,
            "top": self.top,
            "bottom": self.height - self.bottom,
        }
