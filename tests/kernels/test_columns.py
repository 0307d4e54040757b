"""Integer kernels for microcontrollers: the reference's bits on every core, and how fast."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from boards import Problem, Result, run_in_arena, run_on_board
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from integer_cases import check, region_of
from single_op import host
from sparse_cases import block_mask
from test_conv_integer import CASES, SPARSE_CASES, case, sparse_case
from test_depthwise_integer import GEOMETRY, missing
from test_depthwise_integer import problem as depthwise_case
from test_matmul_integer import problem as matmul_case

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.conv_columns import ColumnConv, SparseColumnConv
from effc.kernels.depthwise_bands import DepthwiseBands
from effc.kernels.matmul_columns import ColumnMatMul, SparseColumnMatMul
from effc.kernels.registry import choices
from effc.kernels.sparsity import LEAST_ZEROS
from effc.passes.integer.reference import from_quads

CORES = ["cortex-m0plus", "cortex-m4", "cortex-m33", "cortex-m55", "riscv32"]
NARROW = replace(host(), vector_bits=32)
"""This machine as if it had no vectors: what needs no assembly."""

MATRICES = [((13, 20), (20, 67)), ((1, 70), (70, 130)), ((2, 3, 5, 23), (23, 64)), ((1, 4), (4, 2))]


def conv_case(**spec: Any) -> Problem:
    return case(dtype="int8", **spec)


def full_range(problem: Problem) -> Problem:
    """With an epilogue that clamps to nothing but eight bits."""
    for node in problem[0][1:]:
        node.attrs |= {"low": -128, "high": 127}
    return problem


def agree(results: list[Result], channels: list[int]) -> None:
    """Equal bits, except for channels that only fill a quad."""
    for number, (result, count) in enumerate(zip(results, channels, strict=True)):
        got, want = result.got.copy(), result.want.copy()
        got[missing(count)] = want[missing(count)] = 0
        np.testing.assert_array_equal(got, want, err_msg=str(number))


@pytest.mark.parametrize("optimize", ["balanced", "size"])
@pytest.mark.parametrize("core", CORES)
def test_convolutions_on_boards(core: str, optimize: str) -> None:
    specs = list(CASES.values())
    if optimize == "size":
        specs = specs[::3]
    target = replace(get_target(core), optimize=optimize)
    problems = [conv_case(**spec) for spec in specs]
    alone = [spec for spec in specs if spec.get("requantize", True)]
    problems += [full_range(conv_case(**spec)) for spec in alone]
    results = run_on_board(problems, ColumnConv(), target)
    agree(results, [spec["cout"] for spec in (*specs, *alone)])


@pytest.mark.parametrize("core", CORES)
def test_depthwise_on_boards(core: str) -> None:
    specs = [spec for spec in GEOMETRY for _ in (0, 1)]
    problems = [
        problem
        for spec in GEOMETRY
        for problem in (depthwise_case(spec, "int8"), full_range(depthwise_case(spec, "int8")))
    ]
    results = run_on_board(problems, DepthwiseBands(), get_target(core))
    agree(results, [spec[0][1] for spec in specs])


@pytest.mark.parametrize("core", CORES)
def test_matrices_on_boards(core: str) -> None:
    problems = [matmul_case(a, b, True, "int8") for a, b in MATRICES]
    for result in run_on_board(problems, ColumnMatMul(), get_target(core)):
        np.testing.assert_array_equal(result.got, result.want)


PLAIN: dict[str, dict[str, Any]] = {
    "image": dict(x_shape=(1, 3, 13, 14), cout=8, kernel=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1)),
    "padded": dict(x_shape=(2, 3, 7, 9), cout=12, kernel=(3, 3), pads=(1, 1, 1, 1), x_zero=-9),
    "features": dict(
        x_shape=(1, 1, 19, 10), cout=8, kernel=(10, 4), strides=(2, 2), pads=(4, 1, 5, 1)
    ),
    "7x7 of one": dict(x_shape=(1, 1, 16, 15), cout=5, kernel=(7, 7), pads=(3, 3, 3, 3)),
    "three left": dict(x_shape=(1, 1, 9, 16), cout=4, kernel=(2, 7), residual=True),
    "5x5": dict(x_shape=(1, 3, 9, 8), cout=8, kernel=(5, 5), pads=(2, 2, 2, 2)),
    "1x1": dict(x_shape=(1, 3, 5, 5), cout=8, kernel=(1, 1)),
    "four": dict(x_shape=(1, 4, 8, 9), cout=8, kernel=(3, 3), pads=(1, 1, 1, 1)),
    "two, residual": dict(x_shape=(1, 2, 8, 9), cout=8, kernel=(4, 4), residual=True),
    "dilated": dict(x_shape=(1, 3, 12, 9), cout=4, kernel=(3, 3), dilations=(3, 1), pads=(3,) * 4),
    "apart": dict(x_shape=(1, 3, 12, 11), cout=4, kernel=(3, 3), dilations=(2, 2)),
    "1-D": dict(x_shape=(1, 1, 42), cout=10, kernel=(9,), pads=(4, 4), strides=(3,)),
    "3-D": dict(x_shape=(1, 3, 5, 6, 7), cout=4, kernel=(2, 2, 2), pads=(1, 0, 1, 0, 1, 0)),
    "one position": dict(x_shape=(1, 3, 1, 1), cout=8, kernel=(1, 1)),
}


def plain_case(layout: str, *, unsigned: bool = False, **spec: Any) -> Problem:
    """A convolution that reads ``[N, C, *S]`` or ``[N, *S, C]``."""
    nodes, inputs, constants = conv_case(**spec)
    x = from_quads(inputs["x"], constants["w"].shape[1])
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if layout == "last" else x
    attrs = nodes[0].attrs | {"layout": layout}
    if unsigned:
        x, attrs["x_zero"] = (x.view(np.uint8) ^ 0x80), attrs["x_zero"] + 128
    nodes[0] = replace(nodes[0], attrs=attrs)
    return nodes, {**inputs, "x": x}, constants


@pytest.mark.parametrize("core", CORES)
def test_inputs_as_the_model_has_them(core: str) -> None:
    pairs = itertools.product(PLAIN.values(), ("first", "last"))
    drawn = [(spec, layout, i % 3 == 0) for i, (spec, layout) in enumerate(pairs)]
    problems = [plain_case(layout, unsigned=flip, **spec) for spec, layout, flip in drawn]
    results = run_on_board(problems, ColumnConv(), get_target(core))
    agree(results, [spec["cout"] for spec, _, _ in drawn])


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("layout", ["first", "last"])
def test_inputs_as_the_model_has_them_without_assembly(name: str, layout: str) -> None:
    problem = plain_case(layout, **PLAIN[name])
    configs = [{"unroll": 1, "split": name == "padded"}]
    ignore = missing(PLAIN[name]["cout"])
    check(ColumnConv(), *problem, target=NARROW, configs=configs, ignore=ignore)


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_words_of_a_model_s_input_save_instructions(core: str) -> None:
    spec = dict(x_shape=(1, 3, 24, 24), cout=8, kernel=(3, 3), strides=(2, 2), pads=(0, 0, 1, 1))
    problems = [conv_case(**spec), plain_case("last", **spec)]
    quads, words = run_on_board(problems, ColumnConv(), get_target(core))
    assert words.instructions <= 0.95 * quads.instructions


@pytest.mark.parametrize("name", CASES)
def test_convolutions_without_assembly(name: str) -> None:
    problem = conv_case(**CASES[name])
    configs = [{"unroll": 1, "split": False}]
    ignore = missing(CASES[name]["cout"])
    check(ColumnConv(), *problem, target=NARROW, configs=configs, ignore=ignore)


@pytest.mark.parametrize("spec", GEOMETRY)
def test_depthwise_without_assembly(spec: Any) -> None:
    problem = depthwise_case(spec, "int8")
    check(DepthwiseBands(), *problem, target=NARROW, ignore=missing(spec[0][1]))


@pytest.mark.parametrize("shape", MATRICES)
def test_matrices_without_assembly(shape: Any) -> None:
    problem = matmul_case(*shape, True, "int8")
    check(ColumnMatMul(), *problem, target=NARROW, configs=[{"unroll": 1}])


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.integers(1, 3))
    return {
        "x_shape": (1, draw(st.integers(1, 20)), *draw(st.tuples(*[st.integers(4, 12)] * 2))),
        "cout": draw(st.integers(1, 20)),
        "kernel": kernel,
        "strides": (stride, stride),
        "pads": draw(st.tuples(*[st.integers(0, 2)] * 4)),
        "x_zero": draw(st.integers(-128, 127)),
        "residual": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


@given(st.lists(convolutions(), min_size=6, max_size=6), st.sampled_from(CORES), st.booleans())
@settings(max_examples=4, deadline=None)
def test_any_convolution(specs: list[dict[str, Any]], core: str, full: bool) -> None:
    problems = [full_range(conv_case(**spec)) if full else conv_case(**spec) for spec in specs]
    results = run_on_board(problems, ColumnConv(), get_target(core))
    agree(results, [spec["cout"] for spec in specs])


@st.composite
def depthwise(draw: st.DrawFn) -> tuple[Any, int, bool]:
    shape = (1, draw(st.integers(1, 9)), draw(st.integers(4, 14)), draw(st.integers(4, 14)))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    attrs = {"pads": draw(st.tuples(*[st.integers(0, 2)] * 4)), "strides": strides}
    return (shape, kernel, attrs), draw(st.integers(-128, 127)), draw(st.booleans())


@given(st.lists(depthwise(), min_size=8, max_size=8))
@settings(max_examples=3, deadline=None)
def test_any_depthwise_in_assembly(drawn: list[tuple[Any, int, bool]]) -> None:
    problems = []
    for spec, zero, full in drawn:
        problem = depthwise_case(spec, "int8", zero=zero)
        problems.append(full_range(problem) if full else problem)
    results = run_on_board(problems, DepthwiseBands(), get_target("cortex-m4"))
    agree(results, [spec[0][1] for spec, _, _ in drawn])


@pytest.mark.parametrize(
    ("shape", "kernel", "pads", "strides"),
    [
        ((1, 8, 12, 13), (3, 3), (1, 1, 1, 1), (2, 2)),
        ((1, 5, 9, 10), (3, 3), (0, 0, 1, 1), (2, 2)),
        ((1, 4, 7, 8), (2, 3), (0, 1, 1, 1), (1, 2)),
        ((2, 8, 8, 8), (1, 2), (0, 0, 0, 0), (3, 2)),
        ((1, 4, 1, 21), (1, 3), (0, 1, 0, 1), (1, 2)),
    ],
)
def test_stride_2_over_its_input(shape: Any, kernel: Any, pads: Any, strides: Any) -> None:
    attrs = {"pads": pads, "strides": strides}
    problem = full_range(depthwise_case((shape, kernel, attrs), "int8", zero=-17))
    result, arena = run_in_arena(problem, DepthwiseBands(), get_target("cortex-m4"))
    agree([result], [shape[1]])
    assert arena == -(-problem[1]["x"].nbytes // 16) * 16  # no copy, and no room for the result


def test_stride_2_in_three_instructions_per_product() -> None:
    spec = ((1, 16, 24, 24), (3, 3), {"pads": (0, 0, 1, 1), "strides": (2, 2)})
    problem = full_range(depthwise_case(spec, "int8"))
    (result,) = run_on_board([problem], DepthwiseBands(), get_target("cortex-m4"))
    assert result.instructions <= 2.75 * 9 * result.want.size


LISTED = {
    name: spec
    for name, spec in SPARSE_CASES.items()
    if spec["x_shape"][1] >= 4 and spec.get("group", 1) == 1 and len(spec["x_shape"]) == 4
}


def kept_case(spec: dict[str, Any], *, full: bool = True) -> Problem:
    """With an epilogue that assembly knows, or without."""
    problem: Problem = sparse_case(**spec, dtype="int8")
    return full_range(problem) if full else problem


def how(target: Target, rows: int) -> dict[str, Any]:
    large = target.optimize != "size"
    return {"unroll": 1 + large, "split": large, "rows": rows}


@pytest.mark.parametrize("optimize", ["balanced", "size"])
@pytest.mark.parametrize("core", CORES)
def test_kept_blocks_on_boards(core: str, optimize: str) -> None:
    target = replace(get_target(core), optimize=optimize)
    specs = [(spec, rows, True) for spec in LISTED.values() for rows in (4, 8, 16)]
    specs += [(spec, 8, False) for spec in LISTED.values()]
    problems = [kept_case(spec, full=full) for spec, _, full in specs]
    configs = [how(target, rows) for _, rows, _ in specs]
    results = run_on_board(problems, SparseColumnConv(), target, configs)
    agree(results, [spec["cout"] for spec, _, _ in specs])


@pytest.mark.parametrize("name", LISTED)
def test_kept_blocks_without_assembly(name: str) -> None:
    spec = LISTED[name]
    ignore = missing(spec["cout"])
    configs = [how(NARROW, rows) for rows in (4, 8, 16)]
    check(SparseColumnConv(), *kept_case(spec), target=NARROW, configs=configs, ignore=ignore)


@pytest.mark.parametrize("core", CORES)
def test_filters_without_any_weight(core: str) -> None:
    mask = np.ones((24, 16, 1, 1), np.int8)
    mask[:8] = mask[12:20] = 0
    shape = {"x_shape": (1, 16, 5, 5), "cout": 24, "kernel": (1, 1), "mask": mask}
    problems = [conv_case(**shape), full_range(conv_case(**shape))]
    agree(run_on_board(problems, SparseColumnConv(), get_target(core)), [24, 24])


@st.composite
def kept(draw: st.DrawFn) -> dict[str, Any]:
    """A convolution with blocks of zeros."""
    spec = draw(convolutions())
    channels = draw(st.integers(4, 40))
    one = draw(st.booleans())
    spec["x_shape"] = (1, channels, 1, 1) if one else (1, channels, *spec["x_shape"][2:])
    if one:
        spec |= {"kernel": (1, 1), "pads": (0,) * 4, "strides": (1, 1)}
        spec["x_shape"] = (1, channels // 4 * 4, 1, 1)
    spec["block"] = draw(st.sampled_from([(4, 4), (8, 4), (16, 4), (1, 4)]))
    spec["density"] = draw(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]))
    shape = (spec["cout"], spec["x_shape"][1], *spec["kernel"])
    assume(block_mask(shape, spec["density"], spec["block"]).mean() < 1 - LEAST_ZEROS)
    return spec


@given(
    st.lists(kept(), min_size=6, max_size=6),
    st.sampled_from(CORES),
    st.sampled_from([4, 8, 16]),
    st.booleans(),
)
@settings(max_examples=3, deadline=None)
def test_any_kept_blocks(specs: list[dict[str, Any]], core: str, rows: int, full: bool) -> None:
    target = get_target(core)
    problems = [kept_case(spec, full=full) for spec in specs]
    configs = [how(target, rows)] * len(specs)
    results = run_on_board(problems, SparseColumnConv(), target, configs)
    agree(results, [spec["cout"] for spec in specs])


def kept_matrix(a: Any, b: tuple[int, int], density: float, block: tuple[int, int]) -> Problem:
    """A product by a matrix of which blocks (columns x depth) are zero."""
    nodes, inputs, constants = matmul_case(a, b, True, "int8")
    mask = block_mask((b[1], b[0], 1, 1), density, block)[:, :, 0, 0]
    return nodes, inputs, {**constants, "b": constants["b"] * mask.T.astype(np.int8)}


SPARSE_MATRICES = [
    ((1, 70), (70, 130), 0.25, (8, 4)),
    ((1, 64), (64, 8), 0.5, (4, 4)),
    ((13, 20), (20, 67), 0.25, (16, 4)),
    ((2, 3, 5, 23), (23, 62), 0.1, (8, 4)),
    ((1, 12), (12, 5), 0.0, (8, 4)),
    ((4, 9), (9, 33), 0.9, (1, 4)),
]


@pytest.mark.parametrize("core", CORES)
def test_kept_blocks_of_matrices(core: str) -> None:
    problems = [kept_matrix(*spec) for spec in SPARSE_MATRICES for _ in (4, 8, 16)]
    configs = [{"unroll": 2, "rows": rows} for _ in SPARSE_MATRICES for rows in (4, 8, 16)]
    for result in run_on_board(problems, SparseColumnMatMul(), get_target(core), configs):
        np.testing.assert_array_equal(result.got, result.want)


@pytest.mark.parametrize("spec", SPARSE_MATRICES)
def test_kept_blocks_of_matrices_without_assembly(spec: Any) -> None:
    configs = [{"unroll": unroll, "rows": rows} for unroll, rows in [(1, 4), (2, 8), (2, 16)]]
    check(SparseColumnMatMul(), *kept_matrix(*spec), target=NARROW, configs=configs)


QUARTER = {  # instructions with a quarter of the blocks / all: 3x3, 1x1, a vector by a matrix
    "cortex-m0plus": (0.32, 0.41, 0.31),
    "cortex-m4": (0.36, 0.42, 0.42),
    "cortex-m55": (0.42, 0.52, 0.60),
    "riscv32": (0.30, 0.36, 0.31),
}


@pytest.mark.parametrize("core", QUARTER)
def test_a_quarter_of_the_blocks_in_less_than_half_the_instructions(core: str) -> None:
    target, most = get_target(core), QUARTER[core]
    shapes = [
        {"x_shape": (1, 64, 8, 8), "cout": 64, "kernel": (3, 3), "pads": (1, 1, 1, 1)},
        {"x_shape": (1, 64, 8, 8), "cout": 64, "kernel": (1, 1)},
    ]
    dense = run_on_board([full_range(conv_case(**s)) for s in shapes], ColumnConv(), target)
    kept = [kept_case({**s, "block": (8, 4), "density": 0.25}) for s in shapes]
    sparse = run_on_board(kept, SparseColumnConv(), target)
    matrix = (1, 256), (256, 256)
    dense += run_on_board([matmul_case(*matrix, True, "int8")], ColumnMatMul(), target)
    sparse += run_on_board([kept_matrix(*matrix, 0.25, (8, 4))], SparseColumnMatMul(), target)
    for few, all_, limit in zip(sparse, dense, most, strict=True):
        np.testing.assert_array_equal(few.got, few.want)
        assert few.instructions <= limit * all_.instructions


@pytest.mark.parametrize("core", CORES)
def test_lists_are_for_layers_that_gain_by_them(core: str) -> None:
    """The prediction's first choice is the kernel of fewer instructions."""
    target = get_target(core)
    shape = {"x_shape": (1, 48, 4, 4), "cout": 32, "kernel": (1, 1)}
    blocks, single = {"block": (8, 4), "density": 0.25}, {"block": (1, 1), "density": 0.5}
    matrix = (1, 128), (128, 64)
    problems: list[tuple[Problem, list[Any]]] = [
        (kept_case({**shape, **blocks}), [SparseColumnConv(), ColumnConv()]),
        (kept_case({**shape, **single}), [ColumnConv(), SparseColumnConv()]),
        (kept_matrix(*matrix, 0.25, (8, 4)), [SparseColumnMatMul(), ColumnMatMul()]),
        (kept_matrix(*matrix, 0.5, (1, 1)), [ColumnMatMul(), SparseColumnMatMul()]),
    ]
    for problem, kernels in problems:
        region, _ = region_of(*problem, anchored=True)
        assert choices(region, target)[0].template.name == kernels[0].name
        (best,), (other,) = (run_on_board([problem], kernel, target) for kernel in kernels)
        assert best.instructions < other.instructions


SPEED: dict[str, tuple[Target, Problem, float]] = {
    "3x3 of 64 channels": (
        get_target("cortex-m4"),
        conv_case(x_shape=(1, 64, 8, 8), cout=64, kernel=(3, 3), pads=(1, 1, 1, 1)),
        1.05,
    ),
    "1x1 of 128 channels": (
        get_target("cortex-m7"),
        conv_case(x_shape=(1, 128, 6, 6), cout=128, kernel=(1, 1)),
        1.13,
    ),
    "3x3 of 64 channels, vectors": (
        get_target("cortex-m55"),
        conv_case(x_shape=(1, 64, 8, 8), cout=64, kernel=(3, 3), pads=(1, 1, 1, 1)),
        0.2,
    ),
}


@pytest.mark.parametrize("name", SPEED)
def test_instructions_per_product(name: str) -> None:
    target, problem, most = SPEED[name]
    (result,) = run_on_board([problem], ColumnConv(), target)
    weights, out = problem[2]["w"], result.want
    assert result.instructions <= most * weights.size * np.prod(out.shape[2:-1])
