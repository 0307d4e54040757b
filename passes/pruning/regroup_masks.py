"""Turn any mask into blocks, where that loses little.

A model pruned elsewhere has zeros in no order; kernels want them in blocks. With the density
of the layer kept, blocks of the greatest energy stay: a zero inside such a block stays a zero (the
block is stored dense), a weight outside becomes one. What is lost is

    1 - energy(kept) / energy(all)

and a layer that would lose more than a bound is left as it is. Blocks that are nearly full
gain nothing from a finer mask, so the number of *blocks* kept is chosen to cover as many weights as
the layer has that are not zero.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from effc.passes.base import Log, Pass
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.prune_weights import Pruned, project_weights
from effc.passes.pruning.scheme import Scheme

__all__ = ["LOSS_LIMIT", "RegroupMasks", "regroup"]

Array = np.ndarray[Any, Any]

LOSS_LIMIT = 0.05
"""Largest part of a layer's weight energy that regrouping may remove."""

_SPARSE_FROM = 0.05
"""Share of zeros from which a mask is meant; fewer are chance."""


def regroup(weight: Array, block: tuple[int, int], groups: int = 1) -> Pruned:
    """Blocks of the same density, and the energy that is lost.

    Args:
        weight: ``[Cout, Cin / groups, *kernel]`` with zeros.
        block: Filters x input channels.
        groups: Convolution groups.
    """
    zeros = 1 - np.count_nonzero(weight) / weight.size
    return project_weights(weight, Scheme("block-punched", block), zeros, groups)


class RegroupMasks(Pass):
    """Masks made elsewhere as blocks.

    Args:
        block: Filters x input channels.
        limit: Largest part of a layer's energy to lose.
        skip: Names of layers to leave alone.

    Attributes:
        results: What became of each layer, by name; filled by :meth:`call`.
    """

    name: ClassVar[str] = "regroup_masks"

    def __init__(
        self,
        block: tuple[int, int],
        limit: float = LOSS_LIMIT,
        skip: Collection[str] = (),
    ) -> None:
        self.block = block
        self.limit = limit
        self.skip = skip
        self.results: dict[str, Pruned] = {}

    def call(self, model: ir.Model, log: Log) -> None:
        for layer in find_layers(model)[0]:
            weight = layer.weight()
            zeros = 1 - np.count_nonzero(weight) / weight.size
            if layer.name in self.skip or not _SPARSE_FROM <= zeros < 1:
                continue
            found = regroup(weight, self.block, layer.groups)
            if found.loss > self.limit:
                log.refused.append(
                    (
                        layer.name,
                        f"{self.block[0]}x{self.block[1]} blocks would lose {found.loss:.1%} "
                        f"of its energy, more than {self.limit:.1%}",
                    )
                )
            elif not np.array_equal(found.weight, weight):
                self.results[layer.name] = found
                layer.set_weight(found.weight)
                log.applied.append(layer.name)
