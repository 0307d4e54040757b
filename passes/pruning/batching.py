"""Run a model, or its beginning, on many samples through ONNX Runtime.

Imported models have a fixed batch size, usually 1. ``free_batch`` makes a copy that takes any
number of samples where the graph allows it: the leading dimension of inputs and outputs becomes
free, and constant targets of Reshape that repeat it copy it instead. Whether the graph
really treats samples independently is not proven but tried: two samples together must give what
each gives alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from effc.passes.graph import shape_of
from effc.passes.session import open_session, usable_processors

__all__ = ["SampleRunner", "free_batch", "open_as_written"]

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]

_BATCH = 64
_BATCH_BYTES = 256 << 20
"""Size of the tapped tensors of one batch."""

_TOLERANCE = 1e-3
"""Batched and single runs sum in other orders."""


def open_as_written(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session that runs quantized models as their QuantizeLinear and DequantizeLinear say.

    In float between them.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    config = {"session.disable_quant_qdq": "1"}
    return open_session(model, threads=usable_processors(), config=config)


def free_batch(
    model: ir.Model,
    samples: Sequence[Feeds],
    name: str = "N",
    like: ir.Model | None = None,
) -> onnx.ModelProto | None:
    """A copy of the model whose leading dimension is free, or None if it cannot be.

    Args:
        model: All inputs have the same leading dimension.
        samples: Two of them are run together and alone, to try.
        name: Of the free dimension.
        like: A model to try instead: the float one that a quantized model, whose results move by
            whole steps when sums are rounded otherwise, was made of.
    """
    if like is not None and free_batch(like, samples) is None:
        return None
    sizes = {shape_of(v)[:1] for v in model.graph.inputs}
    if len(sizes) != 1 or () in sizes or len(samples) < 2:
        return None
    ((batch,),) = sizes
    proto = ir.to_proto(model)
    _free_dimensions(proto, model, batch, name)
    tried = like is not None or _works(proto, ir.to_proto(model), samples[:2])
    return proto if tried else None


def _free_dimensions(proto: onnx.ModelProto, model: ir.Model, batch: int, name: str) -> None:
    graph = proto.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == batch:
            dims[0].dim_param = name
    shapes = {v.name: shape_of(v) for v in model.graph.inputs}
    shapes |= {v.name: shape_of(v) for node in model.graph for v in node.outputs}
    targets = {t.name: t for t in graph.initializer}
    made: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in targets:
            continue
        target = numpy_helper.to_array(targets[node.input[1]])
        source = shapes.get(node.input[0], ())
        if not target.size or target[0] != batch or source[:1] != (batch,):
            continue
        if node.input[1] not in made:
            fresh = f"{node.input[1]}/batch"
            free = target.copy()
            free[0] = 0  # copies the input's dimension
            graph.initializer.append(numpy_helper.from_array(free, fresh))
            made[node.input[1]] = fresh
        if not any(a.name == "allowzero" and a.i for a in node.attribute):
            node.input[1] = made[node.input[1]]


def _works(free: onnx.ModelProto, fixed: onnx.ModelProto, samples: Sequence[Feeds]) -> bool:
    alone = open_as_written(fixed)
    try:
        together = open_as_written(free).run(None, _stack(samples))
    except Exception:  # whatever ONNX Runtime says about shapes: the graph does not allow it
        return False
    expected = [alone.run(None, dict(sample)) for sample in samples]
    for index, got in enumerate(together):
        wanted = np.concatenate([np.atleast_1d(outputs[index]) for outputs in expected])
        if got.shape != wanted.shape:
            return False
        scale = float(np.abs(wanted.astype(np.float64)).max(initial=0.0))
        if not np.allclose(got, wanted, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True):
            return False
    return True


def _stack(samples: Sequence[Feeds]) -> dict[str, Array]:
    return {name: np.concatenate([s[name] for s in samples]) for name in samples[0]}


class SampleRunner:
    """Values inside a model, for every sample.

    Args:
        model: Imported model.
        samples: Inputs of each run, in the model's own shapes.
        like: See :func:`free_batch`.
    """

    def __init__(
        self, model: ir.Model, samples: Sequence[Feeds], like: ir.Model | None = None
    ) -> None:
        self.samples = samples
        free = free_batch(model, samples, like=like)
        self.batched = free is not None
        self.proto = ir.to_proto(model) if free is None else free
        self._bytes = {
            v.name: int(np.prod(shape_of(v))) * 4 for node in model.graph for v in node.outputs
        }
        self._made = {v.name for node in model.graph for v in node.outputs}
        values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
        self.types = {v.name or "": v.dtype for v in values if v.dtype is not None}

    def bytes_of(self, name: str) -> int:
        """Size of a value of one run; 0 of the model's inputs."""
        return self._bytes.get(name, 0)

    def batch_size(self, names: Sequence[str]) -> int:
        """Samples that :meth:`values` runs together for these values; 1 if they run alone."""
        if not self.batched:
            return 1
        each = sum(self._bytes[name] for name in dict.fromkeys(names) if name in self._made)
        return max(1, min(_BATCH, _BATCH_BYTES // max(each, 1)))

    def values(self, names: Sequence[str], size: int | None = None) -> Iterator[dict[str, Array]]:
        """Arrays by name, batch by batch; a model input may be named as well.

        Only the part of the model that they need is run.

        Args:
            names: Values or inputs of the model.
            size: Samples per batch, at most :meth:`batch_size`.
        """
        inputs = [name for name in names if name not in self._made]
        computed = [name for name in dict.fromkeys(names) if name in self._made]
        session = open_as_written(self._beginning(computed)) if computed else None
        wanted = {v.name for v in session.get_inputs()} if session is not None else set()
        for batch in self._batches(size or self.batch_size(computed)):
            found = {name: batch[name] for name in inputs}
            if session is not None:
                feeds = {name: array for name, array in batch.items() if name in wanted}
                found |= zip(computed, session.run(computed, feeds), strict=True)
            yield found

    def inputs(self, size: int | None = None) -> Iterator[dict[str, Array]]:
        """The model's own inputs, batch by batch of at most :meth:`batch_size`."""
        return self._batches(size or self.batch_size(()))

    def _batches(self, size: int) -> Iterator[dict[str, Array]]:
        for start in range(0, len(self.samples), size):
            yield _stack(self.samples[start : start + size])

    def _beginning(self, names: Sequence[str]) -> onnx.ModelProto:
        """The model up to the named values."""
        return beginning(self.proto, {name: self.types[name] for name in names})


def beginning(model: onnx.ModelProto, outputs: Mapping[str, ir.DataType]) -> onnx.ModelProto:
    """The part of a model that computes some of its values, which become its outputs."""
    needed = set(outputs)
    nodes = []
    for node in reversed(model.graph.node):
        if any(name in needed for name in node.output):
            nodes.append(node)
            needed.update(node.input)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.input.extend(v for v in model.graph.input if v.name in needed)
    for name, dtype in outputs.items():
        part.graph.output.append(onnx.helper.make_tensor_value_info(name, int(dtype), None))
    return part
