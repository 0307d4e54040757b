"""``--precision f16``: which parts of a simplified graph become half precision.

On targets that compute in float16 weights and activations become float16
(``passes.half.use_half_precision``), elsewhere weights are stored as float16 and widened when they
are read. What becomes of a node is decided here: by the kernels that there are, by the user's
exceptions, and by what samples show (``half_analysis``).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import onnx_ir as ir

from effc.compiled import PassRecord
from effc.devices.target import Target
from effc.errors import UsageError
from effc.half_analysis import examine
from effc.kernels import registry
from effc.kernels.elementwise import OPS
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.options import CompileOptions
from effc.passes.graph import const, shape_of
from effc.passes.half.use_half_precision import EXACT_INPUTS, StoreHalfWeights, UseHalfPrecision
from effc.regions import attribute_of
from effc.views import VIEW_OPS

__all__ = ["use_half_precision"]


def use_half_precision(
    model: ir.Model,
    target: Target,
    options: CompileOptions,
    progress: Callable[[int, int, str], None],
) -> PassRecord:
    """Change a simplified model in place.

    Args:
        model: float32 graph.
        target: Whether it computes in float16 decides what is done.
        options: Exceptions, and calibration data if there is any.
        progress: Told what is measured.

    Raises:
        UsageError: An exception names no node, or there are samples for an integer model.
        ModelError: The calibration data does not fit the model.
    """
    keep = _exceptions(model, options.layer_precision)
    found = None
    if options.calibration is not None:
        _require_floats(model)
        found = examine(
            model, options, lambda keep, ranges: _pass(target, ranges, keep), keep, progress
        )
        keep = keep | found.keep
    ranges = {} if found is None else found.ranges
    applied = _pass(target, ranges, keep)
    result = applied.run(model)
    settings: dict[str, Any] = {
        "float16": "weights and activations" if target.half_arithmetic else "weights"
    }
    if found is not None:
        settings |= found.settings
    refused = tuple(f"{where}: {why}" for where, why in result.refused)
    return PassRecord(applied.name, result.applied, refused, settings)


def _pass(
    target: Target, ranges: Mapping[str, float], keep: Mapping[str, str]
) -> UseHalfPrecision | StoreHalfWeights:
    if target.half_arithmetic:
        return UseHalfPrecision(lambda node: _half_refusal(node, target), ranges, keep)
    return StoreHalfWeights(lambda node: _weight_refusal(node, target), keep)


def _require_floats(model: ir.Model) -> None:
    """Noise is measured in ONNX Runtime, which has no integer operators of ours."""
    integer = next((node for node in model.graph if node.domain == DOMAIN), None)
    if integer is not None:
        raise UsageError(
            "samples cannot show what half precision costs a quantized model",
            where=f"--calibration, node '{integer.name}'",
            expected="a float model",
            hint="leave --calibration out: half precision is for the layers that are still float",
        )


def _exceptions(model: ir.Model, rules: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Why nodes stay float32, by name, as far as the user says so."""
    names = [node.name or "" for node in model.graph]
    keep: dict[str, str] = {}
    for pattern, precision in rules:
        matched = [n for n in names if n == pattern or fnmatchcase(n, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern, names, 3)
            raise UsageError(
                "no node matches",
                where="precision",
                expected=", ".join(near or names[:5]),
                got=repr(pattern),
            )
        for name in matched:
            if precision == "f32":
                keep[name] = "the recipe says so"
            else:
                keep.pop(name, None)
    return keep


def _half_refusal(node: ir.Node, target: Target) -> str | None:
    """Why no kernel of ours computes a node in float16."""
    if node.domain or any(a.type not in _PLAIN for a in node.attributes.values()):
        return f"{node.op_type} has no float16 kernel"
    if node.op_type in VIEW_OPS:
        return None
    region = _alone(node, lambda index, value: True)
    if registry.accepts_fused(region, target):
        return None
    return f"{node.op_type} has no float16 kernel"


def _weight_refusal(node: ir.Node, target: Target) -> str | None:
    """Why no kernel of ours reads a product's weights as float16."""
    region = _alone(node, lambda index, value: index < 2 and const(value) is not None)
    if registry.accepts_fused(region, target):
        return None
    return f"no kernel of {node.op_type} widens its weights"


_PLAIN = frozenset(
    {
        ir.AttributeType.INT,
        ir.AttributeType.INTS,
        ir.AttributeType.FLOAT,
        ir.AttributeType.FLOATS,
        ir.AttributeType.STRING,
    }
)


def _alone(node: ir.Node, halves: Callable[[int, ir.Value], bool]) -> Region:
    """A region of one node; of its float32 operands those that ``halves`` names are float16."""
    half_results = not any(
        _is_float(v) and not halves(i, v) for i, v in enumerate(node.inputs) if v is not None
    )

    def convert(value: ir.Value, half: bool) -> Value:
        array = const(value)
        dtype = "float16" if half and _is_float(value) else _dtype(value)
        if array is not None:
            array = array.astype(dtype, copy=False)
        return Value(value.name or "", TensorType(shape_of(value), dtype), array)

    exact = EXACT_INPUTS.get(node.op_type, ())
    inputs = tuple(
        None if v is None else convert(v, i not in exact and halves(i, v))
        for i, v in enumerate(node.inputs)
    )
    outputs = tuple(convert(v, half_results) for v in node.outputs if v.name or v.uses())
    attrs = {name: attribute_of(attr) for name, attr in node.attributes.items()}
    if node.op_type == "Cast" and half_results and _is_float(node.outputs[0]):
        attrs["to"] = int(ir.DataType.FLOAT16)
    op = Op(node.op_type, inputs, outputs, attrs, node.name or "", node.domain)
    runtime = [v for v in inputs if v is not None and v.const is None]
    unique = tuple({id(v): v for v in runtime}.values())
    anchor = None if node.op_type in OPS else op
    return Region("alone", (op,), anchor, unique, outputs)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _dtype(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy().name)
