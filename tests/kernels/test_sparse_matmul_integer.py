"""Sparse integer matrix products: the reference's bits on every instruction set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from emulated import Case, run_emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, region_of
from integer_targets import ARM, I8MM, NATIVE, native
from sparse_cases import block_mask
from test_matmul_integer import Problem, problem

from effc.errors import InternalError
from effc.kernels.quad_arithmetic import quads_of_rows
from effc.kernels.registry import choices
from effc.kernels.sparse_matmul import SparseMatMul
from effc.kernels.sparsity import filters_of
from effc.kernels.template import Config
from effc.kernels.versions import require_same

SPARSE = SparseMatMul()
Shape = tuple[int, ...]

SHAPES: tuple[tuple[Shape, Shape], ...] = (  # a, b
    ((13, 20), (20, 67)),
    ((1, 70), (70, 130)),
    ((2, 3, 5, 23), (23, 64)),
    ((37, 45), (45, 37)),
    ((19, 4), (4, 9)),
    ((5, 61), (61, 24)),
)


def sparse(
    a: Shape,
    b: Shape,
    density: float = 0.3,
    block: tuple[int, int] = (8, 4),
    dtype: str = "uint8",
    **more: Any,
) -> Problem:
    """A product of extreme values, with blocks of zeros in b."""
    nodes, inputs, constants = problem(a, b, True, dtype, **more)
    mask = block_mask(b[::-1], density, block, 1).T.astype(np.int8)
    return nodes, inputs, {**constants, "b": constants["b"] * mask}


def judge(name: str, made: Problem, step: int = 1, most: int = 2) -> None:
    """Check every ``step``-th configuration, at most ``most``."""
    target = native(name)
    region, _ = region_of(*made, anchored=True)
    assert SPARSE.refuse(region, target) is None
    configs = [config for config, _ in SPARSE.candidates(region, target)[::step]]
    check(SPARSE, *made, target=target, configs=configs[:most])


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(name: str, shape: tuple[Shape, Shape]) -> None:
    judge(name, sparse(*shape), step=7)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("density", [0.0, 0.04, 0.9])
def test_empty_and_full_tiles(name: str, density: float) -> None:
    judge(name, sparse((17, 36), (36, 51), density), most=1)
    judge(name, sparse((1, 36), (36, 51), density), most=1)


def test_configurations() -> None:
    judge("vnni", sparse((33, 30), (30, 80)), step=3, most=99)


def knobs(along: str, lanes: int, rows: int, columns: int, **more: Any) -> Config:
    tile = {"along": along, "lanes": lanes, "rows": rows, "depth": 1, "columns": columns}
    base = {"pack": along == "space", "panels": 2, "splits": 3, "unroll": 4, "chains": 2}
    return tile | base | more


@pytest.mark.parametrize(
    "config",
    [
        knobs("space", 4, 4, 5, panels=1),
        knobs("space", 8, 16, 11, panels=0, chains=1),
        knobs("channel", 8, 16, 3, panels=0),
        knobs("channel", 4, 4, 1),
    ],
)
@pytest.mark.parametrize("epilogue", ["none", "tensor", "channel"])
def test_ragged_tiles(config: Config, epilogue: str) -> None:
    made = sparse((2, 7, 31), (31, 46), epilogue=epilogue)
    check(SPARSE, *made, target=native("avx2"), configs=[config])


@pytest.mark.parametrize("name", ["avx2", "vnni"])
@pytest.mark.parametrize("rows", [1, 26])
def test_residual_and_lookup_behind_requantize(name: str, rows: int) -> None:
    attrs = {"a_multiplier": 1 << 20, "b_multiplier": 700000, "offset": 1 << 20, "right": 21}
    attrs |= {"zero": 3, "low": 0, "high": 255, "to": 2}
    other = np.random.default_rng(3).integers(0, 256, (rows, 67), np.uint8)
    tail = (Node("AddRescaled", ["q", "z"], attrs=attrs),)
    judge(name, sparse((rows, 20), (20, 67), tail=tail, more={"z": other}))


@pytest.mark.parametrize("name", ["avx2", "vnni"])
def test_fewer_filters_than_lanes_before_an_epilogue(name: str) -> None:
    """Results of a few filters are stored by vectors that are wider than a row."""
    factor = np.linspace(1, 2, 5, dtype=np.float32)
    nodes, inputs, constants = sparse((48, 8), (8, 5), 0.6, (4, 4), epilogue="none")
    product = replace(nodes[0], output="p")
    tail = [Node("Cast", ["p"], "f", {"to": 1}, ""), Node("Mul", ["f", "m"], "y", domain="")]
    judge(name, ([product, *tail], inputs, {**constants, "m": factor}))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape(data: st.DataObject) -> None:
    m, k, n = (data.draw(st.integers(*ends)) for ends in ((1, 40), (4, 50), (2, 150)))
    made = sparse(
        (m, k),
        (k, n),
        data.draw(st.floats(0, 0.9)),
        data.draw(st.sampled_from([(8, 4), (4, 4), (16, 4), (1, 1), (3, 5)])),
        data.draw(st.sampled_from(["uint8", "int8"])),
        epilogue=data.draw(st.sampled_from(["none", "tensor", "channel"])),
    )
    target = native(data.draw(st.sampled_from(NATIVE)))
    region, _ = region_of(*made, anchored=True)
    if SPARSE.refuse(region, target) is not None:  # hardly any zeros were drawn, or few columns
        return
    found = [config for config, _ in SPARSE.candidates(region, target)]
    check(SPARSE, *made, target=target, configs=[data.draw(st.sampled_from(found))])


@pytest.mark.parametrize("name", [*ARM, "i8mm"])
def test_on_arm(name: str) -> None:
    target = {**ARM, "i8mm": I8MM}[name]
    cases, wanted = [], []
    made = [sparse(*SHAPES[0], dtype="int8", epilogue="none")]
    made += [sparse(*shape, dtype="int8") for shape in SHAPES]
    made += [sparse(*shape, dtype="int8", least=-127) for shape in SHAPES]
    made += [sparse((9, 36), (36, 51), density, dtype="int8") for density in (0.0, 0.9)]
    for nodes, inputs, constants in made:
        region, expected = region_of(nodes, inputs, constants, anchored=True)
        for config in {c["along"]: c for c, _ in SPARSE.candidates(region, target)}.values():
            cases.append(Case(SPARSE.build(region, target, config), region, inputs))
            wanted.append(expected["y"])
    for have, want in zip(run_emulated(cases, target), wanted, strict=True):
        np.testing.assert_array_equal(have, want)


def test_versions_share_weights_and_work() -> None:
    for shape in SHAPES[:2]:
        region, _ = region_of(*sparse(*shape, dtype="int8"), anchored=True)
        config = SPARSE.candidates(region, ARM["dotprod"])[0][0]
        base, other = (SPARSE.build(region, target, config) for target in ARM.values())
        require_same(base, other, "matmul")


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(4, 23), st.integers(0, 99))
def test_quads_of_rows(rows: int, k: int, seed: int) -> None:
    """The same products, whichever bytes the last quad reads."""
    rng = np.random.default_rng(seed)
    matrix, x = (rng.integers(-128, 128, (n, k)).astype(np.int8) for n in (rows, 1))
    quads = quads_of_rows(matrix).view(np.int8).reshape(rows, -1, 4).astype(np.int64)
    starts = [min(4 * q, k - 4) for q in range(quads.shape[1])]
    read = np.stack([x[0, s : s + 4] for s in starts]).astype(np.int64)
    np.testing.assert_array_equal((quads * read).sum((1, 2)), matrix.astype(np.int64) @ x[0])


def test_is_chosen_where_it_pays() -> None:
    """Predicted faster than the dense product with a quarter of the blocks, not with scattered
    zeros that leave hardly any."""
    for target in (native("vnni256"), ARM["dotprod"]):
        dtype = target.activation_dtype
        for m in (1, 64):
            names = []
            for density, block in ((0.25, (8, 4)), (0.5, (1, 1))):
                made = sparse((m, 256), (256, 256), density, block, dtype)
                region, _ = region_of(*made, anchored=True)
                names.append(choices(region, target)[0].template.name)
            assert names == ["matmul_sparse", "matmul_integer"], (target.name, m)


def test_filters_are_columns() -> None:
    region, _ = region_of(*sparse((3, 8), (8, 24)), anchored=True)
    assert region.anchor is not None
    filters = filters_of(region.anchor)
    assert filters is not None
    weight = region.anchor.inputs[1]
    assert weight is not None
    np.testing.assert_array_equal(filters[0, :, :, 0], weight.const.T)  # type: ignore[union-attr]


def test_refuses() -> None:
    target = native(NATIVE[0])

    def reason(made: Problem, where: Any = target) -> str:
        return SPARSE.refuse(region_of(*made, anchored=True)[0], where) or ""

    assert "zero" in reason(sparse((5, 8), (8, 16), 1.0))
    assert "too short" in reason(sparse((3, 3), (3, 8)))
    assert "constant of int8" in reason(problem((5, 8), (8, 16), False))
    assert "of this shape" in reason(sparse((5, 8), (8, 3)))
    region, _ = region_of(*sparse((5, 8), (8, 16)), anchored=True)
    for config in (knobs("space", 4, 6, 4), knobs("channel", 4, 8, 4, depth=2)):
        with pytest.raises(InternalError, match="invalid configuration"):
            SPARSE.build(region, target, config)
