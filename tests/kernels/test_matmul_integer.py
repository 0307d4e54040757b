"""Integer matrix products: the reference's bits on every instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from emulated import Case, run_emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, region_of
from integer_targets import ARM, I8MM, NATIVE, native

from effc.kernels.matmul_integer import MatMulInteger
from effc.kernels.versions import require_same
from effc.passes.integer.arithmetic import factors

Shape = tuple[int, ...]
Problem = tuple[list[Node], dict[str, np.ndarray], dict[str, np.ndarray]]

SHAPES: tuple[tuple[Shape, Shape, bool], ...] = (  # a, b, whether b is constant
    ((13, 20), (20, 67), True),
    ((1, 70), (70, 130), True),
    ((2, 3, 5, 23), (23, 64), True),
    ((2, 5, 9), (2, 9, 20), True),
    ((3, 6, 21), (3, 21, 35), False),
    ((2, 1, 7, 64), (3, 64, 48), False),
    ((4, 5), (5, 6), False),
    ((1, 4), (4, 2), True),
)


def problem(
    a: Shape,
    b: Shape,
    constant: bool,
    dtype: str = "uint8",
    *,
    epilogue: str = "channel",
    least: int = -128,
    tail: Sequence[Node] = (),
    more: dict[str, np.ndarray] | None = None,
) -> Problem:
    """Extreme values and zero points, and a Requantize unless ``epilogue`` is ``none``.

    ``least`` is the smallest element of a constant b: kernels may depend on it.
    """
    rng = np.random.default_rng(a[-1] * b[-1])
    limits = np.iinfo(dtype)
    arrays = {
        "a": rng.integers(limits.min, limits.max + 1, a).astype(dtype),
        "b": rng.integers(least, 128, b, np.int8)
        if constant
        else rng.integers(limits.min, limits.max + 1, b).astype(dtype),
    }
    arrays["a"].reshape(-1)[::3] = limits.max
    arrays["a"][..., : a[-1] // 2] = limits.min
    arrays["b"].reshape(-1)[::4] = least if constant else limits.max
    inputs, constants = {"a": arrays["a"]}, {"bias": rng.integers(-9999, 9999, b[-1], np.int32)}
    (constants if constant else inputs)["b"] = arrays["b"]
    attrs = {"a_zero": limits.min + 77, "b_zero": 0 if constant else limits.max - 5}
    matmul = Node("MatMulInteger", ["a", "b", "bias"], "y" if epilogue == "none" else "p", attrs)
    if epilogue == "none":
        return [matmul], inputs, constants
    made = factors(np.geomspace(0.0001, 0.004, b[-1] if epilogue == "channel" else 1))
    constants["m"] = made.multiplier
    scaling = {"left": made.left, "right": made.right, "zero": limits.min + 100}
    scaling |= {"low": limits.min, "high": limits.max, "to": 3 if dtype == "int8" else 2}
    last = Node("Requantize", ["p", "m"], "q" if tail else "y", scaling)
    return [matmul, last, *tail], {**inputs, **(more or {})}, constants


def judge(name: str, made: Problem, best: int = 1) -> None:
    target, template = native(name), MatMulInteger()
    region, _ = region_of(*made, anchored=True)
    assert template.refuse(region, target) is None
    configs = [config for config, _ in template.candidates(region, target)[:best]]
    check(template, *made, target=target, configs=configs)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(name: str, shape: tuple[Shape, Shape, bool]) -> None:
    judge(name, problem(*shape))


@pytest.mark.parametrize("name", NATIVE)
def test_signed_activations(name: str) -> None:
    judge(name, problem(*SHAPES[0], "int8"))
    judge(name, problem(*SHAPES[4], "int8"))


@pytest.mark.parametrize("name", ["avx2", "vnni"])
@pytest.mark.parametrize("epilogue", ["none", "tensor"])
def test_epilogues(name: str, epilogue: str) -> None:
    judge(name, problem(*SHAPES[0], epilogue=epilogue))


@pytest.mark.parametrize("name", ["avx2", "vnni"])
def test_residual_behind_requantize(name: str) -> None:
    attrs = {"a_multiplier": 1 << 20, "b_multiplier": 700000, "offset": 1 << 20, "right": 21}
    add = Node(
        "AddRescaled", ["q", "z"], attrs={**attrs, "zero": 3, "low": 0, "high": 255, "to": 2}
    )
    other = np.random.default_rng(3).integers(0, 256, (13, 67), np.uint8)
    judge(name, problem(*SHAPES[0], tail=(add,), more={"z": other}))


@pytest.mark.parametrize("name", ["sse2", "avx2", "vnni"])
def test_every_configuration(name: str) -> None:
    judge(name, problem((9, 22), (22, 80), True), best=99)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.integers(1, 20),
    st.integers(4, 40),
    st.integers(2, 150),
    st.booleans(),
    st.sampled_from(NATIVE),
)
def test_any_shape(m: int, k: int, n: int, constant: bool, name: str) -> None:
    judge(name, problem((m, k), (k, n), constant))


@pytest.mark.parametrize("name", [*ARM, "i8mm"])
def test_on_arm(name: str) -> None:
    target, template = {**ARM, "i8mm": I8MM}[name], MatMulInteger()
    cases, wanted = [], []
    made = [problem(*SHAPES[0], "int8", epilogue="none")]
    made += [problem(*shape, "int8") for shape in SHAPES]
    made += [problem(*shape, "int8", least=-127) for shape in SHAPES if shape[2]]
    for nodes, inputs, constants in made:
        region, expected = region_of(nodes, inputs, constants, anchored=True)
        config = template.candidates(region, target)[0][0]
        cases.append(Case(template.build(region, target, config), region, inputs))
        wanted.append(expected["y"])
    for have, want in zip(run_emulated(cases, target), wanted, strict=True):
        np.testing.assert_array_equal(have, want)


@settings(max_examples=2, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(*(st.integers(*e) for e in ((2, 9), (8, 40), (2, 70)))), min_size=3, max_size=5
    )
)
def test_any_shape_by_squares(shapes: list[tuple[int, int, int]]) -> None:
    cases, wanted, template = [], [], MatMulInteger()
    for m, k, n in shapes:
        nodes, inputs, constants = problem((m, k), (k, n), True, "int8")
        region, expected = region_of(nodes, inputs, constants, anchored=True)
        for config, _ in template.candidates(region, I8MM)[::5]:
            kernel = template.build(region, I8MM, config)
            assert "smmla" in str(kernel.stages[-1].func)
            cases.append(Case(kernel, region, inputs))
            wanted.append(expected["y"])
    for have, want in zip(run_emulated(cases, I8MM), wanted, strict=True):
        np.testing.assert_array_equal(have, want)


def test_versions_share_weights_and_work() -> None:
    template = MatMulInteger()
    for shape, least in product((SHAPES[0], SHAPES[4]), (-128, -127)):
        region, _ = region_of(*problem(*shape, "int8", least=least), anchored=True)
        config = template.candidates(region, ARM["dotprod"])[0][0]
        base, other = (template.build(region, target, config) for target in ARM.values())
        require_same(base, other, "matmul")


@pytest.mark.parametrize(
    ("a", "b", "why"), [((3, 3), (3, 8), "too short"), ((5, 8), (8, 1), "too short")]
)
def test_refuses(a: Shape, b: Shape, why: str) -> None:
    region, _ = region_of(*problem(a, b, True), anchored=True)
    assert why in (MatMulInteger().refuse(region, native(NATIVE[0])) or "")
