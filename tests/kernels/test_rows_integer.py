"""Integer softmax and layer normalization: the reference's bits on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from emulated import Case, arm64, run_emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, region_of
from integer_targets import ARM, NATIVE, native

from effc.kernels.rows_integer import LayerNormInteger, SoftmaxInteger
from effc.kernels.template import Template
from effc.passes.integer.normalization import layer_norm_constants, softmax_constants

Problem = tuple[Template, list[Node], dict[str, np.ndarray], dict[str, np.ndarray]]
SHAPES = ((3, 1), (2, 2, 7), (5, 64), (2, 197), (1, 1000))


def problem(kind: str, shape: tuple[int, ...], dtype: str, scale: float = 0.1) -> Problem:
    rng = np.random.default_rng(shape[-1])
    limits, length = np.iinfo(dtype), shape[-1]
    x = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    x.reshape(-1, length)[0] = limits.min  # a constant row
    bounds = {"zero": limits.min, "low": limits.min, "high": limits.max}
    bounds["to"] = 3 if dtype == "int8" else 2
    if kind == "softmax":
        made = softmax_constants(length, scale, 1 / 256)
        attrs = {"shift": made.shift, "multiplier": made.multiplier, "right": made.right}
        node = Node("SoftmaxInteger", ["x", "table"], attrs={**attrs, **bounds})
        return SoftmaxInteger(), [node], {"x": x}, {"table": made.table}
    gamma = rng.standard_normal(length)
    norm = layer_norm_constants(gamma, rng.standard_normal(length), 1e-5, scale, 0.03)
    attrs = {"epsilon": norm.epsilon, "right": norm.right, **bounds, "zero": limits.min + 128}
    node = Node("LayerNormInteger", ["x", "gamma", "beta"], attrs=attrs)
    return LayerNormInteger(), [node], {"x": x}, {"gamma": norm.gamma, "beta": norm.beta}


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kind", ["softmax", "norm"])
def test_instruction_sets(name: str, kind: str) -> None:
    check(*problem(kind, (3, 77), "uint8"), target=native(name))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["softmax", "norm"])
def test_shapes(kind: str, shape: tuple[int, ...]) -> None:
    check(*problem(kind, shape, "int8"), target=native("avx2"))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.sampled_from(["softmax", "norm"]), st.integers(1, 300), st.sampled_from([1e-4, 0.02, 3.0])
)
def test_any_scale(kind: str, length: int, scale: float) -> None:
    check(*problem(kind, (2, length), "uint8", scale), target=native("avx2"))


@pytest.mark.parametrize("name", ARM)
def test_on_arm(name: str) -> None:
    cases, wanted = [], []
    for kind in ("softmax", "norm"):
        for shape in SHAPES:
            template, nodes, inputs, constants = problem(kind, shape, "int8")
            region, expected = region_of(nodes, inputs, constants, anchored=True)
            kernel = template.build(region, ARM[name], {})
            cases.append(Case(kernel, region, inputs))
            wanted.append(expected["y"])
    for have, want in zip(run_emulated(cases, ARM[name]), wanted, strict=True):
        np.testing.assert_array_equal(have, want)


def test_computed_operands_are_refused() -> None:
    template, nodes, inputs, constants = problem("softmax", (2, 9), "int8")
    region, _ = region_of(nodes, {**inputs, **constants}, {}, anchored=True)
    assert "run time" in (template.refuse(region, arm64("cortex-a72")) or "")
