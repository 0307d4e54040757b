"""Run a model layer by layer on many samples, keeping only the values that are still needed.

A pass that changes layers in order needs what each layer computes from changed inputs. Running
the model's beginning anew for every layer would cost half the model per layer; instead the model is
cut behind each layer's node, every piece runs once on all samples, and what later pieces read is
kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from effc.passes.graph import const, shape_of
from effc.passes.pruning.batching import SampleRunner, open_as_written

__all__ = ["Walk", "live_bytes"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Piece:
    """Consecutive nodes: what they read from outside, and what others read of theirs."""

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _pieces(model: onnx.ModelProto, stops: Sequence[str]) -> list[_Piece]:
    """Pieces that end with the nodes computing ``stops``; what follows the last is left out."""
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    last_use: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        last_use |= dict.fromkeys(node.input, index)
    places = {name: i for i, node in enumerate(graph.node) for name in node.output}
    pieces = []
    start = 0
    for stop in stops:
        end = places[stop] + 1
        nodes = graph.node[start:end]
        made = [name for node in nodes for name in node.output if name]
        inside = set(made)
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        inputs = [n for n in read if n not in inside and n not in constants]
        outputs = [n for n in made if last_use.get(n, -1) >= end or n == stop]
        pieces.append(_Piece(tuple(range(start, end)), tuple(inputs), tuple(outputs)))
        start = end
    return pieces


def live_bytes(model: ir.Model) -> list[int]:
    """Bytes of the values that are needed at each node or later, for one run."""
    last: dict[int, int] = {}
    nodes = list(model.graph)
    for index, node in enumerate(nodes):
        last |= {id(v): index for v in node.inputs if v is not None}
    live = {id(v): _bytes(v) for v in model.graph.inputs}
    found = []
    for index, node in enumerate(nodes):
        live |= {id(v): _bytes(v) for v in node.outputs if id(v) in last}
        found.append(sum(live.values()))
        for value in node.inputs:
            if value is not None and last[id(value)] == index:
                live.pop(id(value), None)
    return found


def _bytes(value: ir.Value) -> int:
    return int(np.prod(shape_of(value))) * 4


class Walk:
    """A model that advances from layer to layer.

    Args:
        runner: The model and its samples.
        stops: Names of computed values behind which to halt, in the order of the graph.
        size: Samples per batch, at most what the runner runs together.
    """

    def __init__(self, runner: SampleRunner, stops: Sequence[str], size: int | None = None) -> None:
        self._model = runner.proto
        self._types = runner.types
        self._pieces = _pieces(runner.proto, stops)
        self._stops = list(stops)
        self._next = 0
        self.values: dict[str, list[Array]] = {}
        for batch in runner.inputs(size):
            for name, array in batch.items():
                self.values.setdefault(name, []).append(array)

    def advance(self) -> str:
        """Run up to the next stop.

        Returns:
            Its name; ``values`` then holds it, batch by batch. It may be changed in place.
        """
        piece, stop = self._pieces[self._next], self._stops[self._next]
        self._next += 1
        session = open_as_written(self._cut(piece))
        count = len(next(iter(self.values.values())))
        made: dict[str, list[Array]] = {name: [] for name in piece.outputs}
        for index in range(count):
            feeds = {name: self.values[name][index] for name in piece.inputs}
            for name, array in zip(
                piece.outputs, session.run(list(piece.outputs), feeds), strict=True
            ):
                made[name].append(array)
        self.values |= made
        needed = {name for later in self._pieces[self._next :] for name in later.inputs} | {stop}
        for name in set(self.values) - needed:
            del self.values[name]
        return stop

    def update(self, node: ir.Node) -> None:
        """Take over the constants of a node that is still to be run."""
        here = next(n for n in self._model.graph.node if n.output[0] == node.outputs[0].name)
        for index, value in enumerate(node.inputs):
            array = const(value)
            if array is None:
                continue
            name = f"{here.output[0]}/new{index}"
            self._model.graph.initializer.append(numpy_helper.from_array(array, name))
            here.input.extend([""] * (index + 1 - len(here.input)))
            here.input[index] = name

    def _cut(self, piece: _Piece) -> onnx.ModelProto:
        model = self._model
        part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
        part.graph.name = model.graph.name
        nodes = [model.graph.node[i] for i in piece.nodes]
        part.graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        part.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
        part.graph.input.extend(self._infos(piece.inputs))
        part.graph.output.extend(self._infos(piece.outputs))
        return part

    def _infos(self, names: Iterable[str]) -> Iterable[onnx.ValueInfoProto]:
        for name in names:
            yield onnx.helper.make_tensor_value_info(name, int(self._types[name]), None)
