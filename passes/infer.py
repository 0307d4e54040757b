"""Shape and type inference of one node whose input shapes are all static.

In: a node whose inputs have shape and dtype (constants also their value).
Out: its outputs' shape and dtype. The rules are those of the ONNX schemas
(``onnx.shape_inference.infer_node_outputs``), called node by node, so that no
weight is ever serialized; only constants of at most ``DATA_LIMIT`` elements
are shown to the inference, which is where shapes are spelled as data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, shape_inference

from effc.errors import ModelError, UnsupportedError
from effc.passes.integer.operators import DOMAIN, result_type

__all__ = ["DATA_LIMIT", "OPSET", "infer", "static_shape"]

OPSET = 20
"""The operator set every imported graph uses (default domain)."""

DATA_LIMIT = 4096
"""Elements of the largest constant whose value is shown to shape inference."""

_SAME_SHAPE = frozenset(
    {
        "Abs",
        "Ceil",
        "Erf",
        "Exp",
        "Floor",
        "HardSwish",
        "HardSigmoid",
        "Identity",
        "LeakyRelu",
        "Elu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tanh",
        "Clip",
        "Gelu",
        "Softmax",
        "LogSoftmax",
        "Celu",
        "Selu",
        "ThresholdedRelu",
    }
)
_BROADCAST = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "And",
        "Or",
        "Xor",
        "Max",
        "Min",
        "Sum",
        "PRelu",
        "Mod",
    }
)
_COMPARE = frozenset(
    {
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
    }
)


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape as integers, or None if the rank or a dimension is unknown."""
    if value.shape is None:
        return None
    dims = tuple(value.shape)
    return dims if all(isinstance(d, int) for d in dims) else None  # type: ignore[return-value]


@lru_cache(maxsize=4096)
def _type_proto(dtype: int, shape: tuple[int, ...]) -> bytes:
    proto: bytes = onnx.helper.make_tensor_type_proto(dtype, shape).SerializeToString()
    return proto


def _quick(node: ir.Node, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Handle the commonest element-wise operators without a round trip through protobuf."""
    if node.domain or len(node.outputs) != 1 or not shapes or node.inputs[0] is None:
        return False
    out = node.outputs[0]
    if node.op_type in _SAME_SHAPE:
        shape: tuple[int, ...] = shapes[0]
    elif node.op_type in _BROADCAST or node.op_type in _COMPARE:
        try:
            shape = np.broadcast_shapes(*shapes)
        except ValueError:
            raise ModelError(
                f"{node.op_type} cannot broadcast its operands", where=node.name, got=shapes
            ) from None
    else:
        return False
    if node.op_type == "PRelu" and shape != shapes[0]:
        raise ModelError("slope does not broadcast to the input", where=node.name, got=shapes)
    out.shape = ir.Shape(shape)
    compare = node.op_type in _COMPARE
    out.type = ir.TensorType(ir.DataType.BOOL) if compare else node.inputs[0].type
    return True


def infer(node: ir.Node) -> None:
    """Set shape and dtype of the node's outputs; a dimension may stay unknown.

    Args:
        node: Inputs have static shapes and dtypes.

    Raises:
        ModelError: The operands do not fit the operator.
        UnsupportedError: The operator has no ONNX schema at ``OPSET``.
    """
    present = [value for value in node.inputs if value is not None]
    shapes = [static_shape(value) for value in present]
    known = [shape for shape in shapes if shape is not None]
    if len(known) == len(present) and _quick(node, known):
        return
    if node.domain == DOMAIN:
        _infer_integer(node)
        return
    schema = _schema(node)
    types: dict[str, bytes] = {}
    data: dict[str, bytes] = {}
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name or "")
    for index, value in enumerate(node.inputs):
        name = f"i{index}" if value is not None else ""
        proto.input.append(name)
        if value is None:
            continue
        shape = static_shape(value)
        if value.dtype is None or shape is None:
            raise ModelError("input has no static shape", where=f"{node.name}: {value.name}")
        types[name] = _type_proto(int(value.dtype), shape)
        if value.const_value is not None and value.const_value.size <= DATA_LIMIT:
            array = value.const_value.numpy()
            if array.dtype.kind in "iufb":
                data[name] = numpy_helper.from_array(array).SerializeToString()
    proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
    proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
    try:
        found = _apply(schema, proto, types, data)
    except (shape_inference.InferenceError, RuntimeError, ValueError, IndexError) as error:
        text = str(error).strip().splitlines()
        raise ModelError(
            f"{node.op_type} does not fit its operands",
            where=node.name,
            got=[
                f"{v.dtype.name if v.dtype else '?'}{list(s or ())}"
                for v, s in zip(present, shapes, strict=True)
            ],
            hint=text[-1] if text else None,
        ) from None
    for i, out in enumerate(node.outputs):
        if f"o{i}" in found:
            _assign(out, onnx.TypeProto.FromString(found[f"o{i}"]))
    if node.op_type in _BY_VALUE and not node.domain:
        _BY_VALUE[node.op_type](node)


def _infer_integer(node: ir.Node) -> None:
    """An integer operator of ours."""
    types = [None if v is None else _known_type(node, v) for v in node.inputs]
    attrs = {name: attr.value for name, attr in node.attributes.items()}
    try:
        shape, dtype = result_type(node.op_type, types, attrs)
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{node.op_type} does not fit its operands", where=node.name, got=str(error)
        ) from None
    node.outputs[0].shape = ir.Shape(shape)
    node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(dtype))


def _known_type(node: ir.Node, value: ir.Value) -> tuple[tuple[int, ...], np.dtype[Any]]:
    shape = static_shape(value)
    if value.dtype is None or shape is None:
        raise ModelError("input has no static shape", where=f"{node.name}: {value.name}")
    return shape, value.dtype.numpy()


def _newest(node: ir.Node) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(node.op_type, node.domain)


def _schema(node: ir.Node) -> onnx.defs.OpSchema:
    """The operator's schema at ``OPSET``, or the newest if it came later."""
    try:
        if onnx.defs.has(node.op_type, OPSET, node.domain):
            return onnx.defs.get_schema(node.op_type, OPSET, node.domain)
        return _newest(node)
    except onnx.defs.SchemaError:
        raise UnsupportedError(
            f"there is no operator {node.domain or 'ai.onnx'}::{node.op_type}", where=node.name
        ) from None


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _max_unpool(node: ir.Node) -> None:
    """MaxUnpool to a constant output shape."""
    wanted = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if wanted is not None:
        node.outputs[0].shape = ir.Shape([int(d) for d in wanted])


_BY_VALUE = {"MaxUnpool": _max_unpool}
"""Operators whose result's shape is a value that ONNX's inference does not look at."""


_CORRECTED = frozenset({"AveragePool", "LpPool", "MaxPool"})
"""Operators whose inference at ``OPSET`` ignores a rule that later versions state: with
``ceil_mode``, no window starts in the padding behind the tensor."""


def _apply(
    schema: Any, proto: onnx.NodeProto, types: dict[str, bytes], data: dict[str, bytes]
) -> dict[str, bytes]:
    """Run a schema's inference; element types may be those of the newest opset."""
    node = proto.SerializeToString()
    if proto.op_type in _CORRECTED:
        schema = onnx.defs.get_schema(proto.op_type, onnx.defs.onnx_opset_version(), "")
    try:
        found: dict[str, bytes] = schema._infer_node_outputs(
            node, types, data, {}, {"": OPSET}, onnx.IR_VERSION
        )
    except onnx.checker.ValidationError:
        newest = onnx.defs.onnx_opset_version()
        try:
            schema = onnx.defs.get_schema(proto.op_type, newest, proto.domain)
            found = schema._infer_node_outputs(node, types, data, {}, {"": newest}, onnx.IR_VERSION)
        except (onnx.checker.ValidationError, onnx.defs.SchemaError) as error:
            raise ValueError(str(error)) from None
    return found


def _assign(out: ir.Value, proto: Any) -> None:
    out.type = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    if shape is not None:
        out.shape = shape
