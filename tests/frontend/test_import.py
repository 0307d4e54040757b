"""``import_model``: binding, validation, files, control flow, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from reference import assert_equivalent, run

from effc.errors import ModelError, UnsupportedError, UsageError
from effc.frontend import OPSET, import_model
from effc.passes.registry import simplify

Array = np.ndarray[Any, Any]


def parse(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


DYNAMIC = (
    "g (float[N,3,H,8] x, float[N,5] z) => (float[N,3,H,8] y, float[N,5] u) {\n"
    "y = Relu(x) u = Neg(z) }"
)


def test_open_dimensions_are_all_listed_with_the_flags_to_pass() -> None:
    with pytest.raises(UsageError) as caught:
        import_model(parse(DYNAMIC))
    text = str(caught.value)
    assert "--shape x:N,3,H,8" in text
    assert "--shape z:N,5" in text


def test_a_bound_name_is_bound_everywhere() -> None:
    model = import_model(parse(DYNAMIC), shapes={"x": (2, 3, 4, 8)})
    assert [tuple(v.shape or ()) for v in model.graph.inputs] == [(2, 3, 4, 8), (2, 5)]


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"X": (1, 3, 4, 8)}, ["does not have", "did you mean x"]),
        ({"x": (1, 3, 4)}, ["number of dimensions", "x:N,3,H,8"]),
        ({"x": (1, 4, 4, 8)}, ["fixes dimension 3"]),
        ({"x": (1, 3, 0, 8)}, ["positive"]),
        ({"x": (1, 3, 4, 8), "z": (2, 5)}, ["fixes dimension N to 1"]),
        ({"x": (1 << 20, 3, 1 << 20, 8)}, ["too large"]),
    ],
)
def test_wrong_shapes_are_explained(shapes: dict[str, tuple[int, ...]], words: list[str]) -> None:
    with pytest.raises((UsageError, ModelError)) as caught:
        import_model(parse(DYNAMIC), shapes=shapes)
    for word in words:
        assert word in str(caught.value)


def test_shapes_that_the_model_leaves_out_are_bound() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match="rank unknown"):
        import_model(proto)
    model = import_model(proto, shapes={"x": (3, 4)})
    assert tuple(model.graph.outputs[0].shape or ()) == (3, 4)


def test_names_are_c_strings() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "x\0z"
    with pytest.raises(ModelError, match="zero byte"):
        import_model(proto)


def test_constants_replace_inputs() -> None:
    text = "g (float[4] x, int64[1] k, float s) => (float[n] y) { t = Mul(x, s) y = Tile(t, k) }"
    constants = {"k": np.array([3]), "s": np.array(2.0)}
    model = import_model(parse(text), constants=constants)
    assert [v.name for v in model.graph.inputs] == ["x"]
    feed = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(run(model, {"x": feed})[0], np.tile(feed * 2, 3))
    with pytest.raises(UsageError, match="wrong shape"):
        import_model(parse(text), constants={"k": np.array(3), "s": np.array(2.0)})
    with pytest.raises(UsageError, match="wrong type"):
        import_model(parse(text), constants={"k": np.array([0.5]), "s": np.array(2.0)})
    with pytest.raises(UsageError, match="both a shape and a value"):
        import_model(parse(text), constants=constants, shapes={"k": (1,)})


def test_result_is_static_sorted_and_uniquely_named() -> None:
    text = """g (float[N,3,8,8] x) => (float[a,b] y)
    <int64 one = {1}, int64[1] ax = {0}, int64[1] minus = {-1}>
    { s = Shape(x) g0 = Gather(s, one) g1 = Unsqueeze(g0, ax) c = Concat<axis=0>(g1, minus)
      r = Reshape(x, c) y = Relu(r) }"""
    original = parse(text)
    model = import_model(original, shapes={"x": (2, 3, 8, 8)})
    assert ops(model) == ["Reshape", "Relu"]
    assert model.graph.opset_imports == {"": OPSET}
    for node in model.graph:
        for value in node.outputs:
            assert value.dtype is not None
            assert all(isinstance(d, int) for d in value.shape or ("?",))
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    assert_equivalent(original, model)


def test_nodes_in_the_wrong_order_are_sorted_and_the_source_is_left_alone() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { t = Relu(x) y = Neg(t) }")
    first, second = proto.graph.node
    swapped = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (second, first)]
    del proto.graph.node[:]
    proto.graph.node.extend(swapped)
    before = proto.SerializeToString()
    assert ops(import_model(proto)) == ["Relu", "Neg"]
    assert proto.SerializeToString() == before


def test_old_models_list_weights_as_inputs() -> None:
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    infos = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (4, 2)), ("w", (2, 3)))]
    out = helper.make_tensor_value_info("y", 1, (4, 3))
    graph = helper.make_graph([node], "g", infos, [out], [weight])
    proto = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 8)])
    model = import_model(proto)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert_equivalent(proto, model)


BAD = {
    "cycle": ("g (float[2] x) => (float[2] y) { t = Add(x, y) y = Relu(t) }", "cycle"),
    "unknown name": ("g (float[2] x) => (float[2] y) { y = Add(x, z) }", "nothing produces"),
    "output not computed": ("g (float[2] x) => (float[2] z) { y = Relu(x) }", "nothing produces"),
    "two producers": ("g (float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }", "same name"),
    "unknown operator": ("g (float[2] x) => (float[2] y) { y = Foo(x) }", "Foo"),
    "operands do not fit": (
        "g (float[2,3] x, float[4,5] z) => (float[a,b] y) { y = MatMul(x, z) }",
        "MatMul",
    ),
    "no broadcast": ("g (float[2] x, float[3] z) => (float[a] y) { y = Add(x, z) }", "broadcast"),
    "input is output": ("g (float[2] x) => (float[2] x, float[2] y) { y = Relu(x) }", "input"),
    "memory bomb": (
        "g (float[2] x) => (float[a,b] y) <int64[2] s = {1099511627776, 2}>\n{ y = Expand(x, s) }",
        "too large",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_contradictory_graphs_are_model_errors(case: str) -> None:
    text, word = BAD[case]
    with pytest.raises(ModelError, match=word):
        import_model(parse(text))


def test_bomb_of_constants_is_not_materialized() -> None:
    text = """g (float[1] x) => (float[a] y) <int64[1] s = {400000000}>
    { c = ConstantOfShape(s) y = Add(c, x) }"""
    model = import_model(parse(text))
    assert ops(model) == ["ConstantOfShape", "Add"]


def test_all_unsupported_operators_are_reported_at_once() -> None:
    text = """g (float[4] x, float[4] z) => (int64[a,b] y, int64[c,d] u)
    { y = NonZero(x) u = NonZero(z) }"""
    with pytest.raises(UnsupportedError) as caught:
        import_model(parse(text))
    assert "2 operators" in str(caught.value)
    assert "NonZero_y" in str(caught.value)
    assert "NonZero_u" in str(caught.value)


def _with_tensor(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", tensor.name], ["y"])
    info = [helper.make_tensor_value_info(n, 1, (2,)) for n in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:], [tensor])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def test_tensors_whose_data_does_not_fit_their_shape_are_rejected() -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    tensor.dims[0] = 3
    with pytest.raises(ModelError, match="size its shape says"):
        import_model(_with_tensor(tensor))
    tensor.dims[0] = 1 << 40
    with pytest.raises(ModelError, match="too large"):
        import_model(_with_tensor(tensor))
    tensor.dims[0] = -2
    with pytest.raises(ModelError, match="negative"):
        import_model(_with_tensor(tensor))


def test_nan_weights_are_rejected_and_infinite_ones_kept() -> None:
    bad = numpy_helper.from_array(np.array([1, np.nan], np.float32), "w")
    with pytest.raises(ModelError, match="NaN"):
        import_model(_with_tensor(bad))
    mask = numpy_helper.from_array(np.array([0, -np.inf], np.float32), "w")
    assert ops(import_model(_with_tensor(mask))) == ["Add"]


def test_sparse_and_text_tensors_are_unsupported() -> None:
    proto = _with_tensor(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    with pytest.raises(UnsupportedError, match="sparse"):
        import_model(proto)
    with pytest.raises(UnsupportedError, match="numeric"):
        import_model(parse("g (string[2] x) => (string[2] y) { y = Identity(x) }"))


@pytest.mark.parametrize(
    ("field", "value"), [("ir_version", 99), ("ir_version", 0), ("opset", 99), ("opset", 3)]
)
def test_unknown_versions_are_rejected(field: str, value: int) -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    if field == "opset":
        proto.opset_import[0].version = value
    else:
        proto.ir_version = value
    with pytest.raises(ModelError, match=r"version|opset"):
        import_model(proto)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }").SerializeToString()
    for content in (b"", b"hello world", data[: len(data) // 2], bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(ModelError):
            import_model(path)
    path.write_bytes(data)
    assert ops(import_model(str(path))) == ["Relu"]
    with pytest.raises(UsageError, match="cannot read"):
        import_model(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match="folder"):
        import_model(tmp_path)


def _external(location: str, **entries: int) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return _with_tensor(tensor)


def test_external_data_is_read_from_the_models_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    values = np.array([3, 4], np.float32)
    (folder / "w.bin").write_bytes(bytes(8) + values.tobytes())
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = folder / "m.onnx"

    path.write_bytes(_external("w.bin", offset=8, length=8).SerializeToString())
    result = run(import_model(path), {"x": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(result[0], values)

    for proto, word in (
        (_external("../secret.bin"), "in the model's folder"),
        (_external(str(tmp_path / "secret.bin")), "in the model's folder"),
        (_external("link.bin"), "in the model's folder"),
        (_external("missing.bin"), "missing"),
        (_external("w.bin", offset=12), "ends too early"),
        (_external("w.bin", length=4), "size"),
        (_external("w.bin", offset=-8), "size|interpreted"),
    ):
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=word):
            import_model(path)
    with pytest.raises(ModelError, match="without a folder"):
        import_model(_external("w.bin", offset=8))


def test_if_with_a_constant_condition_takes_its_branch() -> None:
    text = """g (float[2] x, bool c) => (float[n] y)
    { y = If (c) <then_branch = a () => (float[n] u) { u = Neg(x) },
                  else_branch = b () => (float[n] v) { t = Relu(x) v = Exp(t) }> }"""
    assert ops(import_model(parse(text), constants={"c": np.array(True)})) == ["Neg"]
    assert ops(import_model(parse(text), constants={"c": np.array(False)})) == ["Relu", "Exp"]
    with pytest.raises(UnsupportedError, match="bind that input"):
        import_model(parse(text))


LOOP = """g (float[3] x, int64 n) => (float[3] y, float[k,3] all) <bool yes = {1}>
{ y, all = Loop (n, yes, x)
    <body = b (int64 i, bool c, float[3] v) => (bool c2, float[3] w, float[3] s)
     { c2 = Identity(c) f = Cast<to=1>(i) w = Add(v, f) s = Mul(w, w) }> }"""


def test_loop_with_a_constant_trip_count_is_unrolled() -> None:
    constants = {"n": np.array(4)}
    proto = parse(LOOP)
    model = import_model(proto, constants=constants)
    assert "Loop" not in ops(model)
    assert_equivalent(proto, model, constants)
    with pytest.raises(UnsupportedError, match="too long"):
        import_model(proto, constants={"n": np.array(10**9)})


def test_scan_is_unrolled_in_both_directions() -> None:
    text = """g (float[2] s, float[2,5] x) => (float[2] last, float[2,5] y)
    { last, y = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
        scan_output_axes=[1], scan_output_directions=[1],
        body = b (float[2] state, float[2] row) => (float[2] next, float[2] out)
        { next = Add(state, row) out = Mul(next, row) }> (s, x) }"""
    proto = parse(text)
    model = import_model(proto)
    assert "Scan" not in ops(model)
    assert_equivalent(proto, model)


def test_functions_are_inlined_with_their_attributes() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2,3] x) => (float[2,3] y)
        { t = own.scaled <alpha=0.5> (x) y = own.scaled <alpha=2.0> (t) }
        <domain: "own", opset_import: ["" : 17]>
        scaled <alpha> (x) => (y) { y = LeakyRelu<alpha: float = @alpha>(x) }"""
    )
    model = import_model(proto)
    alphas = [node.attributes["alpha"].value for node in model.graph]
    assert ops(model) == ["LeakyRelu", "LeakyRelu"]
    assert alphas == [0.5, 2.0]
    assert_equivalent(proto, model)


def test_functions_that_call_themselves_end_in_an_error() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.f (x) }
        <domain: "own", opset_import: ["" : 17, "own" : 1]>
        f (x) => (y) { t = Relu(x) y = own.f (t) }"""
    )
    with pytest.raises(ModelError):
        import_model(proto)


def test_operators_newer_than_the_opset_are_written_out() -> None:
    text = (
        "g (float[2,3,8] x, float[8] s) => (float[a,b,c] y) {\n"
        "t = RMSNormalization<axis=-1>(x, s) y = Swish<alpha=1.5>(t) }"
    )
    proto = onnx.parser.parse_model(f'<ir_version: 12, opset_import: ["" : 24]>\n{text}')
    model = import_model(proto)
    assert all(onnx.defs.has(op, OPSET, "") for op in ops(model))
    assert_equivalent(proto, model)


def _scan(**changes: Any) -> onnx.ModelProto:
    proto = parse(
        """g (float[2] s, float[5,2] x) => (float[2] last)
        { last = Scan <num_scan_inputs=1, body = b (float[2] state, float[2] row)
            => (float[2] next) { next = Add(state, row) }> (s, x) }"""
    )
    for name, value in changes.items():
        kept = [a for a in proto.graph.node[0].attribute if a.name != name]
        del proto.graph.node[0].attribute[:]
        proto.graph.node[0].attribute.extend([*kept, helper.make_attribute(name, value)])
    return proto


@pytest.mark.parametrize(
    "changes",
    [
        {"num_scan_inputs": 1 << 40},
        {"num_scan_inputs": -1},
        {"scan_input_axes": [0, 1]},
        {"scan_input_axes": [7]},
    ],
)
def test_fuzzing_found_scan_attributes(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        import_model(_scan(**changes))


def test_fuzzing_found_damaged_text() -> None:
    data = parse("g (float[2] x) => (float[2] y) { y = Elu(x) }").SerializeToString()
    proto = onnx.ModelProto.FromString(data)
    proto.graph.node[0].attribute.append(helper.make_attribute("mode", b"\xff\xfe"))
    with pytest.raises(ModelError, match="not text"):
        import_model(proto)
    proto = parse("g (float[2] x) => (float[2] y) { y = Elu(x) }")
    proto.graph.name = "graph_name"
    broken = proto.SerializeToString().replace(b"graph_name", b"graph\xa9name")
    with pytest.raises(ModelError):
        import_model(onnx.ModelProto.FromString(broken))


def test_fuzzing_found_attribute_tensors_without_their_data() -> None:
    proto = parse(
        "g (int64[1] s) => (float[n] y){ y = ConstantOfShape<value = float[1] {2.0}>(s) }"
    )
    tensor = proto.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    with pytest.raises(ModelError, match="size its shape says"):
        import_model(proto)


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_resnet32_bn_fp32",
        "face_ultraface_rfb320_fp32",
        "mlperf_tiny_kws01_dscnn_fp32",
        "audio_silero_vad_16k_fp32",
        "coco_fastestdet_352_fp32",
    ],
)
def test_real_models_compute_the_same_after_simplification(name: str) -> None:
    path = Path(__file__).parents[2] / f"../shared/data/models/{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the project")
    shapes: dict[str, tuple[int, ...]] = {}
    constants: dict[str, Array] = {}
    if name.startswith("cifar10"):
        shapes = {"input": (1, 3, 32, 32)}
    if name.startswith("audio"):
        shapes = {"input": (1, 512), "state": (2, 1, 128)}
        constants = {"sr": np.array(16000)}
    original = onnx.load(path)
    model = import_model(path, shapes=shapes, constants=constants)
    simplify(model)
    assert len(model.graph) <= len(original.graph.node) * 1.2
    assert_equivalent(original, model, constants)
