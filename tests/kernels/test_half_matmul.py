"""Matrix products in float16 under QEMU, and with float16 weights natively."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulated import Case, run_emulated
from half_cases import FULLFP16, ULP, halved
from single_op import host, run_kernel

from effc.kernels.matmul import MatMulTemplate
from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.sparse_matmul import SparseMatMul
from effc.kernels.template import Template

RNG = np.random.default_rng(4)
Array = np.ndarray[Any, Any]

SHAPES = [(1, 200, 33), (17, 40, 48), (9, 129, 1), (50, 64, 20)]


def product(m: int, k: int, n: int, density: float = 1.0, *, gemm: bool = False) -> Region:
    """``[m, k] x [k, n]`` with a constant right-hand matrix, as MatMul or Gemm with bias."""
    w = RNG.standard_normal((k, n)).astype(np.float32)
    if density < 1:
        kept = RNG.random((-(-k // 4), -(-n // 8))) < density
        w *= kept.repeat(4, 0)[:k].repeat(8, 1)[:, :n]
    x = Value("x", TensorType((m, k), "float32"))
    inputs = [x, Value("w", TensorType(w.shape, "float32"), w)]
    if gemm:
        bias = RNG.standard_normal(n).astype(np.float32)
        inputs.append(Value("c", TensorType((n,), "float32"), bias))
    y = Value("y", TensorType((m, n), "float32"))
    op = Op("Gemm" if gemm else "MatMul", tuple(inputs), (y,), {}, "product")
    return Region("product", (op,), op, (x,), (y,))


def exact(region: Region, x: Array) -> tuple[Array, Array]:
    """The product in float64, and the sum of the sizes of its terms."""
    _, w, *bias = [v.const for v in region.ops[0].inputs if v is not None]
    assert w is not None
    x, w = x.astype(np.float64), w.astype(np.float64)
    b = 0.0 if not bias or bias[0] is None else bias[0].astype(np.float64)
    return x @ w + b, np.abs(x) @ np.abs(w) + np.abs(b)


def cases(template: Template, density: float) -> list[tuple[Region, Any, dict[str, Array]]]:
    found = []
    for number, (m, k, n) in enumerate(SHAPES):
        region = halved(
            product(m, k, n, density, gemm=bool(number % 2)), terms=(8, 4096)[number // 2]
        )
        assert template.refuse(region, FULLFP16) is None
        offered = [config for config, _ in template.candidates(region, FULLFP16)]
        x = RNG.standard_normal((m, k)).astype(np.float16)
        found += [(region, config, {"x": x}) for config in {0: offered[0], 1: offered[-1]}.values()]
    return found


@pytest.mark.parametrize(
    ("template", "density"),
    [(MatMulTemplate(), 1.0), (SparseMatMul(), 0.3)],
    ids=["dense", "sparse"],
)
def test_float16_sums_are_as_exact_as_their_parts(template: Template, density: float) -> None:
    made = cases(template, density)
    built = [Case(template.build(r, FULLFP16, c), r, feeds) for r, c, feeds in made]
    for (region, _, feeds), got in zip(made, run_emulated(built, FULLFP16), strict=True):
        want, bound = exact(region, feeds["x"])
        terms = min(int(region.ops[0].attrs["terms"]), feeds["x"].shape[1]) + 4
        error = np.abs(got.astype(np.float64) - want)
        assert (error <= ULP * (terms * bound + 2 * np.abs(want))).all()
        assert np.square(error).sum() < 10**-4.5 * np.square(want).sum()


def test_runtime_operands() -> None:
    a, b = (Value(n, TensorType(s, "float16")) for n, s in (("a", (3, 10, 30)), ("b", (3, 30, 13))))
    y = Value("y", TensorType((3, 10, 13), "float16"))
    op = Op("MatMul", (a, b), (y,), {"terms": 16}, "product")
    region = Region("product", (op,), op, (a, b), (y,))
    template = MatMulTemplate()
    config, _ = template.candidates(region, FULLFP16)[0]
    feeds = {v.name: RNG.standard_normal(v.shape).astype(np.float16) for v in (a, b)}
    (got,) = run_emulated([Case(template.build(region, FULLFP16, config), region, feeds)], FULLFP16)
    x, w = (feeds[n].astype(np.float64) for n in "ab")
    assert (np.abs(got - x @ w) <= ULP * (20 * (np.abs(x) @ np.abs(w)))).all()


@pytest.mark.parametrize(
    ("template", "density"),
    [(MatMulTemplate(), 1.0), (SparseMatMul(), 0.3)],
    ids=["dense", "sparse"],
)
def test_weights_only(template: Template, density: float) -> None:
    for m, k, n in SHAPES:
        region = halved(product(m, k, n, density, gemm=True), weights_only=True)
        x = RNG.standard_normal((m, k)).astype(np.float32)
        config, _ = template.candidates(region, host())[0]
        kernel = template.build(region, host(), config)
        assert np.float16 in {a.dtype.type for a in kernel.weights.values()}
        got = run_kernel(kernel, region, {"x": x}, host())["y"]
        want, bound = exact(region, x)
        assert (np.abs(got - want) <= (k + 4) * 2.0**-24 * bound).all()
