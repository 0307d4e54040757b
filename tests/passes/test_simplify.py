"""Each pass: where it applies, where it refuses, and that the result computes the same.

Graphs are written as ONNX text. Inputs called ``c_...`` are bound to random
constants (``c_var...`` to positive ones).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from reference import assert_equivalent

from effc.frontend import import_model
from effc.passes.base import PassResult
from effc.passes.registry import PASSES, simplify

Array = np.ndarray[Any, Any]


def load(text: str, opset: int = 17) -> tuple[onnx.ModelProto, ir.Model, dict[str, Array]]:
    """(original, imported, constants) of a graph in ONNX text."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(1)
    constants: dict[str, Array] = {}
    for value in proto.graph.input:
        if value.name.startswith("c_"):
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            array = rng.standard_normal(shape)
            array = np.abs(array) + 0.5 if value.name.startswith("c_var") else array
            constants[value.name] = array.astype(np.float32)
    return proto, import_model(proto, constants=constants), constants


def ops(model: ir.Model) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph))


def run_pass(model: ir.Model, name: str) -> PassResult:
    return PASSES[name].run(model)


APPLIES = {
    "batch norm into conv": (
        "fold_batch_norm",
        """g (float[1,3,9,8] x, float[4,3,3,3] c_w, float[4] c_s, float[4] c_b, float[4] c_m,
              float[4] c_var) => (float[n,c,h,w] y)
           { t = Conv<pads=[1,1,1,1]>(x, c_w)  y = BatchNormalization(t, c_s, c_b, c_m, c_var) }""",
        {"Conv": 1},
    ),
    "batch norm into grouped transposed conv": (
        "fold_batch_norm",
        """g (float[1,4,5,4] x, float[4,3,2,2] c_w, float[6] c_wb, float[6] c_s, float[6] c_b,
              float[6] c_m, float[6] c_var) => (float[n,c,h,w] y)
           { t = ConvTranspose<group=2, strides=[2,2]>(x, c_w, c_wb)
             y = BatchNormalization<epsilon=0.01>(t, c_s, c_b, c_m, c_var) }""",
        {"ConvTranspose": 1},
    ),
    "batch norm into gemm": (
        "fold_batch_norm",
        """g (float[5,7] x, float[6,7] c_w, float[6] c_wb, float[6] c_s, float[6] c_b, float[6] c_m,
              float[6] c_var) => (float[n,c] y)
           { t = Gemm<transB=1, alpha=0.5, beta=2.0>(x, c_w, c_wb)
             y = BatchNormalization(t, c_s, c_b, c_m, c_var) }""",
        {"Gemm": 1},
    ),
    "batch norm alone": (
        "fold_batch_norm",
        """g (float[2,3,4,5] x, float[3] c_s, float[3] c_b, float[3] c_m, float[3] c_var)
           => (float[n,c,h,w] y) { y = BatchNormalization(x, c_s, c_b, c_m, c_var) }""",
        {"Mul": 1, "Add": 1},
    ),
    "batch norm behind a shared conv": (
        "fold_batch_norm",
        """g (float[1,2,4,5] x, float[3,2,1,1] c_w, float[3] c_s, float[3] c_b, float[3] c_m,
              float[3] c_var) => (float[n,c,h,w] y, float[n,c,h,w] t)
           { t = Conv(x, c_w)  y = BatchNormalization(t, c_s, c_b, c_m, c_var) }""",
        {"Conv": 1, "Mul": 1, "Add": 1},
    ),
    "scale and shift into conv": (
        "fold_scale",
        """g (float[1,3,6,6] x, float[4,3,3,3] c_w, float[1,4,1,1] c_s, float[4,1,1] c_b,
              float[1] c_var) => (float[n,c,h,w] y)
           { a = Conv(x, c_w) b = Mul(c_s, a) c = Sub(c_b, b) y = Div(c, c_var) }""",
        {"Conv": 1},
    ),
    "pad into conv": (
        "merge_pad",
        """g (float[1,3,6,7] x, float[4,3,3,3] c_w) => (float[n,c,h,w] y)
           <int64[8] p = {0,0,1,2,0,0,3,0}>
           { t = Pad(x, p) y = Conv<pads=[1,0,0,1]>(t, c_w) }""",
        {"Conv": 1},
    ),
    "pad into average pool": (
        "merge_pad",
        """g (float[1,3,6,7] x) => (float[n,c,h,w] y) <int64[8] p = {0,0,1,1,0,0,1,1}>
           { t = Pad(x, p) y = AveragePool<kernel_shape=[3,3], strides=[2,2]>(t) }""",
        {"AveragePool": 1},
    ),
    "pad into max pool behind relu": (
        "merge_pad",
        """g (float[1,3,6,7] x) => (float[n,c,h,w] y) <int64[8] p = {0,0,1,1,0,0,0,0}>
           { r = Relu(x) t = Pad(r, p) y = MaxPool<kernel_shape=[3,2], strides=[2,2]>(t) }""",
        {"Relu": 1, "MaxPool": 1},
    ),
    "automatic padding": (
        "make_pads_explicit",
        """g (float[1,3,7,8] x, float[4,3,3,4] c_w) => (float[n,c,h,w] y, float[n,c,h,w] z)
           { y = Conv<auto_pad="SAME_UPPER", strides=[2,3]>(x, c_w)
             z = MaxPool<auto_pad="SAME_LOWER", kernel_shape=[2,3]>(x) }""",
        {"Conv": 1, "MaxPool": 1},
    ),
    "transposed convolution to an output shape": (
        "make_pads_explicit",
        """g (float[1,2,4,4] x, float[2,3,3,3] c_w) => (float[n,c,h,w] y, float[n,c,h,w] z)
           { y = ConvTranspose<output_shape=[8,7], strides=[2,2]>(x, c_w)
             z = ConvTranspose<auto_pad="SAME_UPPER", strides=[2,2]>(x, c_w) }""",
        {"ConvTranspose": 2},
    ),
    "ceil mode": (
        "make_pads_explicit",
        """g (float[1,2,6,6] x) => (float[n,c,h,w] y)
           { y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }""",
        {"MaxPool": 1},
    ),
    "matmul and bias": (
        "canonicalize_gemm",
        """g (float[5,7] x, float[7,4] c_w) => (float[n,c] y) { y = MatMul(x, c_w) }""",
        {"Gemm": 1},
    ),
    "gemm factors": (
        "canonicalize_gemm",
        """g (float[5,7] x, float[7,4] c_w, float[1,4] c_b) => (float[n,c] y)
           { y = Gemm<alpha=0.25, beta=3.0>(x, c_w, c_b) }""",
        {"Gemm": 1},
    ),
    "transpose into gemm": (
        "canonicalize_gemm",
        """g (float[7,5] x, float[7,4] c_w) => (float[n,c] y)
           { t = Transpose<perm=[1,0]>(x) y = Gemm(t, c_w) }""",
        {"Gemm": 1},
    ),
    "mean over the plane": (
        "use_global_pooling",
        """g (float[2,3,4,5] x) => (float[n,c] y, float[n,c,h,w] z)
           { y = ReduceMean<axes=[3,2], keepdims=0>(x) z = AveragePool<kernel_shape=[4,5]>(x) }""",
        {"GlobalAveragePool": 2, "Reshape": 1},
    ),
    "gather of a run": (
        "use_slices",
        """g (float[2,6,4] x) => (float[a,b] y, float[a,b,c] z)
           <int64 i = {-2}, int64[3] j = {1,3,5}>
           { y = Gather<axis=1>(x, i) z = Gather<axis=1>(x, j) }""",
        {"Slice": 2, "Reshape": 1},
    ),
    "equal computations": (
        "merge_common_subexpressions",
        """g (float[2,6] x) => (float[a,b] y) <int64[1] i = {1}, int64[1] j = {1}>
           { a = ReduceSum(x, i) b = ReduceSum(x, j) y = Add(a, b) }""",
        {"ReduceSum": 1, "Add": 1},
    ),
    "no-ops": (
        "remove_no_ops",
        """g (float[2,6] x) => (float[a,b] y)
           <int64[2] s = {2,6}, float one = {1}, int64[4] p = {0,0,0,0}>
           { a = Identity(x) b = Cast<to=1>(a) c = Reshape(b, s) d = Mul(one, c) e = Pad(d, p)
             f = Dropout(e) h = Concat<axis=1>(f) i = Transpose<perm=[0,1]>(h) y = Relu(i) }""",
        {"Relu": 1},
    ),
    "views": (
        "remove_no_ops",
        """g (float[1,6,2,1] x) => (float[a,b] y) <int64[1] s = {0}, int64[3] r = {3,4,1}>
           { a = Squeeze(x, s) b = Reshape(a, r) c = Transpose<perm=[2,0,1]>(b)
             y = Flatten(c) }""",
        {"Reshape": 1},
    ),
    "sum and concat": (
        "remove_no_ops",
        """g (float[2,3] x) => (float[a,b] y)
           { a = Relu(x) b = Neg(x) c = Concat<axis=1>(a, b) d = Concat<axis=-1>(c, x)
             e = Sum(d, d, d) y = Abs(e) }""",
        {"Relu": 1, "Neg": 1, "Concat": 1, "Add": 2, "Abs": 1},
    ),
    "transposes around element-wise operators": (
        "sink_transposes",
        """g (float[1,3,4,5] x, float[5] c_s, float[4,3,5] c_t) => (float[a,b,c,d] y)
           { a = Transpose<perm=[0,2,3,1]>(x) r = Relu(a)
             i = Transpose<perm=[0,3,1,2]>(r) y = Sigmoid(i) }""",
        {"Relu": 1, "Sigmoid": 1},
    ),
    "transposes through sums, reductions and concat": (
        "sink_transposes",
        """g (float[1,3,4,5] x, float[1,3,4,5] z, float[3] c_s) => (float[a,b] y, float[a,b,c,d] u)
           <int64[2] axes = {1,2}>
           { a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,2,3,1]>(z)
             m = Mul(a, c_s) s = Add(m, b) c = Concat<axis=3>(s, s)
             d = Softmax<axis=-1>(c) p = Neg(d)
             y = ReduceMax<axes=[1,2], keepdims=0>(p)
             u = Transpose<perm=[0,3,1,2]>(p) }""",
        {"Mul": 1, "Add": 1, "Concat": 1, "Softmax": 1, "Neg": 1, "ReduceMax": 1},
    ),
    "layer norm": (
        "fuse_layer_norm",
        """g (float[2,5,8] x, float[8] c_s, float[8] c_b) => (float[a,b,c] y)
           <float two = {2}, float eps = {0.00001}>
           { m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Pow(d, two)
             v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)
             s = Mul(n, c_s) y = Add(s, c_b) }""",
        {"LayerNormalization": 1},
    ),
    "layer norm with a reciprocal": (
        "fuse_layer_norm",
        """g (float[2,5,8] x) => (float[a,b,c] y) <float eps = {0.001}>
           { m = ReduceMean<axes=[1,2]>(x) d = Sub(x, m) q = Mul(d, d)
             v = ReduceMean<axes=[1,2]>(q) e = Add(eps, v) r = Sqrt(e) i = Reciprocal(r)
             y = Mul(i, d) }""",
        {"LayerNormalization": 1},
    ),
}


@pytest.mark.parametrize("case", APPLIES)
def test_pass_applies_once_and_keeps_the_function(case: str) -> None:
    name, text, expected = APPLIES[case]
    original, model, constants = load(text)
    for _ in range(6):
        result = run_pass(model, name)
        if not result.modified:
            break
        assert result.applied
    assert not result.modified, "the pass is not idempotent"
    PASSES["remove_dead_code"].run(model)
    assert ops(model) == expected
    assert_equivalent(original, model, constants)


REFUSES = {
    "reflected padding": (
        "merge_pad",
        """g (float[1,3,6,7] x, float[4,3,3,3] c_w) => (float[n,c,h,w] y)
           <int64[8] p = {0,0,1,1,0,0,1,1}>
           { t = Pad<mode="reflect">(x, p) y = Conv(t, c_w) }""",
        "mode is reflect",
    ),
    "padded channels": (
        "merge_pad",
        """g (float[1,2,6,7] x, float[4,3,3,3] c_w) => (float[n,c,h,w] y)
           <int64[8] p = {0,1,0,0,0,0,0,0}> { t = Pad(x, p) y = Conv(t, c_w) }""",
        "channels",
    ),
    "padding that may win": (
        "merge_pad",
        """g (float[1,3,6,7] x) => (float[n,c,h,w] y) <int64[8] p = {0,0,1,1,0,0,1,1}>
           { t = Pad(x, p) y = MaxPool<kernel_shape=[3,3]>(t) }""",
        "maximum",
    ),
    "per-element shift": (
        "fold_scale",
        """g (float[1,3,6,6] x, float[4,3,3,3] c_w, float[4,4] c_b) => (float[n,c,h,w] y)
           { a = Conv(x, c_w) y = Add(a, c_b) }""",
        "varies within a channel",
    ),
    "shared convolution": (
        "fold_scale",
        """g (float[1,3,6,6] x, float[4,3,3,3] c_w, float[1] c_b)
           => (float[n,c,h,w] y, float[n,c,h,w] a) { a = Conv(x, c_w) y = Add(a, c_b) }""",
        "elsewhere",
    ),
    "one side transposed": (
        "sink_transposes",
        """g (float[1,3,4,5] x, float[1,4,5,3] z) => (float[a,b,c,d] y)
           { a = Transpose<perm=[0,2,3,1]>(x) y = Add(a, z) }""",
        "as many bytes",
    ),
    "irregular indices": (
        "use_slices",
        """g (float[6] x) => (float[a] y) <int64[3] i = {0,1,3}> { y = Gather(x, i) }""",
        "evenly spaced",
    ),
    "different axes": (
        "fuse_layer_norm",
        """g (float[2,5,8] x) => (float[a,b,c] y) <float eps = {0.001}>
           { m = ReduceMean<axes=[1,2]>(x) d = Sub(x, m) q = Mul(d, d)
             v = ReduceMean<axes=[2]>(q) e = Add(v, eps) r = Sqrt(e) y = Div(d, r) }""",
        "different axes",
    ),
}


@pytest.mark.parametrize("case", REFUSES)
def test_refusal_says_why_and_changes_nothing(case: str) -> None:
    name, text, reason = REFUSES[case]
    _, model, _ = load(text)
    before = ops(model)
    result = run_pass(model, name)
    assert not result.modified
    assert ops(model) == before
    assert any(reason in why for _, why in result.refused), result.refused


SPELLINGS = {
    "HardSwish": "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
    "HardSwish ": "a = Add(three, x) b = Clip(a, zero, six) c = Div(b, six) y = Mul(c, x)",
    "HardSwish  ": "a = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, a)",
    "HardSigmoid": "a = Add(x, three) b = Relu(a) c = Min(b, six) y = Div(c, six)",
    "Mish": "a = Exp(x) b = Add(a, one) c = Log(b) d = Tanh(c) y = Mul(x, d)",
    "Mish ": "a = Softplus(x) d = Tanh(a) y = Mul(d, x)",
    "Gelu": "a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half)",
    "Gelu ": "a = Mul(x, half) b = Div(x, root) c = Erf(b) d = Add(one, c) y = Mul(a, d)",
    "Sigmoid": "a = Neg(x) b = Exp(a) c = Add(one, b) y = Reciprocal(c)",
    "Relu": "a = Abs(x) b = Add(a, x) y = Mul(b, half)",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_activations_are_recognized(spelling: str) -> None:
    original, model, _ = load(
        f"""g (float[3,50] x) => (float[a,b] y)
        <float zero = {{0}}, float one = {{1}}, float half = {{0.5}}, float three = {{3}},
         float six = {{6}}, float root = {{1.4142135}}>
        {{ {SPELLINGS[spelling]} }}"""
    )
    simplify(model)
    assert ops(model) == {spelling.strip(): 1}
    assert_equivalent(original, model, minimum_db=110)


def test_gelu_by_tanh_is_told_from_gelu_by_erf() -> None:
    original, model, _ = load(
        """g (float[3,50] x) => (float[a,b] y)
        <float one = {1}, float half = {0.5}, float three = {3}, float k = {0.044715},
         float s = {0.7978845608}>
        { a = Pow(x, three) b = Mul(a, k) c = Add(x, b) d = Mul(c, s) e = Tanh(d) f = Add(e, one)
          h = Mul(x, f) y = Mul(h, half) }"""
    )
    simplify(model)
    assert ops(model) == {"Gelu": 1}
    assert next(iter(model.graph)).attributes["approximate"].value == "tanh"
    assert_equivalent(original, model, minimum_db=110)


@pytest.mark.parametrize(
    "body",
    [
        "a = Sigmoid(x) y = Mul(a, x)",
        "a = Add(x, three) b = Clip(a, zero, three) c = Mul(x, b) y = Div(c, six)",
    ],
)
def test_other_functions_stay_as_they_are(body: str) -> None:
    original, model, _ = load(
        f"""g (float[3,50] x) => (float[a,b] y)
        <float zero = {{0}}, float three = {{3}}, float six = {{6}}> {{ {body} }}"""
    )
    before = ops(model)
    simplify(model)
    assert ops(model) == before
    assert_equivalent(original, model)


def test_channels_last_model_keeps_transposes_at_its_ends_only() -> None:
    original, model, constants = load(
        """g (float[1,8,8,3] x, float[4,3,3,3] c_w, float[4,4,1,1] c_v, float[4] c_s)
           => (float[a,b,c,d] y)
        { a = Transpose<perm=[0,3,1,2]>(x) b = Conv<pads=[1,1,1,1]>(a, c_w)
          c = Transpose<perm=[0,2,3,1]>(b) d = Relu(c)
          e = Transpose<perm=[0,3,1,2]>(d) f = Conv(e, c_v) h = Transpose<perm=[0,2,3,1]>(f)
          i = Mul(h, c_s) j = Add(i, d) k = Sigmoid(j) y = Mul(j, k) }"""
    )
    simplify(model)
    names = [node.op_type for node in model.graph]
    assert names.count("Transpose") == 2
    assert names[0] == names[-1] == "Transpose"
    assert_equivalent(original, model, constants)


def test_outputs_keep_their_names_and_order() -> None:
    original, model, _ = load(
        """g (float[2,3] x) => (float[2,3] x2, float[a,b] r, float[2,3] same)
           { x2 = Identity(x) r = Relu(x) t = Identity(r) same = Identity(t) }"""
    )
    simplify(model)
    assert [v.name for v in model.graph.outputs] == ["x2", "r", "same"]
    assert_equivalent(original, model)


def test_simplify_reports_and_reaches_a_fixpoint() -> None:
    _, model, _ = load(APPLIES["batch norm into conv"][1])
    _, reports = simplify(model)
    applied = {r.name: r.applied for r in reports if r.applied}
    assert list(applied) == ["fold_batch_norm"]
    _, again = simplify(model)
    assert not any(r.applied for r in again)
