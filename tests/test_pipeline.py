"""The whole compilation: what is shared, what is refused, what is reproducible."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import effc
from effc.errors import UnsupportedError, UsageError
from effc.options import CompileOptions
from effc.pipeline import compile_model


def model_of(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> agraph {text}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    return model


def residual_net() -> onnx.ModelProto:
    """Two equal residual blocks behind a stem, and a classifier."""
    generator = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) / 6).astype(np.float32)

    return model_of(
        """(float[1,3,14,14] x) => (float[1,5] y) {
            s = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w0, b0)
            a = Relu(s)
            c1 = Conv<pads=[1,1,1,1]>(a, w1, b1)
            r1 = Relu(c1)
            c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
            d1 = Add(a, c2)
            e1 = Relu(d1)
            c3 = Conv<pads=[1,1,1,1]>(e1, w3, b3)
            r2 = Relu(c3)
            c4 = Conv<pads=[1,1,1,1]>(r2, w4, b4)
            d2 = Add(e1, c4)
            e2 = Relu(d2)
            g = GlobalAveragePool(e2)
            f = Flatten(g)
            y = Gemm<transB=1>(f, w5, b5)
        }""",
        w0=weight(8, 3, 3, 3), b0=weight(8), w1=weight(8, 8, 3, 3), b1=weight(8),
        w2=weight(8, 8, 3, 3), b2=weight(8), w3=weight(8, 8, 3, 3), b3=weight(8),
        w4=weight(8, 8, 3, 3), b4=weight(8), w5=weight(5, 8), b5=weight(5),
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_layers_share_one_function() -> None:
    compiled = compile_model(residual_net(), CompileOptions())
    by_name = {layer.name: layer for layer in compiled.layers}
    symbols: dict[str, set[str]] = {}
    for call in compiled.program.calls:
        if by_name[call.region].op == "Conv":
            symbols.setdefault(call.region, set()).add(call.symbol)
    blocks = [found for name, found in symbols.items() if by_name[name].inputs[0][1] == 8]
    assert len(blocks) == 4
    assert len({frozenset(found) for found in blocks}) == 2  # with and without the sum


def test_every_node_is_covered_by_one_layer() -> None:
    model = residual_net()
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}"
    compiled = compile_model(model, CompileOptions())
    # A node that a pass replaced leaves its name in front of a slash: n13/Reshape.
    names = sorted(name.split("/")[0] for layer in compiled.layers for name in layer.nodes)
    assert names == sorted(node.name for node in model.graph.node)


@pytest.mark.parametrize("target", ["host", "linux-arm64"])
def test_same_input_same_bytes(tmp_path: Path, target: str) -> None:
    for name in ("a", "b"):
        effc.compile(residual_net(), target, tmp_path / name, name="net", verify=False)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("threads", [1, 3])
def test_result_is_that_of_onnx_runtime(threads: int, tmp_path: Path) -> None:
    model = residual_net()
    x = np.random.default_rng(1).standard_normal((1, 3, 14, 14)).astype(np.float32)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": x})[0]
    artifact = effc.compile(model, output=tmp_path / "net", threads=threads)
    got = effc.load(artifact, threads=threads).run({"x": x})["y"]
    # Longest sum: 8 * 9 products, five layers deep; Winograd's transforms grow by at most 10.
    bound = 10 * 5 * 72 * np.finfo(np.float32).eps * np.abs(expected).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound)


def test_all_unsupported_operators_are_reported_at_once() -> None:
    model = model_of(
        """(float[4] x) => (float[4] y) {
            a = RandomNormalLike<seed=1.0>(x)
            b = Add(a, x)
            y = RandomUniformLike<seed=1.0>(b)
        }"""
    )
    with pytest.raises(UnsupportedError) as caught:
        compile_model(model, CompileOptions())
    assert "RandomNormalLike" in str(caught.value)
    assert "RandomUniformLike" in str(caught.value)


def test_in_place_kernel_of_a_constant(tmp_path: Path) -> None:
    scores = np.linspace(-1, 1, 16, dtype=np.float32)
    model = model_of(
        "(float[2] x) => (float[16] y, float[2] z) { y = Softmax(w) z = Relu(x) }", w=scores
    )
    runner = effc.load(effc.compile(model, output=tmp_path / "toy"))
    expected = np.exp(scores) / np.exp(scores).sum()
    y = runner.run({"x": np.zeros(2, np.float32)})["y"]
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_weights_beyond_2_gb_are_refused(tmp_path: Path) -> None:
    """Before protobuf, which holds no more, is asked to copy them."""
    size = 175 << 10
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(size * 1024 * 4)  # takes no space
    graph = onnx.GraphProto(name="g")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.INT64, [4]))
    for i in range(4):
        tensor = onnx.TensorProto(
            name=f"w{i}", data_type=1, dims=[size, 1024], data_location=TensorProto.EXTERNAL
        )
        tensor.external_data.add(key="location", value="w.bin")
        graph.initializer.append(tensor)
        graph.node.append(helper.make_node("Gather", [f"w{i}", "x"], [f"y{i}"]))
        graph.output.append(helper.make_tensor_value_info(f"y{i}", 1, [4, 1024]))
    path = tmp_path / "large.onnx"
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match="do not fit one library"):
        compile_model(path, CompileOptions())


def test_unknown_target_lists_near_matches() -> None:
    with pytest.raises(UsageError, match="linux-arm64"):
        compile_model(residual_net(), CompileOptions(target="linux-arm46"))
