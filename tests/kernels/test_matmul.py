"""Matrix products against NumPy in float64 and ONNX Runtime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, check, host, make_region

from effc.kernels.matmul import MatMulTemplate

Shape = tuple[int, ...]


def values(shape: Shape, dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = 1 if dtype.startswith("float") else 100
    return (rng.standard_normal(shape) * scale).astype(dtype)


def multiply(
    a: Shape,
    b: Shape,
    constant: str = "b",
    *,
    c: Shape | None = None,
    dtype: str = "float32",
    best: int = 1,
    bits: int = 256,
    tail: tuple[Node, ...] = (),
    more: dict[str, np.ndarray] | None = None,
    **attrs: Any,
) -> None:
    """Check the best predicted configurations; operands named in ``constant`` are weights."""
    arrays = {"a": values(a, dtype, 0), "b": values(b, dtype, 1)}
    if c is not None:
        arrays["c"] = values(c, dtype, 2)
    op = "Gemm" if attrs or c is not None else "MatMul"
    node = Node(op, list(arrays), ("p",) if tail else ("y",), attrs)
    constants = {k: v for k, v in arrays.items() if k in constant}
    inputs = {k: v for k, v in arrays.items() if k not in constant} | (more or {})
    template, target = MatMulTemplate(), host(bits)
    nodes = [node, *tail]
    region, _ = make_region(nodes, inputs, constants, ("y",), anchored=True)
    configs = [k for k, _ in template.candidates(region, target)][:best]
    for found, expected in check(
        template, nodes, inputs, constants, target=target, configs=configs
    ):
        if dtype.startswith("float"):
            k = a[0] if attrs.get("transA") else a[-1]
            bound = 4 * (k + 2) * np.finfo(dtype).eps * max(np.sqrt(k), 1) * 16
            np.testing.assert_allclose(found["y"], expected["y"], rtol=0, atol=bound)
        else:
            np.testing.assert_array_equal(found["y"], expected["y"])


@pytest.mark.parametrize("constant", ["a", "b", ""])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 7), (7, 9)),
        ((33, 20), (20, 67)),
        ((1, 40), (40, 67)),
        ((35, 20), (20, 1)),
        ((20,), (20, 19)),
        ((3, 20), (20,)),
        ((2, 3, 9, 20), (20, 35)),
        ((2, 1, 9, 20), (3, 20, 35)),
        ((9, 20), (2, 20, 5)),
    ],
)
def test_matmul(a: Shape, b: Shape, constant: str) -> None:
    multiply(a, b, constant)


@pytest.mark.parametrize(("ta", "tb"), list(product((0, 1), repeat=2)))
@pytest.mark.parametrize(
    ("constant", "c"), [("bc", (35,)), ("", (13, 1)), ("ac", (13, 35)), ("b", (1, 35)), ("", None)]
)
def test_gemm(ta: int, tb: int, constant: str, c: Shape | None) -> None:
    a, b = ((20, 13) if ta else (13, 20)), ((35, 20) if tb else (20, 35))
    multiply(a, b, constant, c=c, transA=ta, transB=tb, alpha=0.5, beta=2.0)


@pytest.mark.printed
def test_gemm_with_one_column() -> None:
    multiply((17, 20), (1, 20), "bc", c=(17, 1), transB=1)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64"])
def test_dtypes(dtype: str) -> None:
    multiply((6, 20), (20, 21), dtype=dtype)


@pytest.mark.parametrize("bits", [0, 128])
def test_other_vector_widths(bits: int) -> None:
    multiply((6, 20), (20, 21), "", bits=bits)


def test_every_configuration() -> None:
    multiply((1, 70), (70, 40), best=99)


@pytest.mark.printed
def test_epilogue_refers_to_batches() -> None:
    tail = (Node("Add", ["p", "z"], ("s",)), Node("Relu", ["s"], ("y",)))
    z = values((2, 1, 35), "float32", 3)
    multiply((2, 9, 20), (20, 35), tail=tail, more={"z": z})


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 70), st.sampled_from(["a", "b", ""]))
def test_any_shape(m: int, k: int, n: int, constant: str) -> None:
    multiply((m, k), (k, n), constant)


def test_refuses() -> None:
    half = {"a": np.ones((2, 2), np.float16), "b": np.ones((2, 2), np.float16)}
    region, _ = make_region([Node("MatMul", ["a", "b"])], half, {}, ("y",), anchored=True)
    assert "float16" in (MatMulTemplate().refuse(region, host()) or "")
