"""Axes of the report's plots."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["Scale"]


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
