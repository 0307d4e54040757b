"""What rounding to float16 does to a model's outputs, measured on samples in ONNX Runtime.

``NoiseProbe`` holds a float32 model in which every computed value passes a switch, that rounds it
to float16 and back or not, and in which weights can be replaced. So one session answers for any set
of rounded values and weights how large the error of the outputs is against their size.

``keep_exact`` finds what must not be rounded to meet a limit: errors of different roundings add
up nearly as independent ones do, so groups of neighbouring nodes are measured, and the noisiest one
is halved until it is a single node, which is then kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from effc.errors import ModelError
from effc.passes.pruning.batching import open_session

__all__ = ["EXACT_OPS", "NoiseProbe", "keep_exact", "value_ranges"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
T = TypeVar("T")

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
    session = open_session(proto)
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
        exact = {v.name for n in model.graph if n.op_type in EXACT_OPS for v in n.outputs}
        self.values = [v.name or "" for v in _float_values(model) if v.name not in exact]
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
        self._session = _plain_session(proto)
        self._expected = [self._run(sample, (), {}) for sample in samples]
        self._signal = sum(float(np.sum(np.square(a))) for r in self._expected for a in r)

    def noise(self, values: Collection[str], replaced: Mapping[str, Array]) -> float:
        """Error of the outputs, over all samples, as a share of their power.

        Args:
            values: Names of values to round.
            replaced: Other initializers by name.
        """
        error = 0.0
        for sample, expected in zip(self.samples, self._expected, strict=True):
            for want, have in zip(expected, self._run(sample, values, replaced), strict=True):
                error += float(np.sum(np.square(want - have)))
        return error / max(self._signal, np.finfo(np.float64).tiny) if error == error else np.inf

    def _run(
        self, sample: Feeds, values: Collection[str], replaced: Mapping[str, Array]
    ) -> list[Array]:
        chosen = set(values)
        switches = {f"{name}#on": np.array(name in chosen) for name in self.values}
        results = self._session.run(None, {**sample, **replaced, **switches})
        return [np.asarray(a, np.float64) for a in results if a.dtype.kind == "f"]


def _switch(name: str, source: str, result: str) -> list[onnx.NodeProto]:
    """Nodes that round ``source`` to float16 if ``name``'s switch is on."""
    half, wide = f"{name}#half", f"{name}#wide"
    return [
        helper.make_node("Cast", [source], [half], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [half], [wide], to=TensorProto.FLOAT),
        helper.make_node("Where", [f"{name}#on", wide, source], [result]),
    ]


def _plain_session(proto: onnx.ModelProto) -> ort.InferenceSession:
    """A session that leaves casts where they are."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # its exception types are private
        raise ModelError("ONNX Runtime cannot load the model", got=str(error)[:300]) from error


def keep_exact(
    items: Sequence[T], noise: Callable[[Sequence[T]], float], limit: float
) -> tuple[list[T], float]:
    """Items to leave out so that the noise of the others is within a limit.

    Args:
        items: In an order in which neighbours belong together.
        noise: Of a set of items.
        limit: Largest noise.

    Returns:
        What was left out, and the noise of the rest.
    """
    kept: list[T] = []
    groups = [(noise(items), list(items))]
    goal = limit
    while groups:
        if sum(size for size, _ in groups) <= goal:
            rest = [item for _, group in groups for item in group]
            whole = noise(rest)
            if whole <= limit:
                return kept, whole
            goal *= 0.8 * limit / whole if np.isfinite(whole) else 0.5
            continue
        worst = max(range(len(groups)), key=lambda i: groups[i][0])
        size, group = groups.pop(worst)
        if len(group) == 1:
            kept += group
            continue
        half = len(group) // 2
        first = noise(group[:half])
        groups.append((first, group[:half]))
        # Independent errors add up.
        second = max(size - first, 0.0) if np.isfinite(size) else noise(group[half:])
        groups.append((second, group[half:]))
    return kept, 0.0
