"""Opset conversion: complete with respect to ONNX's history, and equal to ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from reference import assert_equivalent, run

from effc.errors import UnsupportedError
from effc.frontend import OPSET, import_model
from effc.frontend.adapters import ADAPTERS
from effc.frontend.control_flow import CONTROL_FLOW
from effc.frontend.validate import OLDEST_OPSET

Array = np.ndarray[Any, Any]

SPECIAL = {"Constant", *CONTROL_FLOW}
"""Read by the importer itself, in every form."""

NOT_TENSORS = {"Optional", "OptionalGetElement", "OptionalHasElement", "SplitToSequence"}

EQUAL_MEANING = {
    "NonMaxSuppression": "10 lacked center_point_box and empty sets only",
    "MaxPool": "8 lacked dilations and ceil_mode; new ones have neutral defaults",
    "Clip": "12 added integer types",
    "Cast": "saturate and round_mode matter for 8-bit floats only",
    "LSTM": "layout was added with a neutral default",
    "GRU": "layout was added with a neutral default",
    "RNN": "layout was added with a neutral default",
    "RoiAlign": "16 added half_pixel as its default; output_half_pixel is the old behaviour",
}


def _history() -> dict[str, list[onnx.defs.OpSchema]]:
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema)
    return found


def _at(schemas: list[onnx.defs.OpSchema], version: int) -> onnx.defs.OpSchema | None:
    old = [s for s in schemas if s.since_version <= version]
    return max(old, key=lambda s: s.since_version) if old else None


def _attributes(schema: onnx.defs.OpSchema) -> dict[str, bytes]:
    return {n: a.default_value.SerializeToString() for n, a in schema.attributes.items()}


def _reads_the_same(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Whether every node of the old form is a node of the new form, judged by its signature."""
    before, after = _attributes(old), _attributes(new)
    if any(name not in after or after[name] != default for name, default in before.items()):
        return False
    names = [i.name for i in old.inputs]
    return len(old.inputs) <= len(new.inputs) and len(names) == len(old.inputs)


def test_every_change_of_an_operator_is_adapted() -> None:
    missing = []
    for name, schemas in _history().items():
        target = _at(schemas, OPSET)
        if target is None or name in SPECIAL or name in NOT_TENSORS or target.deprecated:
            continue
        for version in range(OLDEST_OPSET, onnx.defs.onnx_opset_version() + 1):
            source = _at(schemas, version)
            if source is None or source.since_version == target.since_version:
                continue
            adapted = any(low <= version <= high for low, high, _ in ADAPTERS.get(name, ()))
            if adapted or name in EQUAL_MEANING:
                continue
            older = version < OPSET
            if older and not _reads_the_same(source, target):
                missing.append(f"{name}-{source.since_version}")
            # Newer forms: attributes the target lacks are checked at import, operands here.
            if not older and len(source.inputs) > len(target.inputs):
                missing.append(f"{name}-{source.since_version}")
    assert not sorted(set(missing))


def test_adapters_name_existing_operators() -> None:
    assert set(ADAPTERS) <= set(_history())


CASES: dict[str, tuple[int, str]] = {
    "softmax over the last axes": (
        11,
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis=1>(x) }",
    ),
    "log-softmax by default": (7, "g (float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax(x) }"),
    "softmax of the last axis": (
        9,
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis=2>(x) }",
    ),
    "clip": (7, "g (float[9] x) => (float[9] y) { y = Clip<min=-0.5, max=0.25>(x) }"),
    "pad": (7, "g (float[2,3] x) => (float[a,b] y) { y = Pad<pads=[1,0,0,2], value=1.5>(x) }"),
    "slice": (
        9,
        "g (float[4,5] x) => (float[a,b] y) { y = Slice<axes=[1], starts=[-3], ends=[99]>(x) }",
    ),
    "top k": (9, "g (float[2,5] x) => (float[2,3] y, int64[2,3] i) { y, i = TopK<k=3>(x) }"),
    "split by sizes": (
        11,
        "g (float[2,5] x) => (float[a,b] y, float[c,d] z) {\n"
        "y, z = Split<axis=1, split=[2,3]>(x) }",
    ),
    "split equally": (
        13,
        "g (float[2,6] x) => (float[a,b] y, float[c,d] z) { y, z = Split<axis=1>(x) }",
    ),
    "squeeze and unsqueeze": (
        11,
        "g (float[2,1,3] x) => (float[a,b,c,d] y) {\n"
        "t = Squeeze<axes=[1]>(x) y = Unsqueeze<axes=[0,-1]>(t) }",
    ),
    "reductions": (
        11,
        "g (float[2,4,3] x) => (float[a,b] y, float[c,d,e] z) {\n"
        "y = ReduceSum<axes=[1], keepdims=0>(x) z = ReduceL2<axes=[-1]>(x) }",
    ),
    "reduction of everything": (13, "g (float[2,3] x) => (float[a,b] y) { y = ReduceMean(x) }"),
    "batch normalization": (
        9,
        "g (float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v)"
        "=> (float[a,b,c] y) {\n w = Abs(v) y = BatchNormalization<epsilon=0.1>(x, s, b, m, w) }",
    ),
    "dropout": (9, "g (float[2,3] x) => (float[2,3] y) { t = Dropout<ratio=0.4>(x) y = Neg(t) }"),
    "upsample": (
        9,
        "g (float[1,2,3,4] x) => (float[a,b,c,d] y) <float[4] s = {1,1,2,3}> {\n"
        'y = Upsample<mode="nearest">(x, s) }',
    ),
    "upsample, bilinear": (
        7,
        "g (float[1,2,3,4] x) => (float[a,b,c,d] y) {\n"
        'y = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(x) }',
    ),
    "resize of opset 10": (
        10,
        "g (float[1,2,3,4] x) => (float[a,b,c,d] y) <float[4] s = {1,1,2,1.5}> {\n"
        'y = Resize<mode="nearest">(x, s) }',
    ),
    "resize with empty operands": (
        11,
        "g (float[1,2,3,4] x) => (float[a,b,c,d] y)\n"
        "<float[0] none = {}, float[4] s = {1,1,2,2}> {\n"
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">'
        "(x, none, s) }",
    ),
    "grid sample": (
        16,
        "g (float[1,1,4,4] x, float[1,3,3,2] p) => (float[a,b,c,d] y) {\n"
        'y = GridSample<mode="bilinear", align_corners=1>(x, p) }',
    ),
    "scatter": (
        10,
        "g (float[3,3] x, float[1,3] u) => (float[3,3] y) <int64[1,3] i = {2,0,1}> {\n"
        "y = Scatter(x, i, u) }",
    ),
    "arg max": (11, "g (float[3,4] x) => (int64[a,b] y) { y = ArgMax<axis=-1>(x) }"),
    "lstm": (
        7,
        "g (float[3,1,2] x, float[1,8,2] w, float[1,8,2] r) => (float[a,b,c,d] y) {\n"
        "y = LSTM<hidden_size=2>(x, w, r) }",
    ),
    "cast": (9, "g (float[4] x) => (int32[4] y) { y = Cast<to=6>(x) }"),
}


@pytest.mark.parametrize("case", CASES)
def test_old_forms_compute_the_same(case: str) -> None:
    opset, text = CASES[case]
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    assert_equivalent(proto, import_model(proto), minimum_db=120)


def _newer(opset: int, text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 12, opset_import: ["" : {opset}]>\n{text}')


def test_newer_attributes_with_default_values_are_dropped() -> None:
    text = 'g (float[4] x) => (int32[4] y) { y = Cast<to=6, round_mode="up">(x) }'
    proto = _newer(24, text)
    model = import_model(proto)
    (node,) = model.graph
    assert set(node.attributes) == {"to"}


def test_newer_attributes_that_matter_are_refused() -> None:
    text = 'g (float[4] x) => (int32[4] y) { y = Cast<to=6, round_mode="nearest">(x) }'
    with pytest.raises(UnsupportedError, match="round_mode"):
        import_model(_newer(24, text))


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_product(exclusive: int, reverse: int) -> None:
    text = f"""g (float[2,5] x) => (float[2,5] y) <int64 axis = {{1}}>
    {{ y = CumProd<exclusive={exclusive}, reverse={reverse}>(x, axis) }}"""
    model = import_model(_newer(26, text))
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    ordered = x[:, ::-1] if reverse else x
    expected = np.cumprod(ordered, axis=1)
    if exclusive:
        expected = np.concatenate([np.ones((2, 1), np.float32), expected[:, :-1]], axis=1)
    expected = expected[:, ::-1] if reverse else expected
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=8 * np.finfo("f4").eps)


def test_group_normalization() -> None:
    text = """g (float[2,6,4,5] x, float[6] s, float[6] b) => (float[2,6,4,5] y)
    { y = GroupNormalization<num_groups=3>(x, s, b) }"""
    model = import_model(_newer(21, text))
    rng = np.random.default_rng(0)
    x, s, b = (rng.standard_normal(n).astype(np.float32) for n in ((2, 6, 4, 5), 6, 6))
    grouped = x.reshape(2, 3, -1).astype(np.float64)
    variance = grouped.var(-1, keepdims=True)
    normal = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5)
    expected = normal.reshape(x.shape) * s.reshape(-1, 1, 1) + b.reshape(-1, 1, 1)
    got = run(model, {"x": x, "s": s, "b": b})[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_batch_first_recurrence_is_transposed() -> None:
    text = """g (float[2,3,4] x, float[1,15,4] w, float[1,15,5] r)
    => (float[a,b,c,d] y, float[e,f,h] last)
    { y, last = GRU<hidden_size=5, layout=1>(x, w, r) }"""
    model = import_model(_newer(22, text))
    shapes = [tuple(v.shape or ()) for v in model.graph.outputs]
    assert shapes == [(2, 3, 1, 5), (2, 1, 5)]
    assert all("layout" not in node.attributes for node in model.graph)


def test_blocked_quantization_is_plain_arithmetic() -> None:
    text = """g (float[4,6] x, float[2,6] s) => (int8[4,6] q, float[4,6] y)
    <int8[2,6] z = {1,2,3,4,5,6,-1,-2,-3,-4,-5,-6}>
    { a = Abs(s) q = QuantizeLinear<axis=0, block_size=2>(x, a, z)
      y = DequantizeLinear<axis=0, block_size=2>(q, a, z) }"""
    model = import_model(_newer(21, text))
    rng = np.random.default_rng(0)
    x, s = (rng.standard_normal(n).astype(np.float32) for n in ((4, 6), (2, 6)))
    zero = np.repeat(np.array([[1, 2, 3, 4, 5, 6], [-1, -2, -3, -4, -5, -6]]), 2, axis=0)
    scale = np.repeat(np.abs(s), 2, axis=0)
    q, y = run(model, {"x": x, "s": s})
    expected = np.clip(np.rint(x / scale) + zero, -128, 127)
    np.testing.assert_array_equal(q, expected.astype(np.int8))
    np.testing.assert_array_equal(y, (q.astype(np.float32) - zero).astype(np.float32) * scale)


CONTRIB_CASES = {
    "fused convolution": """g (float[1,2,5,5] x, float[3,2,3,3] w, float[3] b, float[1,3,3,3] z)
        => (float[1,3,3,3] y)
        { y = com.microsoft.FusedConv<activation="LeakyRelu", activation_params=[0.2]>(x, w, b, z) }
        """,
    "fused product": """g (float[2,4,3] x, float[2,5,3] w) => (float[2,4,5] y)
        { y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, w) }""",
    "gelu with bias": """g (float[2,8] x, float[8] b) => (float[2,8] y)
        { y = com.microsoft.BiasGelu(x, b) }""",
    "fast gelu": "g (float[2,8] x) => (float[2,8] y) { y = com.microsoft.FastGelu(x) }",
    "quick gelu": "g (float[2,8] x) => (float[2,8] y) { y = com.microsoft.QuickGelu(x) }",
    "residual layer norm": """g (float[2,3,8] x, float[2,3,8] z, float[8] s, float[8] b)
        => (float[2,3,8] y)
        { y = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, z, s, b) }""",
    "quantized sum": """g (uint8[2,8] x, uint8[2,8] z) => (uint8[2,8] y)
        <float s = {0.231}, float t = {0.417}, uint8 o = {3}>
        { y = com.microsoft.QLinearAdd(x, s, o, z, t, o, t, o) }""",
    "quantized pooling, channels last": """g (uint8[1,4,4,3] x) => (uint8[1,1,1,3] y)
        <float s = {0.25}, uint8 o = {3}>
        { y = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(x, s, o, s, o) }""",
    "quantized concatenation": """g (uint8[2,3] x, uint8[2,4] z) => (uint8[2,7] y)
        <float s = {0.25}, float t = {0.5}, uint8 o = {3}>
        { y = com.microsoft.QLinearConcat<axis=1>(t, o, x, s, o, z, t, o) }""",
}


@pytest.mark.parametrize("case", CONTRIB_CASES)
def test_operators_of_onnx_runtime_are_written_in_standard_ones(case: str) -> None:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n{CONTRIB_CASES[case]}'
    )
    model = import_model(proto)
    assert not any(node.domain for node in model.graph)
    assert_equivalent(proto, model, minimum_db=100)
