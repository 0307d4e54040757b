"""Errors and limits, generated inputs, data files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from effc.errors import ModelError
from effc.metrics import MAX_SNR_DB, OutputError, accumulated_length, snr_limit
from effc.reference import Reference
from effc.samples import Dataset, Tensor, generate, index_limits, load_inputs
from effc.verify import verify


def error(reference: np.ndarray, got: np.ndarray, length: int = 16) -> OutputError:
    """The error of one sample."""
    record = OutputError.start("y", str(reference.dtype), length)
    record.add(reference, got)
    return record


def test_snr_by_hand() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    found = error(reference, reference + np.array([0.003, -0.004], np.float32))
    assert math.isclose(found.snr_db, 60.0, abs_tol=0.01)
    assert math.isclose(found.max_abs_error, 0.004, rel_tol=1e-3)
    assert math.isclose(found.max_rel_error, 0.001, rel_tol=1e-3)
    assert not found.ok


def test_identical_outputs() -> None:
    values = np.array([0.0, np.nan, np.inf, -np.inf, 1.0], np.float32)
    found = error(values, values.copy())
    assert found.ok
    assert found.snr_db == MAX_SNR_DB


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_must_meet_their_like(wrong: float) -> None:
    good = np.ones(4, np.float32)
    bad = good.copy()
    bad[2] = wrong
    assert error(good, bad).mismatches == 1
    assert not error(good, bad).ok
    assert not error(bad, good).ok


def test_zero_reference() -> None:
    zeros = np.zeros(3, np.float32)
    assert error(zeros, zeros).ok
    assert not error(zeros, zeros + 1).ok


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
def test_integers_are_exact(dtype: str) -> None:
    reference = np.array([0, 1, 1, 0]).astype(dtype)
    other = np.array([0, 1, 1, 1]).astype(dtype)
    assert error(reference, reference).ok
    assert error(reference, other).mismatches == 1
    assert not error(reference, other).ok


def test_errors_add_up_over_samples() -> None:
    record = OutputError.start("y", "float32", 16)
    for offset in (0.0, 1e-3):
        record.add(np.ones(10, np.float32), np.full(10, 1 + offset, np.float32))
    assert record.elements == 20
    assert math.isclose(record.snr_db, 10 * math.log10(20 / 10e-6), abs_tol=0.1)


def test_limits_follow_dtype_and_length() -> None:
    assert snr_limit("float64", 16) > snr_limit("float32", 16) > snr_limit("float16", 16)
    assert math.isclose(snr_limit("float32", 16) - snr_limit("float32", 1600), 20, abs_tol=1e-9)
    layers = [
        {"macs": 4096, "outputs": [[1, 8]], "nodes": ["a"]},
        {"macs": 0, "outputs": [[8]], "nodes": ["b", "c"]},
    ]
    assert accumulated_length(layers) == 512 + 32


@settings(deadline=None, max_examples=20, derandomize=True)
@given(rows=st.integers(1, 8), depth=st.integers(1, 3000), seed=st.integers(0, 9))
def test_a_correct_float32_product_is_within_its_limit(rows: int, depth: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    a = random.standard_normal((rows, depth)).astype(np.float32)
    b = random.standard_normal((depth, 5)).astype(np.float32)
    naive = np.zeros((rows, 5), np.float32)
    for k in range(depth):
        naive += a[:, k : k + 1] * b[k]
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
    assert error(exact, naive, depth).ok


def test_generated_inputs_never_change() -> None:
    tensors = [
        Tensor("image", "float32", (2, 3)),
        Tensor("ids", "int64", (4,)),
        Tensor("attention_mask", "int64", (4,)),
        Tensor("pixels", "uint8", (3,)),
        Tensor("flag", "bool", (4,)),
    ]
    inputs = generate(tensors, {"ids": 3})
    for tensor in tensors:
        assert inputs[tensor.name].shape == tensor.shape
        assert inputs[tensor.name].dtype == tensor.dtype
    assert inputs["ids"].min() >= 0
    assert inputs["ids"].max() < 3
    assert (inputs["attention_mask"] == 1).all()
    assert inputs["pixels"].all()
    expected = [[0.30702901, 0.34060657, -0.28678167], [0.88422203, 0.23612475, 0.31856501]]
    np.testing.assert_allclose(inputs["image"], expected, rtol=1e-6)


def test_index_limits_see_through_casts() -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["y"]),
    ]
    table = numpy_helper.from_array(np.zeros((7, 2), np.float32), "table")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 2])],
        [table],
    )
    assert index_limits(helper.make_model(graph)) == {"ids": 7}


@pytest.mark.parametrize(("batch", "count", "runs"), [(1, 5, 5), (2, 5, 3), (5, 5, 1)])
def test_stacked_samples_are_batched(tmp_path: Path, batch: int, count: int, runs: int) -> None:
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(count, np.int64))
    data = load_inputs(tmp_path / "x.npz", [Tensor("input", "float32", (batch, 3))])
    assert len(data.samples) == runs
    assert data.count == count
    joined = np.concatenate([sample["input"] for sample in data.samples])
    np.testing.assert_array_equal(joined[:count], x)


def test_input_called_x_is_no_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3), np.float32))
    data = load_inputs(tmp_path / "x.npz", [Tensor("x", "float32", (2, 3))])
    assert len(data.samples) == 1


def test_damaged_data_files(tmp_path: Path) -> None:
    tensors = [Tensor("input", "float32", (1, 3))]
    (tmp_path / "a.npz").write_bytes(b"no archive")
    np.save(tmp_path / "b.npy", np.zeros(3))
    np.savez(tmp_path / "c.npz", input=np.array([object()]))
    for name in ("a.npz", "b.npy", "c.npz"):
        with pytest.raises(ModelError):
            load_inputs(tmp_path / name, tensors)


def amplifying_model() -> Reference:
    """``y = 2^12 (x - 1)``: a relative change of x near 1 is amplified."""
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "one"], ["d"]), helper.make_node("Mul", ["d", "k"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])],
        [
            numpy_helper.from_array(np.array(1, np.float32), "one"),
            numpy_helper.from_array(np.array(4096, np.float32), "k"),
        ],
    )
    opset = [helper.make_opsetid("", 17)]
    return Reference(helper.make_model(graph, opset_imports=opset, ir_version=9))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0,)])
def test_empty_outputs_agree(shape: tuple[int, ...]) -> None:
    port = {"name": "y", "dtype": "float32", "shape": list(shape)}
    manifest = {"inputs": [], "outputs": [port], "layers": [], "passes": []}
    outputs = {"y": np.zeros(shape, np.float32)}
    result = verify(manifest, lambda _: outputs, lambda _: outputs, "local")
    assert result.ok


def test_amplified_rounding_lowers_the_limit_and_says_so() -> None:
    reference = amplifying_model()
    layer = {"macs": 0, "outputs": [[64]], "nodes": ["a"]}
    manifest = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [64]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [64]}],
        "layers": [layer],
        "passes": [],
    }
    x = (1 + np.linspace(0.0005, 0.001, 64)).astype(np.float32)
    data = Dataset([{"x": x}])
    rounded = {"x": x * np.float32(1 + 2**-23)}
    result = verify(manifest, lambda inputs: reference(rounded), reference, "test", data)
    assert result.ok
    assert "amplifies" in result.notes[0]
    wrong = {"x": x * np.float32(1 + 2**-10)}
    assert not verify(manifest, lambda inputs: reference(wrong), reference, "test", data).ok


@pytest.mark.parametrize(("apart", "ok"), [(1, True), (3, True), (40, False)])
def test_quantized_outputs_may_be_as_far_apart_as_a_step_moves_them(apart: int, ok: bool) -> None:
    """A model that multiplies its input by 8 amplifies a step by 8."""

    def reference(sample: Any) -> dict[str, np.ndarray]:
        return {"y": np.clip(sample["x"].astype(int) * 8, -128, 127).astype(np.int8)}

    def artifact(sample: Any) -> dict[str, np.ndarray]:
        found = reference(sample)["y"].astype(int)
        return {"y": np.clip(found + apart * (found < 80), -128, 127).astype(np.int8)}

    ports = [{"name": n, "dtype": "int8", "shape": [1, 64], "bytes": 64} for n in ("x", "y")]
    manifest = {
        "inputs": ports[:1],
        "outputs": ports[1:],
        "layers": [],
        "passes": [{"name": "integerize", "applied": ["n"]}],
    }
    result = verify(manifest, artifact, reference, "here")  # type: ignore[arg-type]
    assert result.ok == ok
    assert bool(result.notes) == (apart > 1)


@pytest.mark.parametrize(("noise", "ok"), [(0.005, True), (0.05, True), (0.5, False)])
def test_floats_behind_quantization_may_be_as_far_apart_as_steps_move_them(
    noise: float, ok: bool
) -> None:
    """What is left of nearly equal sums amplifies their steps: 30 dB are too much to ask for."""

    def reference(sample: Any) -> dict[str, np.ndarray]:
        return {"y": np.round(np.asarray(sample["x"]) * 128) - np.float32(104)}

    def artifact(sample: Any) -> dict[str, np.ndarray]:
        found = reference(sample)["y"]
        signs = np.where(np.arange(found.size) % 2, 1, -1).astype(np.float32)
        return {"y": found * (1 + np.float32(noise) * signs)}

    ports = [{"name": n, "dtype": "float32", "shape": [64], "bytes": 256} for n in ("x", "y")]
    manifest = {
        "inputs": ports[:1],
        "outputs": ports[1:],
        "layers": [],
        "passes": [{"name": "integerize", "applied": ["n"]}],
    }
    data = Dataset([{"x": np.linspace(0.8, 0.85, 64).astype(np.float32)}])
    result = verify(manifest, artifact, reference, "here", data)  # type: ignore[arg-type]
    assert result.ok == ok
    assert bool(result.notes) == (noise > 0.03)
