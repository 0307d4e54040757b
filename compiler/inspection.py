"""What ``effc inspect`` and ``effc explain`` say, as plain data."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.errors import UsageError

if TYPE_CHECKING:
    from effc.layers import LayerRecord

__all__ = ["explain_layer", "inspect_artifact", "inspect_model", "plan_quality"]


def inspect_artifact(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest without what only machines need."""
    hidden = {"schema_version", "files", "steps", "values"}
    result = {key: value for key, value in manifest.items() if key not in hidden}
    result["kind"] = "artifact"
    result["layers"] = [
        {key: value for key, value in layer.items() if key not in ("alternatives", "refused")}
        for layer in manifest["layers"]
    ]
    return result


def plan_quality(manifest: Mapping[str, Any]) -> str:
    """What is known about an arena: its distance to the lower bound, and what is proven."""
    peak, arena = manifest["memory_peak"], manifest["arena_bytes"]
    bound = manifest["arena_lower_bound_bytes"]
    exact = "at the lower bound"
    if arena > bound:
        exact = f"{100 * (arena / bound - 1):.1f} % above the lower bound"
    plan = "no smaller one exists" if peak["plan_proven"] else "a smaller one is not excluded"
    order = "a better order is not excluded"
    if peak["optimal"]:
        order = "no other order has a smaller arena"
    elif peak["order_proven"]:
        order = f"no order needs less than {peak['order_bound_bytes']} bytes"
    return f"{exact}; for this order {plan}; {order}"


def inspect_model(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Operators, parameters, multiply-accumulates and zeros of an ONNX model.

    Shapes and multiply-accumulates need static shapes; where dimensions stay open
    they are ``None`` and the open inputs are listed.

    Raises:
        ModelError: The file is no valid model.
    """
    from effc.frontend import import_model
    from effc.frontend.load import load_proto
    from effc.layers import record
    from effc.regions import partition

    proto, _ = load_proto(path)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    constants = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in constants]
    result: dict[str, Any] = {
        "kind": "model",
        "opset": opset,
        "ir_version": proto.ir_version,
        "producer": proto.producer_name,
        "inputs": [_value(v) for v in inputs],
        "outputs": [_value(v) for v in proto.graph.output],
        "nodes": len(proto.graph.node),
        "operators": dict(Counter(_operator(n) for n in proto.graph.node).most_common()),
        "parameters": sum(_elements(t.dims) for t in proto.graph.initializer),
        "macs": None,
        "layers": None,
    }
    try:
        model = import_model(path, shapes=shapes)
    except UsageError as error:
        result["open"] = str(error)
        return result
    graph = partition(model, (), lambda region: False)
    layers = [_model_layer(record(region, None)) for region in graph.regions]
    result["macs"] = sum(layer["macs"] for layer in layers)
    result["layers"] = layers
    return result


def _model_layer(layer: LayerRecord) -> dict[str, Any]:
    return {
        "name": layer.nodes[0],
        "op": layer.op,
        "macs": layer.macs,
        "sparsity": round(layer.sparsity, 4),
        "pattern": layer.pattern,
        "units": dict(layer.units),
        "inputs": [list(shape) for shape in layer.inputs],
        "outputs": [list(shape) for shape in layer.outputs],
    }


def _operator(node: Any) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _elements(dims: Any) -> int:
    count = 1
    for dim in dims:
        count *= int(dim)
    return count


def _value(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    except KeyError:
        dtype = "unknown"
    return {
        "name": value.name,
        "dtype": dtype,
        "shape": [
            d.dim_value if d.HasField("dim_value") else d.dim_param or None
            for d in tensor.shape.dim
        ],
    }


def explain_layer(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One layer with everything known about the choice of its kernel.

    Args:
        manifest: Of an artifact.
        name: Name of the layer, or of an ONNX node in it. Where passes have put others in that
            node's place (``conv/ConvInteger``), the layer with most multiply-accumulates counts.

    Raises:
        UsageError: There is no such layer; near matches are listed.
    """
    layers = manifest["layers"]
    found = [layer for layer in layers if layer["name"] == name]
    found = found or [layer for layer in layers if name in layer["nodes"]]
    found = found or [x for x in layers if any(_stems_from(node, name) for node in x["nodes"])]
    if not found:
        names = [layer["name"] for layer in layers]
        nodes = [node for layer in layers for node in layer["nodes"]]
        near = difflib.get_close_matches(name, names + nodes, n=3)
        raise UsageError(
            f"no layer or node is called '{name}'",
            hint=f"did you mean {', '.join(near)}?" if near else "see effc inspect",
        )
    layer = dict(max(found, key=lambda layer: layer["macs"]))
    layer["passes"] = [
        {"pass": entry["name"], "what": what}
        for entry in manifest["passes"]
        for what in (*entry["applied"], *entry["refused"])
        if any(_mentions(what, node) for node in layer["nodes"])
    ]
    return layer


def _mentions(text: str, node: str) -> bool:
    """Whether a pass's record is about a node, or one that it stems from."""
    name = text.partition(": ")[0]
    return _stems_from(node, name) or text == node


def _stems_from(node: str, name: str) -> bool:
    """Whether a node is called ``name``, or ``name/Operator`` as what passes put in its place."""
    return node == name or node.startswith(f"{name}/")
