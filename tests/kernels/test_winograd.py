"""Winograd convolution against float64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from conv_cases import check_conv, conv_region, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import host, run_kernel

from effc.kernels.template import Config
from effc.kernels.winograd import Winograd
from effc.kernels.winograd_matrices import POINTS, matrices, transform_weights

WINOGRAD = Winograd()
# Forward error of the transforms relative to sum |w*x|; measured 10 (m=2) and 40 (m=4) ulp.
SLACK = {2: 32, 4: 256}


@pytest.mark.parametrize("m", POINTS)
def test_identity_in_exact_arithmetic(m: int) -> None:
    a, g, b = matrices(m)
    data = [Fraction(n * n % 7 - 3) for n in range(m + 2)]
    taps = [Fraction(2), Fraction(-5), Fraction(3)]
    u = [sum(x * y for x, y in zip(row, taps, strict=True)) for row in g]
    v = [sum(x * y for x, y in zip(row, data, strict=True)) for row in b]
    products = [x * y for x, y in zip(u, v, strict=True)]
    got = [sum(x * y for x, y in zip(row, products, strict=True)) for row in a]
    assert got == [sum(data[i + k] * taps[k] for k in range(3)) for i in range(m)]


@pytest.mark.parametrize("m", POINTS)
def test_constant_weights_transform(m: int) -> None:
    transformed = transform_weights(np.ones((2, 3, 3, 3), np.float32), m)
    assert transformed.shape == ((m + 2) ** 2, 2, 3)
    assert (transformed == transformed[:, :1, :1]).all()


def _pick(region: object, m: int, index: int = 0) -> Config:
    found = [c for c, _ in WINOGRAD.candidates(region, host()) if c["m"] == m]  # type: ignore[arg-type]
    if not found:
        first = dict(WINOGRAD.candidates(region, host())[0][0])  # type: ignore[arg-type]
        return {**first, "m": m, "strip": 1, "shared": True}
    return found[index % len(found)]


@pytest.mark.parametrize("m", POINTS)
@pytest.mark.parametrize(
    ("space", "pads"),
    [
        ((14, 14), (1, 1, 1, 1)),
        ((13, 29), (0, 1, 2, 0)),
        ((5, 3), (1, 1, 1, 1)),
        ((7, 7), (1,) * 4),
    ],
)
def test_shapes(m: int, space: tuple[int, int], pads: tuple[int, ...]) -> None:
    region = conv_region((1, 9, *space), 21, (3, 3), pads=pads, relu=True, residual=True)
    check_conv(WINOGRAD, region, host(), _pick(region, m), slack=SLACK[m])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    cin=st.integers(8, 12),
    cout=st.integers(8, 40),
    height=st.integers(3, 18),
    width=st.integers(3, 34),
    pad=st.integers(0, 1),
    index=st.integers(0, 11),
)
def test_any_geometry(
    batch: int, cin: int, cout: int, height: int, width: int, pad: int, index: int
) -> None:
    region = conv_region((batch, cin, height, width), cout, (3, 3), pads=(pad,) * 4)
    found = WINOGRAD.candidates(region, host())
    config = found[index % len(found)][0]
    check_conv(WINOGRAD, region, host(), config, slack=SLACK[int(config["m"])])


@pytest.mark.parametrize("shared", [False, True])
def test_stage_per_strip_or_shared(shared: bool) -> None:
    region = conv_region((1, 8, 16, 16), 40, (3, 3), pads=(1, 1, 1, 1))
    config = {
        "m": 4, "strip": 2, "lanes": 8, "channels": 16, "columns": 6, "unroll": 2,
        "shared": shared, "splits": 2 if shared else 1,
    }  # fmt: skip
    check_conv(WINOGRAD, region, host(), config, slack=SLACK[4])


def test_signal_to_noise() -> None:
    region = conv_region((1, 64, 20, 20), 32, (3, 3), pads=(1, 1, 1, 1), bias=False)
    inputs = {"x": np.maximum(random_inputs(region)["x"], 0)}
    kernel = WINOGRAD.build(region, host(), _pick(region, 4))
    exact = check_conv(WINOGRAD, region, host(), _pick(region, 4), slack=SLACK[4], inputs=inputs)
    got = run_kernel(kernel, region, inputs, host(), parts=(1,))["conv"]
    noise = np.mean((got - exact) ** 2)
    assert 10 * np.log10(np.mean(exact**2) / noise) > 115


def test_residual_may_be_overwritten() -> None:
    region = conv_region((1, 8, 10, 10), 16, (3, 3), pads=(1, 1, 1, 1), relu=True, residual=True)
    kernel = WINOGRAD.build(region, host(), _pick(region, 4))
    assert kernel.inplace == (("other", "positive"),)
    inputs = random_inputs(region)
    apart = run_kernel(kernel, region, inputs, host(), parts=(1,))
    pair = ("other", "positive")
    shared = run_kernel(kernel, region, inputs, host(), parts=(1,), inplace=pair)
    np.testing.assert_array_equal(apart["positive"], shared["positive"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (5, 5)}, "3x3"),
        ({"strides": (2, 2)}, "stride"),
        ({"group": 2}, "grouped"),
        ({"cout": 4}, "fewer than 8"),
    ],
)
def test_refusals(change: dict[str, object], reason: str) -> None:
    base: dict[str, object] = {"x_shape": (1, 16, 16, 16), "cout": 16, "kernel": (3, 3)}
    region = conv_region(**(base | change))  # type: ignore[arg-type]
    assert reason in str(WINOGRAD.refuse(region, host()))
