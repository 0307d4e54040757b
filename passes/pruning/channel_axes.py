"""Every index of every axis of every tensor as a label; labels that must stay together are tied.

A channel is not a number of one tensor: index 5 of a convolution's output is also index 5 of its
bias, of the activation behind it, index 5 + 32 of a concatenation, elements 5 * HW ... of a
flattened row, and input channel 37 of the next weight. Each of these gets a label, operators tie
labels (union-find), and what is tied goes or stays together. Labels tied to ``FIXED`` stay: inputs
and outputs of the model, spatial axes, axes that an operator mixes without weights (softmax).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import onnx_ir as ir

from effc.passes.graph import const, shape_of

__all__ = ["FIXED", "Axes", "Cut", "Labels", "Role", "Rule", "Use", "fixed"]

Labels = np.ndarray[Any, np.dtype[np.int64]]
"""One label per index of an axis."""

Role = Literal["in", "out"]

FIXED = 0
"""The label of what can never be removed."""


def fixed(size: int) -> Labels:
    """Labels of an axis that stays as it is."""
    return np.zeros(size, np.int64)


@dataclass(frozen=True)
class Use:
    """An axis of a constant weight that is summed over ("in") or makes channels ("out").

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        index: Which operand is the weight.
        axis: Axis of the weight.
        role: What the operator does with this axis.
        labels: Of this axis.
    """

    node: ir.Node
    index: int
    axis: int
    role: Role
    labels: Labels


class Axes:
    """Labels of all axes of a graph's tensors, and what ties them.

    A constant with one long axis (bias, scale) is labelled per reader, since equal ones are often
    merged; larger constants per value, so that a weight shared by layers stays shared.

    Attributes:
        uses: Weights on whose axes channels begin and end.
    """

    def __init__(self) -> None:
        self.uses: list[Use] = []
        self._parent = [FIXED]
        self._axes: dict[Hashable, tuple[Labels, ...]] = {}

    def new(self, size: int) -> Labels:
        """Labels of an axis that nothing is tied to; an axis of length 1 is fixed."""
        if size == 1:
            return fixed(1)
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        return np.arange(start, start + size)

    def find(self, label: int) -> int:
        """The smallest label tied to this one."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def tie(self, left: Labels, right: Labels) -> None:
        """Equal positions stand for the same channel."""
        if left is right:
            return
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self.find(a), self.find(b)
            self._parent[max(a, b)] = min(a, b)

    def merge(self, labels: Labels) -> None:
        """All of these stand for one channel."""
        self.tie(labels, np.full_like(labels, labels[0]))

    def fix(self, axes: Iterable[Labels]) -> None:
        """None of these may go."""
        for labels in axes:
            self.tie(labels, np.zeros_like(labels))

    def is_fixed(self, labels: Labels) -> bool:
        """Whether no index of this axis may go."""
        return all(self.find(label) == FIXED for label in labels.tolist())

    def of(self, node: ir.Node, index: int) -> tuple[Labels, ...]:
        """Labels of an operand, one array per axis; constants get new ones at first sight."""
        value = node.inputs[index]
        assert value is not None
        key = _key(node, index)
        if key not in self._axes:
            self._axes[key] = tuple(self.new(size) for size in shape_of(value))
        return self._axes[key]

    def labelled(self, node: ir.Node, index: int) -> tuple[Labels, ...] | None:
        """Labels of an operand; None if it is absent or not made of channels (a shape, pads)."""
        return None if node.inputs[index] is None else self._axes.get(_key(node, index))

    def result(self, value: ir.Value) -> tuple[Labels, ...]:
        """Labels of a computed value or model input."""
        return self._axes[value]

    def set_result(self, value: ir.Value, axes: Sequence[Labels]) -> None:
        """Give a computed value its labels; an output of the model is fixed."""
        self._axes[value] = tuple(axes)
        if value.is_graph_output():
            self.fix(axes)

    def tie_operand(self, node: ir.Node, index: int, axes: Sequence[Labels]) -> None:
        """Tie an operand, if present, to labels, one array per axis."""
        if index < len(node.inputs) and node.inputs[index] is not None:
            for own, other in zip(self.of(node, index), axes, strict=True):
                self.tie(own, other)

    def broadcast(self, operands: Sequence[Sequence[Labels]]) -> tuple[Labels, ...]:
        """Tie operands of an element-wise operator; labels of its result."""
        rank = max((len(axes) for axes in operands), default=0)
        result = []
        for back in range(rank, 0, -1):
            here = [axes[-back] for axes in operands if len(axes) >= back]
            size = next((len(labels) for labels in here if len(labels) != 1), 1)
            same = [labels for labels in here if len(labels) == size]
            self.fix(labels for labels in here if len(labels) != size)
            for labels in same[1:]:
                self.tie(same[0], labels)
            result.append(same[0])
        return tuple(result)

    def fix_node(self, node: ir.Node) -> None:
        """An operator about which nothing is known: nothing around it may go."""
        for index, value in enumerate(node.inputs):
            if value is not None:
                self.fix(self.of(node, index))
        for value in node.outputs:
            if value.name:
                self.set_result(value, [fixed(size) for size in shape_of(value)])

    def roots(self) -> Labels:
        """For each label the smallest one tied to it."""
        return np.array([self.find(label) for label in range(len(self._parent))])

    def places(self) -> Iterator[Labels]:
        """All axes of all labelled tensors, in order of first sight."""
        for axes in self._axes.values():
            yield from axes


class Cut(Protocol):
    """What a ``rewrite`` may ask and do while channels are removed."""

    def kept(self, labels: Labels) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which indices of an axis stay."""

    def operand(self, node: ir.Node, index: int) -> tuple[Labels, ...]:
        """Labels of a node's operand, as before the removal."""

    def result(self, value: ir.Value) -> tuple[Labels, ...]:
        """Labels of a computed value, as before the removal."""

    def shape(self, value: ir.Value) -> list[int]:
        """A computed value's shape after the removal."""

    def set_operand(self, node: ir.Node, index: int, array: np.ndarray[Any, Any]) -> None:
        """Give a node a new constant."""


@dataclass(frozen=True)
class Rule:
    """One operator's part in channel removal.

    Attributes:
        tie: Labels the results of a node whose operands are labelled.
        rewrite: Renews sizes that the node stores, operands and results being labelled.
    """

    tie: Callable[[Axes, ir.Node], None]
    rewrite: Callable[[Cut, ir.Node], None] | None = None


def _key(node: ir.Node, index: int) -> Hashable:
    value = node.inputs[index]
    assert value is not None
    if const(value) is not None and sum(size != 1 for size in shape_of(value)) <= 1:
        return (node, index)
    return value
