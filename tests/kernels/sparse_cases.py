"""Weights with zeros, for tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from effc.kernels.region import Op, Region, Value

__all__ = ["block_mask", "with_zeros"]


def block_mask(
    shape: tuple[int, ...], density: float, block: tuple[int, int], seed: int = 0
) -> np.ndarray:
    """Mask of ``[Cout, Cin, *kernel]``: one kernel position of a block is kept or not.

    ``density`` 0 and 1 are exact; in between each unit is kept at random.
    """
    rng = np.random.default_rng(seed)
    units = (-(-shape[0] // block[0]), -(-shape[1] // block[1]), *shape[2:])
    kept = rng.random(units) < density
    return kept.repeat(block[0], 0)[: shape[0]].repeat(block[1], 1)[:, : shape[1]]


def with_zeros(region: Region, mask: np.ndarray) -> Region:
    """The region with its anchor's weights masked."""
    anchor = region.anchor
    assert anchor is not None
    weight = anchor.inputs[1]
    assert weight is not None
    assert weight.const is not None
    masked = Value(weight.name, weight.type, np.where(mask, weight.const, np.float32(0)))
    inputs = (anchor.inputs[0], masked, *anchor.inputs[2:])
    op = Op(anchor.op_type, inputs, anchor.outputs, anchor.attrs, anchor.name, anchor.domain)
    return replace(region, ops=(op, *region.ops[1:]), anchor=op)
