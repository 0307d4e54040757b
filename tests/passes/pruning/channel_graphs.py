"""Random convolutional graphs on small integers, so that sums are exact in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

__all__ = ["Builder", "graphs"]

Array = np.ndarray[Any, Any]


class Builder:
    """Adds operators to a graph; weights are -1, 0 or 1, activations are clipped to [-8, 8]."""

    def __init__(self, seed: int, channels: int = 3, size: int = 6) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (1, channels, size, size)}

    def const(self, array: Array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def weight(self, *shape: int) -> str:
        return self.const(self.rng.integers(-1, 2, shape).astype(np.float32))

    def op(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n_{name}", **attrs))
        self.shapes[name] = shape
        return name

    def clip(self, x: str) -> str:
        low, high = (self.const(np.array(v, np.float32)) for v in (-8, 8))
        return self.op("Clip", [x, low, high], self.shapes[x])

    def conv(self, x: str, out: int, kernel: int = 3, group: int = 1, bias: bool = True) -> str:
        n, c, h, w = self.shapes[x]
        operands = [x, self.weight(out, c // group, kernel, kernel)]
        operands += [self.weight(out)] if bias else []
        pad = kernel // 2
        return self.clip(self.op("Conv", operands, (n, out, h, w), group=group, pads=[pad] * 4))

    def conv_transpose(self, x: str, out: int, group: int) -> str:
        n, c, h, w = self.shapes[x]
        operands = [x, self.weight(c, out // group, 3, 3), self.weight(out)]
        return self.clip(
            self.op("ConvTranspose", operands, (n, out, h, w), group=group, pads=[1] * 4)
        )

    def squeeze_excite(self, x: str) -> str:
        n, c, _, _ = self.shapes[x]
        pooled = self.op("GlobalMaxPool", [x], (n, c, 1, 1))
        gate = self.conv(self.conv(pooled, 4, 1), c, 1)
        return self.clip(self.op("Mul", [x, gate], self.shapes[x]))

    def scale_shift(self, x: str) -> str:
        shape = self.shapes[x]
        scaled = self.op("Mul", [x, self.weight(shape[1], 1, 1)], shape)
        return self.clip(self.op("Add", [scaled, self.weight(1, shape[1], 1, 1)], shape))

    def shuffle(self, x: str, group: int) -> str:
        n, c, h, w = self.shapes[x]
        split = self.op(
            "Reshape", [x, self.ints(n, group, c // group, h, w)], (n, group, c // group, h, w)
        )
        swapped = self.op("Transpose", [split], (n, c // group, group, h, w), perm=[0, 2, 1, 3, 4])
        return self.op("Reshape", [swapped, self.ints(n, c, h, w)], (n, c, h, w))

    def pad_channels(self, x: str, start: int, end: int) -> str:
        n, c, h, w = self.shapes[x]
        pads = self.ints(0, start, 0, 0, 0, end, 0, 0)
        value = self.const(np.array(3, np.float32))
        return self.op("Pad", [x, pads, value], (n, c + start + end, h, w))

    def gather(self, x: str, indices: list[int]) -> str:
        n, _, h, w = self.shapes[x]
        return self.op("Gather", [x, self.ints(*indices)], (n, len(indices), h, w), axis=1)

    def slice(self, x: str, start: int, end: int) -> str:
        n, c, h, w = self.shapes[x]
        size = len(range(*slice(start, end).indices(c)))
        return self.op(
            "Slice", [x, self.ints(start), self.ints(end), self.ints(1)], (n, size, h, w)
        )

    def split(self, x: str, first: int) -> list[str]:
        n, c, h, w = self.shapes[x]
        names = [f"v{len(self.nodes)}", f"v{len(self.nodes)}b"]
        self.nodes.append(
            helper.make_node("Split", [x, self.ints(first, c - first)], names, axis=1)
        )
        self.shapes |= {names[0]: (n, first, h, w), names[1]: (n, c - first, h, w)}
        return names

    def classify(self, x: str) -> str:
        n, c, h, w = self.shapes[x]
        flat = self.op("Flatten", [x], (n, c * h * w))
        return self.op("Gemm", [flat, self.weight(5, c * h * w), self.weight(5)], (n, 5), transB=1)

    def example(self) -> onnx.ModelProto:
        """A residual with a depthwise branch, squeeze-and-excitation, concat, split, classifier."""
        stem = self.conv("x", 8)
        branch = self.conv(self.conv(self.conv(stem, 12, 1), 12, 3, group=12), 8, 1)
        total = self.clip(self.op("Add", [stem, branch], self.shapes[stem]))
        side = self.squeeze_excite(self.conv(total, 6))
        joined = self.op("Concat", [total, side], (1, 14, 6, 6), axis=1)
        left, right = self.split(joined, 5)
        return self.model([self.classify(left), self.classify(right)])

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        def info(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, 1, self.shapes[name])

        graph = helper.make_graph(
            self.nodes, "g", [info("x")], [info(v) for v in outputs], self.constants
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])


def _step(draw: st.DrawFn, b: Builder, x: str, alike: list[str]) -> None:
    n, c, h, w = b.shapes[x]
    divisors = [g for g in (2, 3, 4) if c % g == 0]
    simple: dict[str, Callable[[], object]] = {
        "conv": lambda: b.conv(x, draw(st.sampled_from([4, 6, 8])), draw(st.sampled_from([1, 3]))),
        "residual": lambda: b.clip(b.op("Add", [x, draw(st.sampled_from(alike))], b.shapes[x])),
        "depthwise": lambda: b.conv(x, c * draw(st.integers(1, 2)), 3, group=c),
        "relu": lambda: b.op("Relu", [x], b.shapes[x]),
        "prelu": lambda: b.op("PRelu", [x, b.weight(c, 1, 1)], b.shapes[x]),
        "excite": lambda: b.squeeze_excite(x),
        "scale": lambda: b.scale_shift(x),
        "max": lambda: b.op("MaxPool", [x], b.shapes[x], kernel_shape=[3, 3], pads=[1] * 4),
        "pad": lambda: b.pad_channels(x, draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        "gather": lambda: b.gather(
            x, draw(st.lists(st.integers(-c, c - 1), min_size=1, max_size=8))
        ),
        "slice": lambda: b.slice(x, draw(st.integers(-c, 0)), draw(st.sampled_from([c, -1, 99]))),
        "reduce": lambda: b.op("ReduceMax", [x, b.ints(1)], (n, 1, h, w), keepdims=1),
        "concat": lambda: b.op(
            "Concat", [x, *alike[:2]], (n, c * (1 + len(alike[:2])), h, w), axis=1
        ),
        "split": lambda: b.split(x, draw(st.integers(1, c - 1))) if c > 1 else None,
        "transposed": lambda: b.conv_transpose(
            x, 8, draw(st.sampled_from([1, *divisors[:1]])) if 8 % (divisors or [1])[0] == 0 else 1
        ),
    }
    if divisors:
        group = draw(st.sampled_from(divisors))
        simple["grouped"] = lambda: b.conv(x, 2 * group, 3, group=group)
        simple["shuffle"] = lambda: b.shuffle(x, group)
    simple[draw(st.sampled_from(sorted(simple)))]()


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A stem, then any operators on any earlier values; every last value goes into a weight."""
    b = Builder(draw(st.integers(0, 2**16)))
    b.conv("x", draw(st.sampled_from([4, 6, 8])))
    for _ in range(draw(st.integers(2, 9))):
        values = [v for v, s in b.shapes.items() if v != "x" and s[2:] == (6, 6) and s[1] <= 24]
        x = draw(st.sampled_from(values))
        _step(draw, b, x, [v for v in values if b.shapes[v] == b.shapes[x]])
    read = {name for node in b.nodes for name in node.input}
    ends = [v for v in b.shapes if v not in read]
    return b.model([b.classify(v) if draw(st.booleans()) else b.conv(v, 3, 1) for v in ends])
