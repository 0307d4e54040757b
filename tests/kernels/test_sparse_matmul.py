"""Sparse matrix products against float64, over shapes, blocks, densities and configurations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, host, make_region, run_kernel
from sparse_cases import block_mask

from effc.errors import InternalError
from effc.kernels.region import Region
from effc.kernels.registry import choices
from effc.kernels.sparse_matmul import SparseMatMul
from effc.kernels.sparsity import filters_of
from effc.kernels.template import Config

SPARSE = SparseMatMul()
# Arm's form of the code (scalars taken from vector lanes), compiled for this machine.
NEON = replace(host(), arch="aarch64", vector_bits=128, vector_registers=32)
Shape = tuple[int, ...]


def normal(shape: Shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass
class Case:
    """A product ``[..., m, k] x [k, n]``; ``left``: the constant is ``[m, k]``, before batches."""

    batch: Shape
    m: int
    k: int
    n: int
    density: float = 0.3
    block: tuple[int, int] = (8, 4)
    left: bool = False
    c: Shape | None = None
    constant_c: bool = True
    attrs: dict[str, Any] = field(default_factory=dict)
    relu: bool = False
    residual: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        a, b = (self.m, self.k), (self.k, self.n)
        filters = a if self.left else b[::-1]
        weight = normal(filters, self.seed) * block_mask(
            filters, self.density, self.block, self.seed
        )
        other = normal((*self.batch, *(b if self.left else a)), self.seed + 1)
        self.a, self.b = (weight, other) if self.left else (other, weight.T)
        self.op = "Gemm" if self.attrs or self.c is not None else "MatMul"
        self.nodes = [Node(self.op, ["a", "b"], ("p0",), self.attrs)]
        shown = {
            "a": np.ascontiguousarray(self.a.T if self.attrs.get("transA") else self.a),
            "b": np.ascontiguousarray(self.b.T if self.attrs.get("transB") else self.b),
        }
        constants = {"a" if self.left else "b"}
        if self.c is not None:
            self.nodes[0].inputs = ["a", "b", "c"]
            shown["c"] = normal(self.c, self.seed + 2)
            constants |= {"c"} if self.constant_c else set()
        self.shown = shown
        last = "p0"
        if self.residual:
            shown["other"] = normal((*self.batch, self.m, self.n), self.seed + 3)
            self.nodes.append(Node("Add", [last, "other"], ("p1",)))
            last = "p1"
        if self.relu:
            self.nodes.append(Node("Relu", [last], ("p2",)))
            last = "p2"
        self.inputs = {k: v for k, v in shown.items() if k not in constants}
        fixed = {k: v for k, v in shown.items() if k in constants}
        self.region: Region = make_region(self.nodes, self.inputs, fixed, (last,), anchored=True)[0]

    def exact(self, absolute: bool) -> np.ndarray:
        """The result in float64, or the sum of the magnitudes of its terms."""
        size = np.abs if absolute else np.asarray
        wide = {k: size(v.astype(np.float64)) for k, v in self.shown.items()}
        a, b = size(self.a.astype(np.float64)), size(self.b.astype(np.float64))
        found = size(np.float64(self.attrs.get("alpha", 1))) * (a @ b)
        if self.c is not None:
            found = found + size(np.float64(self.attrs.get("beta", 1))) * wide["c"]
        if self.residual:
            found = found + wide["other"]
        return np.maximum(found, 0) if self.relu and not absolute else found

    def check(
        self, config: Config, target: Any = None, inplace: tuple[str, str] | None = None
    ) -> None:
        """Assert that the kernel is as exact as f32 summation may be."""
        target = target or host()
        kernel = SPARSE.build(self.region, target, config)
        got = run_kernel(kernel, self.region, self.inputs, target, inplace=inplace)
        # One rounding per term, and those of alpha, beta, the bias and the epilogue.
        limit = (self.k + 8) * np.finfo(np.float32).eps / 2 * self.exact(True)
        error = np.abs(got[self.region.outputs[0].name] - self.exact(False))
        assert (error <= limit).all()


def knobs(along: str, lanes: int, rows: int, depth: int, columns: int, **more: Any) -> Config:
    tile = {"along": along, "lanes": lanes, "rows": rows, "depth": depth, "columns": columns}
    base = {"pack": along == "space", "panels": 2, "splits": 1, "unroll": 1, "chains": 1}
    return tile | base | more


CONFIGS = [
    knobs("channel", 8, 8, 4, 5),
    knobs("channel", 16, 16, 4, 3, panels=0, splits=3, chains=2),
    knobs("channel", 4, 8, 1, 9, panels=1, unroll=4, chains=4),
    knobs("channel", 8, 8, 4, 1, unroll=2, chains=8),
    knobs("space", 8, 8, 4, 16),
    knobs("space", 16, 4, 1, 11, panels=1, splits=3, unroll=4),
    knobs("space", 16, 1, 1, 32, panels=0, unroll=2, chains=2),
    knobs("space", 4, 2, 4, 13, splits=2),
]
NAMES = [f"{c['along']}-{c['lanes']}-{c['rows']}x{c['depth']}" for c in CONFIGS]


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_configurations(config: Config) -> None:
    Case((), 35, 22, 45, 0.4, c=(45,), relu=True, residual=True).check(config)
    Case((2, 3), 6, 21, 30, 0.4).check(config)
    Case((), 19, 22, 29, attrs={"transA": 1, "transB": 1, "alpha": 0.5}).check(config)


@pytest.mark.parametrize("config", CONFIGS[4:], ids=NAMES[4:])
@pytest.mark.parametrize("pack", [False, True])
def test_left_operand(config: Config, pack: bool) -> None:
    config = {**config, "pack": pack}
    Case((), 45, 22, 35, 0.4, left=True, c=(45, 1), relu=True, residual=True).check(config)
    Case((3,), 30, 21, 19, 0.4, left=True).check(config)


@pytest.mark.parametrize("left", [False, True])
def test_left_operand_of_transposed_data(left: bool) -> None:
    case = Case((), 30, 21, 19, left=left, attrs={"transB": 1, "transA": 1})
    for config, _ in SPARSE.candidates(case.region, host())[:3]:
        case.check(config)
    region = Case((), 30, 21, 19, left=left).region
    invalid = knobs("channel" if left else "space", 8, 8, 4, 8, pack=False)
    with pytest.raises(InternalError, match="invalid configuration"):
        SPARSE.build(region, host(), invalid)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("target", [host(), host(512, "znver4"), NEON], ids=["avx2", "512", "neon"])
def test_empty_and_full_tiles(density: float, target: Any) -> None:
    """No weights at all, tiles without entries, and nearly all kept; vectors and matrices."""
    for m in (1, 30):
        case = Case((), m, 60, 51, density, c=(51,), relu=True)
        for config, _ in SPARSE.candidates(case.region, target)[:2]:
            if target.vector_bits < 512:
                case.check(config, target)
            else:  # the code is for AVX-512, the machine may not be
                SPARSE.build(case.region, target, config)


@pytest.mark.parametrize(("m", "n"), [(17, 1), (1, 17)])
@pytest.mark.parametrize("left", [False, True])
def test_vectors(m: int, n: int, left: bool) -> None:
    case = Case((), m, 20, n, block=(1, 1), left=left)
    for config, _ in SPARSE.candidates(case.region, host())[:4]:
        case.check(config)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_generated_shapes(data: st.DataObject) -> None:
    draw = data.draw
    left = draw(st.booleans())
    m, k, n = (draw(st.integers(1, top)) for top in (40, 40, 70))
    gemm = draw(st.booleans())
    attrs = {
        "transA": draw(st.integers(0, 1)),
        "transB": draw(st.integers(0, 1)),
        "alpha": draw(st.sampled_from([1.0, 0.5, -2.0])),
        "beta": draw(st.sampled_from([1.0, 0.0, 3.0])),
    }
    case = Case(
        () if gemm else draw(st.sampled_from([(), (2,), (2, 3)])),
        m,
        k,
        n,
        draw(st.floats(0, 0.9)),
        draw(st.sampled_from([(8, 4), (4, 1), (1, 4), (1, 1), (16, 4), (3, 5)])),
        left,
        draw(st.sampled_from([None, (n,), (m, 1), (m, n), (1,)])) if gemm else None,
        draw(st.booleans()),
        attrs if gemm else {},
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.integers(0, 99)),
    )
    target = draw(st.sampled_from([host(), NEON]))
    if SPARSE.refuse(case.region, target) is not None:  # hardly any zeros were drawn
        return
    case.check(
        draw(st.sampled_from([c for c, _ in SPARSE.candidates(case.region, target)])), target
    )


def test_epilogue_in_place() -> None:
    case = Case((), 33, 24, 40, residual=True, relu=True)
    for config in (CONFIGS[0], CONFIGS[4]):
        kernel = SPARSE.build(case.region, host(), config)
        assert kernel.inplace == (("other", "p2"),)
        case.check(config, inplace=kernel.inplace[0])


def test_epilogue_that_refers_to_batches() -> None:
    """An operand that differs between batches but not between rows keeps the batch apart."""
    case = Case((2,), 9, 24, 40)
    nodes = [*case.nodes, Node("Mul", ["p0", "z"], ("y",))]
    z = normal((2, 1, 40), 9)
    region, _ = make_region(nodes, {"a": case.a, "z": z}, {"b": case.b}, ("y",), anchored=True)
    config = SPARSE.candidates(region, host())[0][0]
    kernel = SPARSE.build(region, host(), config)
    got = run_kernel(kernel, region, {"a": case.a, "z": z}, host())["y"]
    np.testing.assert_allclose(got, case.exact(False) * z, rtol=0, atol=1e-4)


def test_split_work_is_balanced() -> None:
    case = Case((), 20, 64, 128, 0.0)
    weight = case.region.anchor.inputs[1].const  # type: ignore[union-attr]
    assert weight is not None
    weight[:, 64:] = np.where(block_mask((64, 64), 0.5, (8, 4)).T, normal((64, 64), 5), 0)
    case.b = weight
    config = knobs("channel", 8, 8, 4, 7, splits=4)
    stage = SPARSE.build(case.region, host(), config).stages[-1]
    assert stage.bounds is not None
    assert len(stage.bounds) == stage.extent + 1
    work = np.diff(stage.bounds).reshape(4, -1).sum(axis=1)
    assert work.max() <= 1.5 * work.mean()
    case.check(config)


def test_infinities_behind_zeros_stay_out() -> None:
    case = Case((), 5, 8, 24, 0.0)
    weight = case.region.anchor.inputs[1].const  # type: ignore[union-attr]
    assert weight is not None
    weight[0] = 1
    case.inputs["a"][:, 7] = np.inf
    kernel = SPARSE.build(case.region, host(), CONFIGS[0])
    assert np.isfinite(run_kernel(kernel, case.region, case.inputs, host())["p0"]).all()


def test_filters_are_columns_of_b_or_rows_of_a() -> None:
    for left in (False, True):
        for trans in (0, 1):
            case = Case((), 5, 6, 7, left=left, attrs={"transA": trans, "transB": trans})
            assert case.region.anchor is not None
            filters = filters_of(case.region.anchor)
            assert filters is not None
            expected = case.a if left else case.b.T
            np.testing.assert_array_equal(filters[0, :, :, 0], expected)


def test_is_chosen_where_it_pays() -> None:
    """Predicted faster than the dense product at 25% of the weights, slower at 80%, scattered."""
    cases = [Case((), 128, 256, 256, 0.25), Case((), 128, 256, 256, 0.8, (1, 1))]
    names = [choices(case.region, host())[0].template.name for case in cases]
    assert names == ["matmul_sparse", "matmul"]


def test_refuses() -> None:
    dense = Case((), 4, 8, 8, 1.0).region
    assert "zero" in (SPARSE.refuse(dense, host()) or "")
    half = {"a": np.ones((2, 2), np.float16)}
    zeros = {"b": np.zeros((2, 2), np.float16)}
    region, _ = make_region([Node("MatMul", ["a", "b"])], half, zeros, ("y",), anchored=True)
    assert "float16" in (SPARSE.refuse(region, host()) or "")
