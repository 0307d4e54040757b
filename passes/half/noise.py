"""What rounding to float16 does to a model's outputs, measured on samples in ONNX Runtime.

``NoiseProbe`` holds a float32 model in which every computed value passes a switch, that rounds it
to float16 and back or not, and in which weights can be replaced. So one session answers for any set
of rounded values and weights how large the error of the outputs is against their size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from effc.passes.graph import const
from effc.passes.pruning.batching import open_as_written
from effc.passes.session import open_session, usable_processors

__all__ = ["NoiseProbe", "roundings", "value_ranges"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

EXACT_OPS = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "Pad",
        "Relu",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ]
)
"""Operators whose results are rounded if their operands are."""


def roundings(model: ir.Model) -> dict[str, frozenset[str]]:
    """Where each float32 value is rounded, by name.

    That is the value itself, or, behind operators whose results are rounded if their operands are,
    what those began with: rounding it anywhere on the way is the same.
    """
    found = {v.name or "": frozenset([v.name or ""]) for v in _float_values(model)}
    for node in model.graph:
        if _is_exact(node):
            read = [found.get(v.name or "", frozenset()) for v in node.inputs if v is not None]
            found |= {v.name or "": frozenset[str]().union(*read) for v in node.outputs}
    return found


def _is_exact(node: ir.Node) -> bool:
    if node.op_type == "Clip":
        bounds = [const(v) for v in node.inputs[1:] if v is not None]
        with np.errstate(over="ignore"):
            return all(a is not None and np.array_equal(a, a.astype(np.float16)) for a in bounds)
    return node.op_type in EXACT_OPS


def value_ranges(model: ir.Model, samples: Sequence[Feeds]) -> dict[str, float]:
    """Largest absolute value of every float32 tensor that is computed or an input, by name."""
    proto = ir.to_proto(model)
    names = [v.name or "" for v in _float_values(model)]
    del proto.graph.output[:]
    for name in names:
        proto.graph.node.append(helper.make_node("Abs", [name], [f"{name}#abs"]))
        proto.graph.node.append(
            helper.make_node("ReduceMax", [f"{name}#abs"], [f"{name}#max"], keepdims=0)
        )
        proto.graph.output.append(
            helper.make_tensor_value_info(f"{name}#max", TensorProto.FLOAT, [])
        )
    session = open_as_written(proto)
    found = np.zeros(len(names))
    for sample in samples:
        seen = np.array([float(v) for v in session.run(None, dict(sample))])
        found = np.maximum(found, np.where(np.isnan(seen), np.inf, seen))
    return dict(zip(names, found.tolist(), strict=True))


def _float_values(model: ir.Model) -> list[ir.Value]:
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    return [v for v in values if v.dtype == ir.DataType.FLOAT and v.name]


class NoiseProbe:
    """Noise-to-signal ratio of a model's outputs, for any roundings.

    Args:
        model: float32 model.
        samples: Inputs to measure it on.
        replaceable: Initializers that :meth:`noise` may replace.
    """

    def __init__(
        self, model: ir.Model, samples: Sequence[Feeds], replaceable: Collection[str]
    ) -> None:
        self.samples = samples
        inputs = {v.name for v in model.graph.inputs}
        self.values = sorted(set[str]().union(*roundings(model).values()))
        proto = ir.to_proto(model)
        nodes = list(proto.graph.node)
        del proto.graph.node[:]
        for name in self.values:
            if name in inputs:
                proto.graph.node.extend(_switch(name, name, f"{name}#out"))
        switched = set(self.values)
        for node in nodes:
            for i, name in enumerate(node.input):
                if name in inputs and name in switched:
                    node.input[i] = f"{name}#out"
            made = [name for name in node.output if name in switched]
            for i, name in enumerate(node.output):
                if name in switched:
                    node.output[i] = f"{name}#in"
            proto.graph.node.append(node)
            for name in made:
                proto.graph.node.extend(_switch(name, f"{name}#in", name))
        for name in self.values:
            proto.graph.input.append(
                helper.make_tensor_value_info(f"{name}#on", TensorProto.BOOL, [])
            )
        for tensor in proto.graph.initializer:
            if tensor.name in replaceable:
                proto.graph.input.append(
                    helper.make_tensor_value_info(tensor.name, tensor.data_type, None)
                )
        self._session = open_session(
            proto, threads=usable_processors(), optimize=False
        )  # casts stay
        self._expected = [self._run(sample, (), {}) for sample in samples]
        signal = sum(float(np.sum(np.square(a))) for r in self._expected for a in r)
        self._signal = max(signal / len(samples), np.finfo(np.float64).tiny)

    def errors(
        self,
        values: Collection[str],
        replaced: Mapping[str, Array],
        samples: Sequence[int] | None = None,
    ) -> Array:
        """Error of the outputs, per sample, as a share of the mean power of all samples.

        Args:
            values: Names of values to round.
            replaced: Other initializers by name.
            samples: Which; all if None.
        """
        found = []
        for index in range(len(self.samples)) if samples is None else samples:
            have = self._run(self.samples[index], values, replaced)
            pairs = zip(self._expected[index], have, strict=True)
            found.append(sum(float(np.sum(np.square(a - b))) for a, b in pairs))
        return np.nan_to_num(np.array(found) / self._signal, nan=np.inf)

    def _run(
        self, sample: Feeds, values: Collection[str], replaced: Mapping[str, Array]
    ) -> list[Array]:
        chosen = set(values)
        switches = {f"{name}#on": np.array(name in chosen) for name in self.values}
        results = self._session.run(None, {**sample, **replaced, **switches})
        return [np.asarray(a, np.float64) for a in results if a.dtype.kind == "f"]


def _switch(name: str, source: str, result: str) -> list[onnx.NodeProto]:
    """A node that rounds ``source`` to float16 if ``name``'s switch is on."""
    half, wide, same = f"{name}#half", f"{name}#wide", f"{name}#same"
    rounded = [
        helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [half], [wide], to=TensorProto.FLOAT),
    ]
    branches = {
        "then_branch": _branch(rounded, wide),
        "else_branch": _branch([helper.make_node("Identity", [source], [same])], same),
    }
    return [helper.make_node("If", [f"{name}#on"], [result], **branches)]


def _branch(nodes: Sequence[onnx.NodeProto], result: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, result, [], [output])
