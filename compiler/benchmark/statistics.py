"""Ratios of latencies with confidence intervals.

The unit of observation is the median of one process, not one inference: inferences of a process
share its memory layout, its clock and its place in time, so thousands of them may agree with each
other and still differ from the next process (Georges, Buytaert and Eeckhout, "Statistically
rigorous Java performance evaluation", OOPSLA 2007; Mytkowicz et al., "Producing wrong data without
doing anything obviously wrong", ASPLOS 2009). Latencies multiply rather than add, so intervals are
Student's t on logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from effc.errors import UsageError

__all__ = ["CONFIDENCE", "Ratio", "paired_ratio", "spread_interval", "unpaired_ratio"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Ratio:
    """How many times longer one thing takes than another.

    Attributes:
        ratio: Best estimate.
        low, high: Where it lies with the given confidence.
        confidence: Of this interval alone, whatever else was compared.
        pairs: Observations on the side that has fewer.
        method: Whether both were measured alternately in one run.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    pairs: int
    method: Literal["paired", "unpaired"]

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, or ``no difference shown``."""
        if self.high < 1.0:
            return "faster"
        return "slower" if self.low > 1.0 else "no difference shown"

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "verdict": self.verdict}


def paired_ratio(
    values: Sequence[float], base: Sequence[float], confidence: float = CONFIDENCE
) -> Ratio:
    """Ratio of two series whose n-th values were measured next to each other.

    Args:
        values, base: Medians of processes, in any unit; at least two each.

    Raises:
        UsageError: Too few, or different numbers of them.
    """
    if len(values) != len(base) or len(values) < 2:
        raise UsageError("an interval needs at least two rounds", where="--rounds", got=len(values))
    logs = np.log(values) - np.log(base)
    half = _student(len(logs) - 1, confidence) * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    return _ratio(float(np.mean(logs)), half, confidence, len(logs), "paired")


def unpaired_ratio(
    values: Sequence[float], base: Sequence[float], confidence: float = CONFIDENCE
) -> Ratio:
    """Ratio of two series that were measured at different times (Welch's interval).

    Args:
        values, base: Medians of processes, or of blocks of inferences; at least two each.

    Raises:
        UsageError: Too few of them.
    """
    fewest = min(len(values), len(base))
    if fewest < 2:
        raise UsageError("an interval needs at least two rounds", where="--rounds", got=fewest)
    a, b = np.log(values), np.log(base)
    parts = float(np.var(a, ddof=1)) / len(a), float(np.var(b, ddof=1)) / len(b)
    difference = float(np.mean(a) - np.mean(b))
    if sum(parts) == 0.0:
        return _ratio(difference, 0.0, confidence, fewest, "unpaired")
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = _student(freedom, confidence) * sum(parts) ** 0.5
    return _ratio(difference, half, confidence, fewest, "unpaired")


def spread_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Where the typical value of further processes lies; ``None`` for less than three values."""
    if len(values) < 3:
        return None
    logs = np.log(values)
    half = _student(len(logs) - 1, confidence) * float(np.std(logs, ddof=1)) / len(logs) ** 0.5
    center = float(np.mean(logs))
    return float(np.exp(center - half)), float(np.exp(center + half))


def _student(freedom: float, confidence: float) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.5 + confidence / 2, freedom))


def _ratio(
    center: float, half: float, confidence: float, pairs: int, method: Literal["paired", "unpaired"]
) -> Ratio:
    low, high = float(np.exp(center - half)), float(np.exp(center + half))
    return Ratio(float(np.exp(center)), low, high, confidence, pairs, method)
