"""Integer convolutions: the bits of the NumPy reference over geometries and instruction sets."""

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

from effc.devices.target import Target, Variant
from effc.errors import InternalError
from effc.kernels.conv import DirectConv
from effc.kernels.sparse_conv import SparseConv
from effc.kernels.template import Config, Template
from effc.kernels.versions import require_same
from effc.passes.integer.arithmetic import add_factors, factors
from effc.passes.integer.reference import to_quads

DIRECT, SPARSE = DirectConv(), SparseConv()
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
TO = {"int8": 3, "uint8": 2}


def case(
    x_shape: tuple[int, ...],
    cout: int,
    kernel: tuple[int, ...],
    *,
    dtype: str = "uint8",
    x_zero: int = 3,
    bias: bool = True,
    requantize: bool = True,
    residual: bool = False,
    group: int = 1,
    mask: np.ndarray | None = None,
    seed: int = 0,
    least: int = -128,
    **attrs: Any,
) -> tuple[list[Node], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Nodes, inputs and constants of a ConvInteger with what usually follows."""
    rng = np.random.default_rng(seed)
    low, high = LIMITS[dtype]
    x = rng.integers(low, high + 1, x_shape).astype(dtype)
    x.reshape(-1)[: x.size // 8] = rng.choice([low, high], x.size // 8)
    w = rng.integers(least, 128, (cout, x_shape[1] // group, *kernel)).astype(np.int8)
    w.reshape(-1)[: w.size // 8] = least
    if mask is not None:
        w *= mask
    inputs = {"x": to_quads(x, fill=77 if x_zero != 77 else 5)}
    constants = {"w": w}
    names = ["x", "w"]
    if bias:
        constants["b"] = rng.integers(-(2**20), 2**20, cout).astype(np.int32)
        names.append("b")
    attrs = {"x_zero": x_zero, "group": group, **attrs}
    nodes = [Node("ConvInteger", names, "sums" if requantize else "y", attrs)]
    if not requantize:
        return nodes, inputs, constants
    reduction = int(np.prod(w.shape[1:]))
    quads = -(-cout // 4)
    scales = rng.uniform(0.2, 1.0, (quads, *(1,) * len(kernel), 4)) / (90 * np.sqrt(reduction))
    found = factors(scales)
    constants["m"] = found.multiplier
    ends = {"zero": low + 120, "low": low + 2, "high": high - 3, "to": TO[dtype]}
    middle = "y" if not residual else "scaled"
    how = {"left": found.left, "right": found.right, **ends}
    nodes.append(Node("Requantize", ["sums", "m"], middle, how))
    if residual:
        _, sums = region_of(nodes, inputs, constants, anchored=True)
        inputs["other"] = rng.integers(low, high + 1, sums[middle].shape).astype(dtype)
        nodes.append(Node("AddRescaled", ["scaled", "other"], "y", adding(dtype, low)))
    return nodes, inputs, constants


def adding(dtype: str, low: int) -> dict[str, Any]:
    """Attributes of an AddRescaled."""
    found = add_factors(0.6, 0.7, low + 120, low + 100)
    low, high = LIMITS[dtype]
    return {**vars(found), "zero": low + 110, "low": low, "high": high, "to": TO[dtype]}


CASES: dict[str, dict[str, Any]] = {
    "1x1": dict(x_shape=(1, 20, 7, 9), cout=13, kernel=(1, 1)),
    "1x1, 49 positions, residual": dict(
        x_shape=(1, 24, 7, 7), cout=20, kernel=(1, 1), residual=True
    ),
    "1x1 stride 2": dict(x_shape=(1, 8, 9, 9), cout=9, kernel=(1, 1), strides=(2, 2)),
    "first layer": dict(
        x_shape=(1, 3, 30, 34), cout=16, kernel=(7, 7), pads=(3, 3, 3, 3), strides=(2, 2)
    ),
    "3x3 padded, residual": dict(
        x_shape=(1, 8, 9, 11), cout=12, kernel=(3, 3), pads=(1, 1, 1, 1), residual=True
    ),
    "stride 2, groups, batch": dict(
        x_shape=(2, 16, 17, 15), cout=24, kernel=(3, 3), pads=(1, 0, 2, 1), strides=(2, 2), group=2
    ),
    "dilated, uneven pads": dict(
        x_shape=(1, 5, 17, 15), cout=5, kernel=(3, 2), pads=(2, 0, 1, 3), dilations=(2, 3)
    ),
    "no epilogue": dict(x_shape=(1, 9, 5, 6), cout=6, kernel=(2, 2), requantize=False),
    "no bias": dict(x_shape=(1, 9, 5, 6), cout=6, kernel=(2, 2), bias=False, x_zero=0),
    "1-D": dict(x_shape=(1, 8, 42), cout=10, kernel=(3,), residual=True),
    "3-D": dict(
        x_shape=(1, 4, 6, 7, 5), cout=6, kernel=(3, 2, 3), pads=(1,) * 6, strides=(1, 2, 1)
    ),
    "one position": dict(x_shape=(1, 16, 1, 1), cout=40, kernel=(1, 1), residual=True),
    "three positions": dict(x_shape=(1, 16, 1, 3), cout=40, kernel=(1, 1), residual=True),
}


SPARSE_CASES: dict[str, dict[str, Any]] = {
    "1x1, 8x4": dict(x_shape=(1, 24, 7, 9), cout=20, kernel=(1, 1), block=(8, 4), residual=True),
    "1x1, 49 positions, 4x4": dict(x_shape=(1, 24, 7, 7), cout=16, kernel=(1, 1), block=(4, 4)),
    "3x3, 8x4": dict(
        x_shape=(1, 16, 9, 11), cout=16, kernel=(3, 3), pads=(1, 1, 1, 1), block=(8, 4)
    ),
    "stride 2, 16x4, batch": dict(
        x_shape=(2, 10, 17, 15),
        cout=32,
        kernel=(3, 3),
        pads=(1,) * 4,
        strides=(2, 2),
        block=(16, 4),
    ),
    "groups, 1x4": dict(x_shape=(1, 16, 8, 8), cout=16, kernel=(3, 3), group=2, block=(1, 4)),
}


def sparse_case(dtype: str = "uint8", density: float = 0.3, **more: Any) -> Any:
    """``case`` with block-punched zeros."""
    block = more.pop("block")
    channels = more["x_shape"][1] // more.get("group", 1)
    mask = block_mask((more["cout"], channels, *more["kernel"]), density, block)
    return case(dtype=dtype, mask=mask, **more)


def missing(cout: int) -> Any:
    """The elements that may hold anything."""
    return np.s_[:, -1, ..., cout % 4 or 4 :]


def judge(
    template: Template, problem: Any, target: str, cout: int, configs: list[Config] | None = None
) -> None:
    """The best configuration gives the reference's bits; or those given."""
    nodes, inputs, constants = problem
    region, _ = region_of(nodes, inputs, constants, anchored=True)
    if configs is None:
        configs = [template.candidates(region, native(target))[0][0]]
    ignore = missing(cout)
    check(template, nodes, inputs, constants, target=native(target), configs=configs, ignore=ignore)


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("name", CASES)
def test_dense(name: str, target: str) -> None:
    judge(DIRECT, case(**CASES[name]), target, CASES[name]["cout"])


@pytest.mark.parametrize("target", NATIVE)
@pytest.mark.parametrize("name", SPARSE_CASES)
def test_sparse(name: str, target: str) -> None:
    judge(SPARSE, sparse_case(**SPARSE_CASES[name]), target, SPARSE_CASES[name]["cout"])


def emulate(
    named: dict[str, tuple[Template, dict[str, Any]]], target: Target, number: int = 0
) -> None:
    """Arguments of ``case`` or ``sparse_case``: their configuration ``number`` gives the bits."""
    cases, wanted = [], []
    for name, (template, more) in named.items():
        made = case if template is DIRECT else sparse_case
        nodes, inputs, constants = made(**{"dtype": "int8", "x_zero": -5, **more})
        region, expected = region_of(nodes, inputs, constants, anchored=True)
        ranked = template.candidates(region, target)
        config = ranked[number % len(ranked)][0]
        cases.append(Case(template.build(region, target, config), region, inputs))
        wanted.append((name, config, expected["y"], missing(more["cout"])))
    found = run_emulated(cases, target)
    for have, (name, config, want, ignore) in zip(found, wanted, strict=True):
        have, want = have.copy(), want.copy()
        have[ignore] = want[ignore] = 0
        np.testing.assert_array_equal(have, want, err_msg=f"{name} {config}")


@pytest.mark.parametrize("target", ARM)
def test_arm(target: str) -> None:
    dense = {name: (DIRECT, more) for name, more in CASES.items()}
    emulate(dense | {name: (SPARSE, more) for name, more in SPARSE_CASES.items()}, ARM[target])


def test_neon_with_narrow_weights() -> None:
    """Sums of two products in 16 bits, at their limits; another function than with -128."""
    emulate({name: (DIRECT, more | {"least": -127}) for name, more in CASES.items()}, ARM["neon"])
    shape = ((1, 8, 5, 5), 8, (1, 1))
    wide, narrow = (region_of(*case(*shape, least=n), anchored=True)[0] for n in (-128, -127))
    assert wide.key != narrow.key


def test_i8mm() -> None:
    emulate({name: (DIRECT, more) for name, more in CASES.items()}, I8MM)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "x_shape": st.tuples(
                    st.integers(1, 2), st.integers(1, 40), st.integers(3, 9), st.integers(3, 20)
                ),
                "cout": st.integers(1, 40),
                "kernel": st.sampled_from([(1, 1), (1, 1), (1, 3), (3, 2)]),
                "strides": st.sampled_from([(1, 1), (2, 1), (2, 2)]),
                "pads": st.sampled_from([(0,) * 4, (1, 0, 1, 2)]),
                "x_zero": st.integers(-128, 127),
            }
        ),
        min_size=6,
        max_size=6,
    ),
    st.integers(0, 23),
)
@settings(max_examples=2, deadline=None)
def test_i8mm_with_any_shape(shapes: list[dict[str, Any]], number: int) -> None:
    emulate({str(more): (DIRECT, more) for more in shapes}, I8MM, number)


def test_i8mm_in_passes_over_whole_pairs() -> None:
    """Sums that wait between passes; a pass over an odd number of steps is no configuration."""
    knobs = {"along": "space", "lanes": 4, "channels": 8, "columns": 8, "pack": True}
    knobs |= {"panels": 2, "splits": 1, "unroll": 8}
    nodes, inputs, constants = case((1, 24, 5, 7), 12, (1, 3), dtype="int8", residual=True)
    region, expected = region_of(nodes, inputs, constants, anchored=True)
    kernel = DIRECT.build(region, I8MM, knobs | {"block": 2})
    (found,) = run_emulated([Case(kernel, region, inputs)], I8MM)
    np.testing.assert_array_equal(found, expected["y"])
    with pytest.raises(InternalError, match="invalid configuration"):
        DIRECT.build(region, I8MM, knobs | {"block": 3})


def test_versions_share_weights_whatever_they_multiply_with() -> None:
    """A variant with i8mm does not pack weights for it; a target that promises it does."""
    region, _ = region_of(*case((1, 24, 7, 9), 16, (1, 1), dtype="int8"), anchored=True)
    variant = Variant("i8mm", ("+dotprod", "+i8mm"))
    target = replace(ARM["neon"], variants=(variant,), common="i8mm")
    config = DIRECT.candidates(region, target.version("i8mm"))[0][0]
    base, other = (DIRECT.build(region, target.version(n), config) for n in ("base", "i8mm"))
    require_same(base, other, "test")
    packed = DIRECT.build(region, I8MM, config | {"along": "space"})
    assert not np.array_equal(packed.weights["w"], base.weights["w"])


@given(
    st.integers(1, 2),
    st.integers(1, 20),
    st.integers(1, 20),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(3, 20), st.integers(3, 20)),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from(["uint8", "int8"]),
    st.integers(0, 255),
    st.sampled_from(sorted(NATIVE)),
    st.integers(0, 23),
)
@settings(max_examples=6, deadline=None)
def test_any_shape_and_configuration(
    batch: int,
    cin: int,
    cout: int,
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: int,
    pad: int,
    dtype: str,
    zero: int,
    target: str,
    number: int,
) -> None:
    problem = case(
        (batch, cin, *size),
        cout,
        kernel,
        strides=(stride, stride),
        pads=(pad,) * 4,
        dtype=dtype,
        x_zero=zero + LIMITS[dtype][0],
        residual=number % 2 == 0,
    )
    region, _ = region_of(*problem, anchored=True)
    ranked = [c for c, _ in DIRECT.candidates(region, native(target))]
    judge(DIRECT, problem, target, cout, [ranked[number % len(ranked)]])


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1, 3]),
    st.tuples(st.integers(3, 20), st.integers(3, 20)),
    st.sampled_from([(8, 4), (4, 4), (16, 4), (1, 4), (4, 8)]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from(sorted(NATIVE)),
    st.integers(0, 23),
)
@settings(max_examples=6, deadline=None)
def test_any_zeros(
    cin: int,
    cout: int,
    kernel: int,
    size: tuple[int, int],
    block: tuple[int, int],
    density: float,
    target: str,
    number: int,
) -> None:
    pads = (kernel // 2,) * 4
    more = dict(x_shape=(1, cin, *size), cout=cout, kernel=(kernel, kernel), pads=pads)
    problem = sparse_case(density=density, block=block, **more)
    region, _ = region_of(*problem, anchored=True)
    if SPARSE.refuse(region, native(target)) is not None:
        assert region.anchor is not None
        assert region.anchor.zeros is None
        return
    ranked = [c for c, _ in SPARSE.candidates(region, native(target))]
    judge(SPARSE, problem, target, cout, [ranked[number % len(ranked)]])


def test_spilled_sums_of_three_positions() -> None:
    base = {"pack": True, "panels": 2, "block": 2, "splits": 1, "unroll": 2}
    knobs = {"along": "space", "lanes": 8, "channels": 8, "columns": 11} | base
    turned = {"along": "channel", "lanes": 8, "channels": 8, "columns": 5} | base
    problem = case((1, 24, 5, 7), 12, (3, 3), residual=True)
    judge(DIRECT, problem, "avx2", 12, [knobs, turned])


def test_unstructured_zeros_run_dense() -> None:
    mask = np.random.default_rng(0).random((16, 16, 1, 1)) < 0.3
    region, _ = region_of(*case((1, 16, 8, 8), 16, (1, 1), mask=mask), anchored=True)
    sparse = SPARSE.candidates(region, native("avx2"))
    dense = DIRECT.candidates(region, native("avx2"))
    assert min(cost for _, cost in dense) < min(cost for _, cost in sparse)


def test_refuses_depthwise() -> None:
    region, _ = region_of(*case((1, 8, 5, 5), 8, (3, 3), group=8), anchored=True)
    assert DIRECT.refuse(region, native("avx2")) == "groups are not whole quads"
