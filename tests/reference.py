"""ONNX Runtime as the reference that imported and rewritten graphs are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from effc.passes.origin import origin

Array = np.ndarray[Any, Any]


def run(model: ir.Model | onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs of a model without any of ONNX Runtime's own rewrites."""
    proto = ir.serde.serialize_model(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = {v.name for v in session.get_inputs()}
    results: list[Array] = session.run(None, {k: v for k, v in feeds.items() if k in wanted})
    return results


def random_feeds(model: ir.Model, seed: int = 0) -> dict[str, Array]:
    """Normal floats, small non-negative integers, for every input."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.dtype is not None
        assert value.shape is not None
        dtype, shape = value.dtype.numpy(), tuple(int(d) for d in value.shape)
        floating = dtype.kind == "f"
        array = rng.standard_normal(shape) if floating else rng.integers(0, 50, shape)
        feeds[value.name or ""] = array.astype(dtype)
    return feeds


def snr_db(expected: Array, got: Array) -> float:
    """Signal-to-noise ratio in dB; shapes and dtypes must be equal."""
    assert expected.shape == got.shape
    assert expected.dtype == got.dtype
    signal, noise = expected.astype(np.float64), (expected.astype(np.float64) - got)
    if not noise.any():
        return float("inf")
    return float(10 * np.log10((signal**2).sum() / (noise**2).sum()))


def assert_equivalent(
    original: onnx.ModelProto,
    model: ir.Model,
    constants: Mapping[str, Array] | None = None,
    minimum_db: float = 100.0,
) -> None:
    """Both models compute the same on random inputs."""
    feeds = random_feeds(model)
    expected = run(original, {**feeds, **(constants or {})})
    got = run(model, feeds)
    assert len(expected) == len(got)
    for a, b in zip(expected, got, strict=True):
        if a.dtype.kind == "f":
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
            assert snr_db(a, b) >= minimum_db
        else:
            np.testing.assert_array_equal(a, b)


def assert_origins(original: onnx.ModelProto, model: ir.Model, minimum_db: float = 90.0) -> int:
    """Values that stand for a tensor of the original are equal to it; how many there are."""
    made = {name for node in original.graph.node for name in node.output}
    pairs = {
        value.name or "": known
        for node in model.graph
        for value in node.outputs
        if (known := origin(value)) in made
    }
    feeds = random_feeds(model)
    proto = ir.serde.serialize_model(model)
    for known, names in ((original, pairs.values()), (proto, pairs)):
        outputs = {v.name for v in known.graph.output}
        known.graph.output.extend(onnx.ValueInfoProto(name=n) for n in {*names} - outputs)
    expected, got = (
        dict(zip([v.name for v in m.graph.output], run(m, feeds), strict=True))
        for m in (original, proto)
    )
    for name, known in pairs.items():
        if got[name].dtype.kind == "f":
            assert snr_db(expected[known], got[name]) >= minimum_db, f"{name} is not {known}"
        else:
            np.testing.assert_array_equal(expected[known], got[name])
    return len(pairs)
