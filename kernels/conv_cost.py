"""Configurations of the direct convolution and their predicted cost."""

from __future__ import annotations

from effc.devices.target import Target
from effc.kernels.conv_shape import ConvShape, Source
from effc.kernels.template import Config

__all__ = ["direct_candidates"]


def direct_candidates(
    shape: ConvShape, source: Source, target: Target
) -> list[tuple[Config, float]]:
    """Configurations with predicted cycles, best first."""
    lanes = min(target.lanes, 8)
    config: Config = {
        "along": "space",
        "lanes": lanes,
        "channels": min(shape.cout, 4 if target.vector_registers < 32 else 8),
        "columns": min(shape.positions, 2 * lanes if target.vector_registers < 32 else 3 * lanes),
        "pack": True,
        "panels": 1,
        "block": shape.cin,
        "splits": 1,
        "unroll": 2,
    }
    return [(config, 2.0 * shape.macs / target.lanes)]
