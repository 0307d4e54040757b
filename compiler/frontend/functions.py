"""Function bodies: those of the model, and those ONNX defines for newer operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx import helper

from effc.passes.graph import OPSET, dtype_of, shape_of

__all__ = ["INLINED", "instantiate", "schema_function"]

INLINED = frozenset(
    {
        "AffineGrid",
        "CenterCropPad",
        "DynamicQuantizeLinear",
        "MeanVarianceNormalization",
        "NegativeLogLikelihoodLoss",
        "SoftmaxCrossEntropyLoss",
    }
)
"""Operators of ``OPSET`` that are replaced by ONNX's definition because no kernel has them."""


def instantiate(function: ir.Function, call: ir.Node) -> ir.Function:
    """A copy of a function whose attribute references hold the call's attributes."""
    body = function.clone()
    given = {name: attr for name, attr in function.attributes.items() if attr.value is not None}
    given.update(call.attributes.items())
    for node in body.all_nodes():
        for name, attr in list(node.attributes.items()):
            if not attr.is_ref():
                continue
            del node.attributes[name]
            actual = given.get(attr.ref_attr_name or "")
            if actual is not None:
                node.attributes[name] = ir.Attr(name, actual.type, actual.value)
    return body


def schema_function(
    node: ir.Node, inputs: Sequence[ir.Value | None], version: int
) -> ir.Function | None:
    """ONNX's own definition of an operator outside ``OPSET`` or in ``INLINED``, or None.

    Args:
        node: A node of one of ONNX's domains at opset ``version``.
        inputs: Its operands in the new graph (typed).

    Returns:
        A function whose outputs carry the names of the node's outputs that it computes;
        attributes hold their defaults.
    """
    domain = node.domain
    if not domain and onnx.defs.has(node.op_type, OPSET, "") and node.op_type not in INLINED:
        return None
    if not onnx.defs.has(node.op_type, version, domain):
        return None
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    proto = _definition(schema, node, inputs)
    if proto is None:
        return None
    defaults = {n: a.default_value for n, a in schema.attributes.items() if a.default_value.type}
    named = [name for name in proto.attribute if name not in defaults]
    del proto.attribute[:]
    proto.attribute.extend(named)
    proto.attribute_proto.extend(defaults.values())
    computed = {name for inner in proto.node for name in inner.output}
    for position, name in enumerate(list(proto.output)):
        if name not in computed and name not in proto.input:
            # Results that the call leaves out are not computed by the definition.
            inner = proto.node.add(op_type="Identity", input=[proto.input[0]], output=[name])
            inner.name = f"unused_{position}"
    if not any(o.domain == "" for o in proto.opset_import):
        own = onnx.defs.onnx_opset_version() if domain else schema.since_version
        proto.opset_import.append(helper.make_opsetid("", own))
    return ir.serde.deserialize_function(proto)


def _definition(
    schema: onnx.defs.OpSchema, node: ir.Node, inputs: Sequence[ir.Value | None]
) -> onnx.FunctionProto | None:
    """The operator's body, as written for these operands where it depends on them."""
    if schema.has_function:
        newest = max(schema.function_opset_versions)
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(newest))
    if not schema.has_context_dependent_function:
        return None
    call = helper.make_node(
        node.op_type,
        [f"i{n}" if v is not None else "" for n, v in enumerate(inputs)],
        [v.name or "" for v in node.outputs],
        domain=node.domain,
    )
    call.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
    types = [
        b""
        if v is None
        else helper.make_tensor_type_proto(int(dtype_of(v)), shape_of(v)).SerializeToString()
        for v in inputs
    ]
    newest = max(schema.context_dependent_function_opset_versions)
    return onnx.FunctionProto.FromString(
        schema.get_context_dependent_function_with_opset_version(
            newest, call.SerializeToString(), types
        )
    )
