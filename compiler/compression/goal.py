"""How fast the pruned network shall be: ``--speedup X`` or ``--latency-ms L``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from effc.errors import UsageError

__all__ = ["TOLERANCE", "Goal", "parse_goal"]

TOLERANCE = 0.03
"""A measured latency this much above the goal still reaches it."""


@dataclass(frozen=True)
class Goal:
    """Exactly one of the two is given.

    Attributes:
        speedup: Times faster than the dense network, both measured in one run. A wish: what was
            reached is reported.
        latency_ms: Milliseconds of one inference. A bound: missing it is an error.
    """

    speedup: float | None = None
    latency_ms: float | None = None

    @property
    def hard(self) -> bool:
        """Whether a miss is an error."""
        return self.latency_ms is not None

    @property
    def flag(self) -> str:
        """As it was given on the command line."""
        if self.latency_ms is not None:
            return f"--latency-ms {self.latency_ms:g}"
        return f"--speedup {self.speedup:g}"

    def seconds(self, dense: float) -> float:
        """The latency to reach if the dense network takes ``dense`` seconds."""
        if self.latency_ms is not None:
            return self.latency_ms / 1e3
        assert self.speedup is not None
        return dense / self.speedup

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        if self.latency_ms is not None:
            return {"latency_ms": self.latency_ms}
        return {"speedup": self.speedup}


def parse_goal(
    speedup: float | None, latency_ms: float | None, sparsity: float | None
) -> Goal | None:
    """The goal of a compression, or None if it has a sparsity or nothing.

    Raises:
        UsageError: More than one of the three, or a number that makes no sense.
    """
    given = {"--speedup": speedup, "--latency-ms": latency_ms, "--sparsity": sparsity}
    named = [flag for flag, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(
            "more than one goal for pruning",
            where=" and ".join(named),
            expected="one of --sparsity, --speedup and --latency-ms",
            hint="a sparsity for single layers beside a goal goes into the recipe",
        )
    if speedup is not None and not (math.isfinite(speedup) and speedup >= 1):
        raise UsageError(
            "speed-up out of range", where="--speedup", expected="1 or more", got=speedup
        )
    if latency_ms is not None and not (math.isfinite(latency_ms) and latency_ms > 0):
        raise UsageError(
            "latency out of range", where="--latency-ms", expected="above 0", got=latency_ms
        )
    if speedup is None and latency_ms is None:
        return None
    return Goal(speedup, latency_ms)
