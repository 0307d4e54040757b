"""Depthwise integer convolution: the reference's bits on every instruction set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from emulated import Case, run_emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, region_of
from integer_targets import ARM, NATIVE, native

from effc.kernels.depthwise_integer import DepthwiseInteger
from effc.passes.integer.arithmetic import factors
from effc.passes.integer.reference import to_quads

Shape = tuple[int, ...]
Spec = tuple[Shape, Shape, dict[str, Any]]  # input (plain), kernel, attributes

GEOMETRY: tuple[Spec, ...] = (
    ((1, 8, 14, 14), (3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 6, 9, 7), (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 5, 20, 33), (5, 5), {"pads": (2, 2, 2, 2), "strides": (2, 2)}),
    ((1, 4, 12, 30), (3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 2)}),
    ((1, 4, 13, 30), (3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 3), "strides": (2, 2)}),
    ((1, 3, 11, 40), (3, 4), {"strides": (3, 3)}),
    ((1, 4, 6, 11), (7, 7), {"pads": (3, 3, 3, 3)}),
    ((1, 7, 50), (9,), {"pads": (4, 4)}),
    ((1, 4, 70, 90), (3, 3), {"pads": (0, 0, 1, 1), "strides": (2, 2)}),
    ((1, 4, 3, 2), (3, 3), {"pads": (4, 5, 4, 5)}),
    ((1, 4, 9, 1), (2, 1), {}),
)


def problem(
    spec: Spec,
    dtype: str,
    *,
    zero: int | None = None,
    multiplier: str = "channel",
    tail: Sequence[Node] = (),
    more: dict[str, np.ndarray] | None = None,
    raw: bool = False,
) -> tuple[list[Node], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Nodes, inputs and constants of a convolution with extreme values and its Requantize."""
    shape, kernel, attrs = spec
    channels = shape[1]
    rng = np.random.default_rng(channels + shape[-1])
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    x.reshape(-1)[::3] = limits.min
    w = rng.integers(-128, 128, (channels, 1, *kernel)).astype(np.int8)
    w.reshape(-1)[::4] = -128
    bias = rng.integers(-50000, 50000, channels).astype(np.int32)
    x_zero = limits.min + 77 if zero is None else zero
    group = {"group": channels, "x_zero": x_zero}
    conv = Node("ConvInteger", ["x", "w", "b"], "y" if raw else "c", {**attrs, **group})
    inputs, constants = {"x": to_quads(x, 99)}, {"w": w, "b": bias}
    if raw:
        return [conv], inputs, constants
    count = 1 if multiplier == "tensor" else -(-channels // 4) * 4
    made = factors(np.geomspace(0.0003, 0.006 if multiplier != "large" else 0.4, count))
    ends = (1,) * len(kernel)
    constants["m"] = made.multiplier.reshape((1,) if count == 1 else (-1, *ends, 4))
    scaling = {"left": made.left, "right": made.right, "zero": limits.min + 100}
    scaling |= {"low": limits.min + 3, "high": limits.max - 2, "to": 3 if dtype == "int8" else 2}
    last = "q" if tail else "y"
    nodes = [conv, Node("Requantize", ["c", "m"], last, scaling), *tail]
    return nodes, {**inputs, **(more or {})}, constants


def missing(channels: int) -> Any:
    """The elements that may hold anything."""
    return (slice(None), -1, ..., slice(channels % 4 or 4, 4))


def judge(name: str, spec: Spec, dtype: str = "uint8", **more: Any) -> None:
    nodes, inputs, constants = problem(spec, dtype, **more)
    target, template = native(name), DepthwiseInteger()
    region, _ = region_of(nodes, inputs, constants, anchored=True)
    best = [template.candidates(region, target)[0][0]]
    ignore = missing(spec[0][1])
    check(template, nodes, inputs, constants, target=target, configs=best, ignore=ignore)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("spec", GEOMETRY)
def test_geometry(name: str, spec: Spec) -> None:
    judge(name, spec)


@pytest.mark.parametrize("name", NATIVE)
def test_signed_activations(name: str) -> None:
    judge(name, GEOMETRY[0], "int8")


@pytest.mark.parametrize("name", ["avx2", "vnni"])
@pytest.mark.parametrize("multiplier", ["tensor", "large"])
def test_multipliers(name: str, multiplier: str) -> None:
    judge(name, GEOMETRY[0], multiplier=multiplier)


@pytest.mark.parametrize("name", ["avx2", "vnni"])
def test_sums_without_epilogue(name: str) -> None:
    judge(name, GEOMETRY[1], raw=True)


@pytest.mark.parametrize("name", ["avx2", "vnni"])
def test_residual_behind_requantize(name: str) -> None:
    rng = np.random.default_rng(3)
    other = to_quads(rng.integers(0, 256, (1, 8, 14, 14), np.uint8))
    attrs = {"a_multiplier": 1 << 20, "b_multiplier": 700000, "offset": 1 << 20, "right": 21}
    add = Node(
        "AddRescaled", ["q", "z"], attrs={**attrs, "zero": 3, "low": 0, "high": 255, "to": 2}
    )
    judge(name, GEOMETRY[0], tail=(add,), more={"z": other})


@pytest.mark.parametrize("name", ["sse2", "avx2", "vnni"])
def test_every_configuration(name: str) -> None:
    spec: Spec = ((1, 4, 15, 29), (3, 3), {"pads": (1, 1, 1, 1)})
    check(DepthwiseInteger(), *problem(spec, "uint8"), target=native(name))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 24), st.integers(1, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 6)),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([0, 128, 255]),
    st.sampled_from(NATIVE),
)
def test_any_shape(
    sizes: Shape, kernel: Shape, stride: int, dilation: int, zero: int, name: str
) -> None:
    pads = ((kernel[0] - 1) * dilation, kernel[1] // 2, kernel[0] // 2, (kernel[1] - 1) * dilation)
    attrs = {"pads": pads, "strides": (stride,) * 2, "dilations": (dilation,) * 2}
    judge(name, ((1, *sizes), kernel, attrs), zero=zero)


@pytest.mark.parametrize("name", ARM)
def test_on_arm(name: str) -> None:
    target, template = ARM[name], DepthwiseInteger()
    cases, wanted = [], []
    for raw, spec in [(True, GEOMETRY[0]), *((False, spec) for spec in GEOMETRY)]:
        nodes, inputs, constants = problem(spec, "int8", raw=raw)
        region, expected = region_of(nodes, inputs, constants, anchored=True)
        assert template.refuse(region, target) is None
        config = template.candidates(region, target)[0][0]
        cases.append(Case(template.build(region, target, config), region, inputs))
        wanted.append((expected["y"], missing(spec[0][1])))
    for have, (want, ignore) in zip(run_emulated(cases, target), wanted, strict=True):
        got, exact = have.copy(), want.copy()
        got[ignore] = exact[ignore] = 0
        np.testing.assert_array_equal(got, exact)


def test_one_packing_for_all_versions() -> None:
    nodes, inputs, constants = problem(GEOMETRY[0], "int8")
    region, _ = region_of(nodes, inputs, constants, anchored=True)
    template = DepthwiseInteger()
    made = [template.build(region, t, template.candidates(region, t)[0][0]) for t in ARM.values()]
    assert made[0].stages[0].args == made[1].stages[0].args
    for name, array in made[0].weights.items():
        np.testing.assert_array_equal(array, made[1].weights[name])


@pytest.mark.parametrize(
    ("group", "weight", "why"),
    [
        (1, (8, 8, 3, 3), "not depthwise"),
        (4, (8, 1, 3, 3), "not depthwise"),
        (8, (8, 1, 31, 31), "too large"),
    ],
)
def test_refuses(group: int, weight: Shape, why: str) -> None:
    channels = weight[1] * group
    x = np.zeros((1, -(-channels // 4), 40, 40, 4), np.uint8)
    node = Node("ConvInteger", ["x", "w"], attrs={"group": group, "x_zero": 3})
    region, _ = region_of([node], {"x": x}, {"w": np.ones(weight, np.int8)}, anchored=True)
    assert why in (DepthwiseInteger().refuse(region, native("sse2")) or "")
