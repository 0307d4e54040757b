"""Checks on a model before anything is computed from it.

Each check is linear in the model's size. ONNX's own checker runs on a copy
without weights (they are checked here), so that hundreds of megabytes are
never serialized for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import onnx
from onnx import TensorProto

from effc.errors import ModelError, UnsupportedError
from effc.frontend.bind import TENSOR_LIMIT

__all__ = ["OLDEST_OPSET", "validate"]

OLDEST_OPSET = 7
NODE_LIMIT = 200_000

_BITS = {
    "FLOAT": 32,
    "DOUBLE": 64,
    "FLOAT16": 16,
    "BFLOAT16": 16,
    "INT8": 8,
    "INT16": 16,
    "INT32": 32,
    "INT64": 64,
    "UINT8": 8,
    "UINT16": 16,
    "UINT32": 32,
    "UINT64": 64,
    "BOOL": 8,
    "INT4": 4,
    "UINT4": 4,
    "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8,
    "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8,
    "FLOAT4E2M1": 4,
    "FLOAT8E8M0": 8,
    "INT2": 2,
    "UINT2": 2,
}
_TYPE_BITS = {TensorProto.DataType.Value(name): bits for name, bits in _BITS.items()}


def validate(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Raise if the model is malformed.

    Returns:
        The model itself; a sorted copy if its nodes are merely in the wrong order.

    Raises:
        ModelError: Wrong versions, names, cycles, sizes; or what onnx.checker finds.
        UnsupportedError: Sparse initializers, strings.
    """
    _check_versions(proto)
    graph = proto.graph
    bodies = [function.node for function in proto.functions]
    for count, node in enumerate(_all_nodes([graph.node, *bodies])):
        if count >= NODE_LIMIT:
            raise ModelError("too many nodes", expected=f"<= {NODE_LIMIT}")
        _check_attributes(node)
    if graph.sparse_initializer:
        raise UnsupportedError(
            "sparse initializers are not supported",
            where=graph.sparse_initializer[0].values.name,
            hint="store the weights densely",
        )
    if not graph.output:
        raise ModelError("the model has no outputs", where=graph.name)
    for tensor in graph.initializer:
        check_tensor(tensor, data=False)
    order = _check_names(graph)
    if order is not None:
        proto = _reordered(proto, order)
    _run_checker(proto)
    return proto


def _reordered(proto: onnx.ModelProto, order: Sequence[int]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    copy.graph.node.extend(proto.graph.node[index] for index in order)
    return copy


def _check_versions(proto: onnx.ModelProto) -> None:
    if not proto.ir_version or proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            "unknown ONNX format version",
            expected=f"1..{onnx.IR_VERSION}",
            got=proto.ir_version,
            hint="re-export with an older opset, or update effc",
        )
    newest = onnx.defs.onnx_opset_version()
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not versions and not proto.opset_import:
        raise ModelError("the model does not say which opset it uses")
    for version in versions:
        if not OLDEST_OPSET <= version <= newest:
            raise ModelError(
                "this opset is not supported",
                expected=f"{OLDEST_OPSET}..{newest}",
                got=version,
                hint="convert it with onnx.version_converter or re-export it",
            )


def _all_nodes(bodies: Iterable[Iterable[onnx.NodeProto]]) -> Iterable[onnx.NodeProto]:
    """Nodes of all bodies and of their subgraphs."""
    stack = list(bodies)
    while stack:
        for node in stack.pop():
            yield node
            stack += [body.node for body in _subgraphs(node)]


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found = [attr.g for attr in node.attribute if attr.HasField("g")]
    return found + [body for attr in node.attribute for body in attr.graphs]


def _check_attributes(node: onnx.NodeProto) -> None:
    """Text must be text; tensors must be whole and lie in the file (Constant: or beside it)."""
    for attr in node.attribute:
        where = f"{node.op_type} {node.name}.{attr.name}"
        if attr.type == onnx.AttributeProto.STRING:
            try:
                attr.s.decode()
            except UnicodeDecodeError:
                raise ModelError(
                    "the attribute is not text", where=where, got=attr.s[:40]
                ) from None
        for tensor in ([attr.t] if attr.HasField("t") else []) + list(attr.tensors):
            if tensor.data_location == TensorProto.EXTERNAL and node.op_type != "Constant":
                raise ModelError("external data in an attribute", where=where)
            if tensor.data_type != TensorProto.STRING:
                check_tensor(tensor)
    for body in _subgraphs(node):
        for tensor in body.initializer:
            check_tensor(tensor, data=False)


def check_tensor(tensor: TensorProto, *, data: bool = True) -> None:
    """Check a tensor's type and shape, and that its data has the size they say.

    Args:
        tensor: The tensor.
        data: Whether to look at the data. (Protobuf copies it, so weights are
            looked at once, when they are used.)

    Raises:
        ModelError: It has not, or the shape is absurd.
        UnsupportedError: A type that cannot be computed with.
    """
    bits = _TYPE_BITS.get(tensor.data_type)
    if bits is None:
        known = tensor.data_type in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
        raise UnsupportedError("tensor type is not supported", where=tensor.name, got=name)
    if any(d < 0 for d in tensor.dims):
        raise ModelError("negative dimension", where=tensor.name, got=list(tensor.dims))
    count = prod(tensor.dims)
    nbytes = -(-count * bits // 8)
    if nbytes > TENSOR_LIMIT:
        raise ModelError(
            "the tensor is too large",
            where=tensor.name,
            expected=f"<= {TENSOR_LIMIT} bytes",
            got=f"{list(tensor.dims)}",
        )
    if not data or tensor.data_location == TensorProto.EXTERNAL:
        return
    if tensor.HasField("raw_data"):
        found, expected = len(tensor.raw_data), nbytes
    else:
        found = max(
            len(tensor.float_data),
            len(tensor.int32_data),
            len(tensor.int64_data),
            len(tensor.double_data),
            len(tensor.uint64_data),
        )
        expected = count if bits >= 8 else -(-count * bits // 8)
    if found != expected:
        raise ModelError(
            "the tensor's data does not have the size its shape says",
            where=tensor.name,
            expected=f"{expected} for {list(tensor.dims)}",
            got=found,
        )


def _check_names(graph: onnx.GraphProto) -> list[int] | None:
    """Single assignment, no unknown names, no cycles; the right order if it is another."""
    for value in (*graph.input, *graph.output):
        if "\0" in value.name:
            raise ModelError("the name of an input or output holds a zero byte", got=value.name)
    known = {v.name for v in graph.input}
    if len(known) != len(graph.input):
        raise ModelError("two inputs have the same name", where=graph.name)
    known |= {t.name for t in graph.initializer}
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in producers or name in known):
                raise ModelError("two values have the same name", where=f"{node.op_type} {name}")
            producers[name] = index
    pending: list[int] = []
    users: dict[int, list[int]] = {}
    ready = []
    for index, node in enumerate(graph.node):
        sources = set()
        for name in _reads(node):
            if name in producers:
                sources.add(producers[name])
            elif name not in known:
                raise ModelError(
                    "a node reads a value that nothing produces",
                    where=node.name or node.op_type,
                    got=name,
                )
        pending.append(len(sources))
        for source in sources:
            users.setdefault(source, []).append(index)
        if not sources:
            ready.append(index)
    _check_outputs(graph, known | set(producers))
    order = []
    while ready:
        current = ready.pop()
        order.append(current)
        for user in users.get(current, ()):
            pending[user] -= 1
            if not pending[user]:
                ready.append(user)
    if len(order) != len(graph.node):
        stuck = next(i for i, n in enumerate(pending) if n)
        node = graph.node[stuck]
        raise ModelError("the graph has a cycle", where=f"{node.op_type} {node.name}".strip())
    return order if any(u < s for s, us in users.items() for u in us) else None


def _check_outputs(graph: onnx.GraphProto, known: set[str]) -> None:
    names = [v.name for v in graph.output]
    for name in names:
        if name not in known:
            raise ModelError("nothing produces this output", where=name)
    if len(set(names)) != len(names):
        raise ModelError("two outputs have the same name", where=graph.name)


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Names read from the enclosing graph, also by subgraphs."""
    yield from (name for name in node.input if name)
    for body in _subgraphs(node):
        local = {v.name for v in body.input} | {t.name for t in body.initializer}
        local |= {name for inner in body.node for name in inner.output}
        for inner in body.node:
            yield from (name for name in _reads(inner) if name not in local)


def _run_checker(proto: onnx.ModelProto) -> None:
    """onnx.checker on a copy whose weights became inputs."""
    light = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    light.opset_import.extend(proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name or "graph"
    graph.input.extend(proto.graph.input)
    listed = {v.name for v in graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in listed:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(info)
    graph.output.extend(proto.graph.output)
    for info in (*graph.input, *graph.output):  # runtimes accept models that leave shapes out
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()
    graph.node.extend(proto.graph.node)
    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            "onnx.checker rejects the model",
            got=lines[0] if lines else "?",
            where=lines[-1].strip() if len(lines) > 1 else None,
        ) from None
    except (RuntimeError, ValueError) as error:
        raise ModelError("onnx.checker rejects the model", got=str(error)[:500]) from None
