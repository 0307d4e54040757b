"""A float ONNX model with all its tensors within reach, through ONNX Runtime.

Besides whole inferences it computes parts: the tensors between given ones, as one layer of a
compiled model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from effc.errors import ModelError
from effc.reference import Reference
from effc.samples import Arrays

__all__ = ["FloatModel", "open_float_model"]

_SHAPES = frozenset({"Shape", "Size"})
"""Operators whose results do not depend on values: taken from the whole inference."""


def open_float_model(
    source: Path | onnx.ModelProto, shapes: Mapping[str, Any], constants: Mapping[str, Any]
) -> FloatModel:
    """The user's model, or if ONNX Runtime cannot load it, as effc imports it.

    Args:
        source: Model file (external data beside it), or the model in memory.
        shapes: Static shapes of the inputs.
        constants: Inputs that were fixed at compile time.

    Raises:
        ModelError: Neither can be loaded.
        UsageError: There is no such file.
    """
    from effc.frontend.load import load_proto

    model, folder = load_proto(source)
    if folder is not None:
        onnx.load_external_data_for_model(model, str(folder))
    try:
        return FloatModel(model, constants)
    except ModelError:  # for example an opset long gone
        import onnx_ir as ir

        from effc.frontend import import_model

        return FloatModel(ir.to_proto(import_model(source, shapes=shapes, constants=constants)), {})


class FloatModel:
    """A model in ONNX Runtime.

    Args:
        model: With its weights in memory; not changed.
        constants: Inputs that have a fixed value.

    Attributes:
        outputs: Names of the model's outputs.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """

    def __init__(self, model: onnx.ModelProto, constants: Mapping[str, Any]) -> None:
        self._model = model
        self._constants = Reference(model, constants).constants
        graph = model.graph
        self.outputs = [v.name for v in graph.output]
        self._weights = {t.name: t for t in graph.initializer}
        self._inputs = {v.name for v in graph.input} - self._weights.keys()
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._order = {id(node): position for position, node in enumerate(graph.node)}
        self._whole: tuple[frozenset[str], Reference] | None = None
        self._parts: dict[tuple[tuple[str, ...], tuple[str, ...]], _Part | str] = {}

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this name that depends on its inputs."""
        return name in self._producers or name in self._inputs

    def tensors(self, names: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Tensors by name in one inference; unknown names are left out.

        Raises:
            ModelError: ONNX Runtime fails on these inputs.
        """
        shapes = {n for n, node in self._producers.items() if node.op_type in _SHAPES}
        wanted = frozenset(n for n in names if n in self._producers) | shapes
        if self._whole is None or self._whole[0] != wanted:
            model = onnx.ModelProto()
            model.CopyFrom(self._model)
            model.graph.output.extend(
                helper.make_empty_tensor_value_info(n) for n in sorted(wanted - {*self.outputs})
            )
            self._whole = (wanted, Reference(model, self._constants, optimize=False))
        given = {name: array for name, array in inputs.items() if name in self._inputs}
        return {**given, **self._whole[1](given)}

    def between(
        self, sources: Mapping[str, np.ndarray], results: Sequence[str], known: Arrays
    ) -> Arrays | str:
        """Compute tensors from others that are given.

        Args:
            sources: Given tensors by name.
            results: Names of tensors of the model.
            known: Result of :meth:`tensors`, for what depends on shapes only.

        Returns:
            The results by name, or a sentence why they cannot be computed from these sources.
        """
        same = {name: sources[name] for name in results if name in sources}
        if len(same) == len(results):
            return same
        key = (tuple(sources), tuple(results))
        if key not in self._parts:
            self._parts[key] = self._part(sources, results, known)
        part = self._parts[key]
        if isinstance(part, str):
            return part
        return same | part.reference({name: {**known, **sources}[name] for name in part.inputs})

    def _part(
        self, sources: Mapping[str, np.ndarray], results: Sequence[str], known: Arrays
    ) -> _Part | str:
        nodes: dict[int, onnx.NodeProto] = {}
        inputs: dict[str, np.ndarray] = {}
        weights: dict[str, onnx.TensorProto] = {}
        open_ = [name for name in results if name not in sources]
        wanted = list(open_)
        while open_:
            name = open_.pop()
            node = self._producers.get(name)
            if name in sources:
                inputs[name] = sources[name]
            elif name in self._weights:
                weights[name] = self._weights[name]
            elif node is not None and node.op_type in _SHAPES:
                inputs[name] = known[name]
            elif name in self._constants:
                weights[name] = onnx.numpy_helper.from_array(self._constants[name], name)
            elif node is None:
                return f"in the model it also depends on '{name}'"
            elif id(node) not in nodes:
                nodes[id(node)] = node
                open_ += _reads(node)
        unused = [name for name in sources if name not in inputs and name not in results]
        if unused:
            return f"in the model it does not depend on '{unused[0]}'"
        return _Part(tuple(inputs), self._reference(nodes, inputs, weights, wanted))

    def _reference(
        self,
        nodes: Mapping[int, onnx.NodeProto],
        inputs: Arrays,
        weights: Mapping[str, onnx.TensorProto],
        results: Sequence[str],
    ) -> Reference:
        kind = helper.np_dtype_to_tensor_dtype
        graph = helper.make_graph(
            [nodes[key] for key in sorted(nodes, key=lambda key: self._order[key])],
            "part",
            [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in inputs.items()],
            [helper.make_empty_tensor_value_info(name) for name in results],
            list(weights.values()),
        )
        model = helper.make_model(
            graph,
            ir_version=self._model.ir_version,
            opset_imports=self._model.opset_import,
            functions=self._model.functions,
        )
        return Reference(model, optimize=False)


class _Part:
    """Some nodes of a model, with the names of what they need."""

    def __init__(self, inputs: tuple[str, ...], reference: Reference) -> None:
        self.inputs = inputs
        self.reference = reference


def _reads(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, those of its bodies that come from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            inside = {v.name for v in body.input} | {t.name for t in body.initializer}
            for inner in body.node:
                names += [name for name in _reads(inner) if name not in inside]
                inside |= {*inner.output}
    return names
