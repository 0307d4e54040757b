"""What float16 costs each node of a model: time, and noise at the outputs.

A value is rounded to float16 if a node that reads or makes it is float16. That noise is measured,
one value at a time. Noise of rounded weights and of sums in float16 is known relative to that of
rounding the node's results (``RoundedLayer.noise``).

Some inputs are far more sensitive than others (a Softmax that is sure of its result hides all), so
a mean over samples is that of a few. Single values are measured on those few: the ones that are
noisiest with everything rounded.

Times are in multiply-adds of float16, as Arm's vectors have them: eight of float16, four of
float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import const, shape_of
from effc.passes.half.noise import Feeds, NoiseProbe, roundings
from effc.passes.half.rounded_layers import RoundedLayer
from effc.passes.half.select_nodes import Border, Item, Way
from effc.passes.half.use_half_precision import PRODUCTS

__all__ = ["ValueStudy", "WeightStudy", "work_of"]

Array = np.ndarray[Any, Any]

_TERMS = 64
"""Products added up in float16 where weights are not constant."""

_EXACT = 2.0
"""Time of arithmetic in float32."""

_PARTIAL_SUM = 7.0
"""Time of adding a partial sum to a float32 one (kernels/half_sums.py)."""

_CAST = 2.0
"""Time of converting an element."""


def work_of(node: ir.Node) -> int:
    """Multiply-adds of a product, elements of any other results."""
    elements = sum(prod(shape_of(v)) for v in node.outputs if v.shape is not None)
    return elements * _depth(node)


def _depth(node: ir.Node) -> int:
    """Products per result; 1 if the node is none."""
    if node.op_type not in PRODUCTS:
        return 1
    left, right = (shape_of(v) for v in node.inputs[:2] if v is not None)
    if node.op_type == "Conv":
        return prod(right[1:])
    if node.op_type == "ConvTranspose":
        return max(prod(left) * prod(right[1:]) // prod(shape_of(node.outputs[0])), 1)
    return left[-1] if node.op_type == "MatMul" else prod(right) // shape_of(node.outputs[0])[-1]


def _upper(errors: Array) -> float:
    """Mean and its standard error."""
    if not np.isfinite(errors).all():
        return inf
    return float(errors.mean() + errors.std() / len(errors) ** 0.5)


class WeightStudy:
    """Rounded weights, nothing else: for targets that only store float16.

    Args:
        model: float32 model.
        samples: To measure noise on.
        few: How many of them are enough for the noise of a single value or node.
        layers: Rounded ones.
        nodes: That may become float16.

    Attributes:
        noise: Of each value that could be rounded.
        borders: Values between nodes.
    """

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Feeds],
        few: int,
        layers: Sequence[RoundedLayer],
        nodes: Sequence[ir.Node],
    ) -> None:
        self.nodes = nodes
        self.noise: dict[str, float] = {}
        self.borders: list[Border] = []
        self._layers = {id(layer.layer.node): layer for layer in layers}
        self._replaced = {key: layer.replacements() for key, layer in self._layers.items()}
        names = {name for arrays in self._replaced.values() for name in arrays}
        self._probe = NoiseProbe(model, samples, names)
        self._few = list(range(min(few, len(samples))))
        self._share = 1.0

    def items(self, limit: float) -> list[Item]:
        """What each node costs; without its noise where all nodes together meet the limit."""
        met = self._choose_samples() <= limit
        found = []
        for index, node in enumerate(self.nodes):
            layer = self._layers.get(id(node))
            size = 1.0 if layer is None else float(layer.layer.size)
            way = Way(size, 0.0 if met else self._alone(frozenset(), self._weights([index])))
            found.append(Item(frozenset(), _EXACT * size, (way,)))
        return found

    def measure(self, ways: Sequence[Way | None]) -> float:
        """Noise of the outputs with all of these together: mean and its standard error."""
        chosen = [index for index, way in enumerate(ways) if way is not None]
        sums = sum(way.sums for way in ways if way is not None)
        errors = self._probe.errors(self._rounded(chosen), self._weights(chosen))
        return _upper(errors) + sums

    def _choose_samples(self) -> float:
        """Find the samples for single values; the noise of everything."""
        every = range(len(self.nodes))
        errors = self._probe.errors(self._rounded(every), self._weights(every))
        order = np.argsort(-errors, kind="stable")[: len(self._few)]
        part, whole = float(errors[order].sum()), float(errors.sum())
        self._few = [int(i) for i in order]
        self._share = part / whole if 0 < whole < inf else len(order) / len(errors)
        return _upper(errors)

    def _alone(self, values: Collection[str], weights: Mapping[str, Array]) -> float:
        """Noise of few roundings, mean over all samples, from a few of them."""
        errors = self._probe.errors(values, weights, self._few)
        return float(errors.sum()) / self._share / len(self._probe.samples)

    def _weights(self, chosen: Sequence[int]) -> dict[str, Array]:
        replaced: dict[str, Array] = {}
        for index in chosen:
            replaced |= self._replaced.get(id(self.nodes[index]), {})
        return replaced

    def _rounded(self, chosen: Sequence[int]) -> frozenset[str]:
        """Values that are rounded if these nodes are float16."""
        return frozenset()


class ValueStudy(WeightStudy):
    """Rounded weights and values, and sums in float16."""

    def __init__(
        self,
        model: ir.Model,
        samples: Sequence[Feeds],
        few: int,
        layers: Sequence[RoundedLayer],
        nodes: Sequence[ir.Node],
    ) -> None:
        super().__init__(model, samples, few, layers, nodes)
        self._places = roundings(model)
        self._values = [
            frozenset(
                place
                for v in (*node.inputs, *node.outputs)
                if v is not None and const(v) is None
                for place in self._places.get(v.name or "", ())
            )
            for node in nodes
        ]
        self._choose_samples()
        every = sorted(frozenset[str]().union(*self._values))
        self.noise = {name: self._alone({name}, {}) for name in every}
        self.borders = list(self._casts())

    def items(self, limit: float) -> list[Item]:
        """What each node costs."""
        return [
            Item(values, _EXACT * work_of(node), tuple(self._ways(node)))
            for node, values in zip(self.nodes, self._values, strict=True)
        ]

    def _rounded(self, chosen: Sequence[int]) -> frozenset[str]:
        return frozenset[str]().union(*(self._values[index] for index in chosen))

    def _ways(self, node: ir.Node) -> Iterator[Way]:
        work, depth = work_of(node), _depth(node)
        if node.op_type not in PRODUCTS:
            yield Way(work)
            return
        own = sum(self.noise[place] for place in self._places[node.outputs[0].name or ""])
        layer = self._layers.get(id(node))
        weights, sums = 0.0, {min(depth, _TERMS): (_TERMS + 1) / 2}
        if layer is not None:
            weights, sums = layer.noise()
        for terms, error in sums.items():
            partial = _PARTIAL_SUM / terms if terms < depth else 0.0
            yield Way(work * (1 + partial), own * (weights + error), own * error, terms)

    def _casts(self) -> Iterator[Border]:
        """Casts between nodes, and between nodes and what is always float32."""
        index = {id(node): i for i, node in enumerate(self.nodes)}
        for i, node in enumerate(self.nodes):
            for value in node.inputs:
                if value is None or value.dtype != ir.DataType.FLOAT or const(value) is not None:
                    continue
                maker = value.producer()
                first = None if maker is None else index.get(id(maker))
                yield Border(i, first, _CAST * prod(shape_of(value)))
            for value in node.outputs:
                if value.is_graph_output() or any(id(u) not in index for u, _ in value.uses()):
                    yield Border(i, None, _CAST * prod(shape_of(value)))
