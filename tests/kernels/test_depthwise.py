"""Depthwise convolution against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, check, host, make_region

from effc.kernels.depthwise import DepthwiseConv

EPS = float(np.finfo(np.float32).eps)


def conv(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    multiplier: int = 1,
    *,
    bias: bool = True,
    best: int = 1,
    bits: int = 256,
    tail: tuple[Node, ...] = (),
    more: dict[str, np.ndarray] | None = None,
    **attrs: Any,
) -> None:
    """Check the best predicted configurations; the bound is that of a dot product."""
    rng = np.random.default_rng(0)
    channels = shape[1]
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal((channels * multiplier, 1, *kernel)).astype(np.float32)
    constants = {"w": w}
    if bias:
        constants["b"] = rng.standard_normal(channels * multiplier).astype(np.float32)
    node = Node("Conv", ["x", *constants], ("c",) if tail else ("y",), {"group": channels, **attrs})
    inputs = {"x": x, **(more or {})}
    template, target = DepthwiseConv(), host(bits)
    region, _ = make_region([node, *tail], inputs, constants, ("y",), anchored=True)
    configs = [c for c, _ in template.candidates(region, target)][:best]
    for found, expected in check(
        template, [node, *tail], inputs, constants, target=target, configs=configs
    ):
        taps = int(np.prod(kernel)) + 2
        bound = 2 * taps * EPS * taps * np.abs(x).max() * np.abs(w).max()
        np.testing.assert_allclose(found["y"], expected["y"], rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("shape", "kernel", "attrs"),
    [
        ((1, 3, 14, 14), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((2, 2, 7, 7), (3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ((1, 2, 33, 35), (3, 3), {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
        ((1, 2, 12, 30), (5, 5), {"pads": [2, 2, 2, 2], "strides": [3, 3], "dilations": [2, 2]}),
        ((1, 2, 11, 40), (7, 7), {"auto_pad": "SAME_UPPER"}),
        ((1, 2, 11, 9), (4, 2), {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
        ((1, 2, 9, 30), (1, 1), {"strides": [2, 2]}),
        ((1, 2, 1, 1), (3, 3), {"pads": [1, 1, 1, 1]}),
        ((1, 2, 3, 4), (3, 3), {"pads": [4, 5, 4, 5]}),
        ((2, 3, 50), (3,), {"pads": [1, 1], "strides": [2]}),
    ],
)
def test_geometry(shape: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]) -> None:
    conv(shape, kernel, **attrs)


@pytest.mark.parametrize("bits", [0, 128])
def test_other_vector_widths(bits: int) -> None:
    conv((1, 2, 13, 19), (3, 3), bits=bits, pads=[1, 1, 1, 1], strides=[2, 2])


def test_multiplier_without_bias() -> None:
    conv((2, 2, 9, 9), (3, 3), 3, bias=False, pads=[1, 1, 1, 1])


def test_every_configuration() -> None:
    conv((1, 2, 28, 28), (3, 3), best=99, pads=[1, 1, 1, 1])


def test_epilogue_with_residual() -> None:
    rng = np.random.default_rng(1)
    tail = (Node("Relu", ["c"], ("r",)), Node("Add", ["r", "z"], ("y",)))
    z = rng.standard_normal((2, 3, 9, 11)).astype(np.float32)
    conv((2, 3, 9, 11), (3, 3), tail=tail, more={"z": z}, pads=[1, 1, 1, 1])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
)
def test_any_shape(h: int, w: int, kh: int, kw: int, stride: int, dilation: int) -> None:
    pads = [(kh - 1) * dilation, kw // 2, kh // 2, (kw - 1) * dilation]
    conv((1, 2, h, w), (kh, kw), pads=pads, strides=[stride] * 2, dilations=[dilation] * 2)


@pytest.mark.parametrize(
    ("group", "weight", "why"),
    [
        (1, (4, 4, 3, 3), "not depthwise"),
        (2, (4, 2, 3, 3), "not depthwise"),
        (4, (4, 1, 17, 3), "too large"),
    ],
)
def test_refuses(group: int, weight: tuple[int, ...], why: str) -> None:
    x, w = np.ones((1, 4, 20, 20), np.float32), np.ones(weight, np.float32)
    node = Node("Conv", ["x", "w"], attrs={"group": group})
    region, _ = make_region([node], {"x": x}, {"w": w}, ("y",), anchored=True)
    assert why in (DepthwiseConv().refuse(region, host()) or "")
