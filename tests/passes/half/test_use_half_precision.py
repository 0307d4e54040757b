"""The graph in half precision: what is converted, what is not, and that it computes the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))
from reference import run

from effc.frontend import import_model
from effc.passes.half.noise import NoiseProbe, roundings, value_ranges
from effc.passes.half.terms import noise_by_terms, sum_errors
from effc.passes.half.use_half_precision import StoreHalfWeights, UseHalfPrecision

RNG = np.random.default_rng(5)
Array = np.ndarray[Any, Any]


def network(scale: float = 1.0, tail: str = "Relu") -> onnx.ModelProto:
    """Conv, Relu, Conv, Add, ``tail``, Gemm; ``scale`` enlarges the first results."""
    weights = {
        "w0": RNG.standard_normal((8, 3, 3, 3)) * scale,
        "b0": RNG.standard_normal(8),
        "w1": RNG.standard_normal((8, 8, 1, 1)) / scale / 4,
        "b1": RNG.standard_normal((1, 8, 1, 1)),
        "w2": RNG.standard_normal((8 * 36, 5)) / 30,
        "shape": np.array([1, -1]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="second"),
        helper.make_node("Add", ["c1", "b1"], ["a"], name="add"),
        helper.make_node(tail, ["a"], ["t"], name="tail"),
        helper.make_node("Reshape", ["t", "shape"], ["f"], name="reshape"),
        helper.make_node("Gemm", ["f", "w2"], ["y"], name="last"),
    ]
    kinds = {"shape": np.int64}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 3, 6, 6])],
        [helper.make_tensor_value_info("y", 1, [1, 5])],
        [
            numpy_helper.from_array(a.astype(kinds.get(n, np.float32)), n)
            for n, a in weights.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def everything(node: ir.Node) -> str | None:
    return None


def types(model: ir.Model) -> dict[str, str]:
    """Element type of each node's first result."""
    return {n.name or "": str(n.outputs[0].dtype) for n in model.graph}


def snr(model: onnx.ModelProto, other: ir.Model) -> float:
    feeds = {"x": RNG.standard_normal((1, 3, 6, 6)).astype(np.float32)}
    want, have = run(model, feeds)[0], run(ir.to_proto(other), feeds)[0]
    assert have.dtype == np.float32
    return float(10 * np.log10(np.square(want).sum() / np.square(want - have).sum()))


def test_everything_between_the_borders_becomes_float16() -> None:
    original = network()
    model = import_model(original)
    result = UseHalfPrecision(everything).run(model)
    assert result.modified
    found = types(model)
    assert {found[n] for n in ("first", "relu", "second", "add", "tail", "reshape", "last")} == {
        "FLOAT16"
    }
    assert [n.op_type for n in model.graph].count("Cast") == 3  # input, bias, output
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert snr(original, model) > 50
    assert not UseHalfPrecision(everything).run(model).modified


def test_nodes_without_a_kernel_stay_between_casts() -> None:
    original = network(tail="Sin")
    model = import_model(original)
    result = UseHalfPrecision(lambda n: "no kernel" if n.op_type == "Sin" else None).run(model)
    assert result.refused == (("tail", "no kernel"),)
    assert types(model)["tail"] == "FLOAT"
    assert types(model)["reshape"] == "FLOAT16"
    assert snr(original, model) > 50


def test_parts_without_a_product_are_left_alone() -> None:
    model = import_model(network())
    result = UseHalfPrecision(lambda n: "no" if n.op_type in ("Conv", "Gemm") else None).run(model)
    assert not result.modified
    assert "FLOAT16" not in types(model).values()


def test_values_and_constants_out_of_range_keep_their_nodes() -> None:
    original = network(scale=1e4)
    model = import_model(original)
    samples = [{"x": RNG.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(3)]
    ranges = value_ranges(model, samples)
    assert ranges["c0"] > 65504 > ranges["y"]
    result = UseHalfPrecision(everything, ranges).run(model)
    assert {name for name, _ in result.refused} >= {"first", "relu", "second"}
    assert "float16 ends at 65504" in dict(result.refused)["first"]
    assert snr(original, model) > 50

    model = import_model(network(scale=1e6))
    result = UseHalfPrecision(everything).run(model)
    assert "constant" in dict(result.refused)["first"]


def test_the_user_may_keep_nodes() -> None:
    model = import_model(network())
    result = UseHalfPrecision(everything, {}, {"second": "so it is"}).run(model)
    assert ("second", "so it is") in result.refused
    assert types(model)["second"] == "FLOAT"


def test_stored_weights_change_nothing_else() -> None:
    original = network()
    model = import_model(original)
    result = StoreHalfWeights(everything).run(model)
    assert set(result.applied) == {"first", "second", "last"}
    halves = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    assert len(halves) == 3
    assert types(model)["first"] == "FLOAT"
    assert snr(original, model) > 60
    assert not StoreHalfWeights(everything).run(model).modified


def test_noise_is_that_of_the_rounded_graph() -> None:
    model = import_model(network())
    samples = [{"x": RNG.standard_normal((1, 3, 6, 6)).astype(np.float32)}]
    probe = NoiseProbe(model, samples, {"w0", "w1", "w2"})
    assert probe.errors((), {}) == [0]
    rounded = {
        n: v.const_value.numpy().astype(np.float16).astype(np.float32)  # type: ignore[union-attr]
        for n, v in model.graph.initializers.items()
        if n.startswith("w")
    }
    few, all_of_them = probe.errors(["c0"], {}), probe.errors(probe.values, rounded)
    assert 0 < few < all_of_them < 1e-5
    assert probe.errors(["c0"], {}, [0]) == few


def test_exact_operators_hand_roundings_on() -> None:
    places = roundings(import_model(network()))
    assert places["r0"] == places["c0"] == {"c0"}
    assert places["f"] == places["t"] == places["a"] == {"a"}
    assert places["x"] == {"x"}
    tanh = roundings(import_model(network(tail="Tanh")))
    assert tanh["f"] == tanh["t"] == {"t"}


def test_longer_partial_sums_are_noisier() -> None:
    columns = RNG.standard_normal((2, 16, 600)).astype(np.float32)
    filters = RNG.standard_normal((2, 10, 600)).astype(np.float32)
    errors, peaks = sum_errors(columns, filters, (8, 64, 600))
    assert errors[0] < errors[1] / 3 < errors[2] / 9
    assert (np.diff(peaks) > 0).all()
    rounding = 2.0**-24 * 600 / 3
    assert 1 < errors[0] / rounding < errors[1] / rounding < 128
    noise = noise_by_terms(columns, filters, rounding)
    assert list(noise) == [8, 16, 32, 64, 128, 256, 512, 600]
    assert np.isclose(noise[8], errors[0] / rounding)
    assert (np.diff(list(noise.values())) > 0).all()
    huge = noise_by_terms(columns * 1e3, filters * 50, rounding)
    assert 600 not in huge  # would overflow
