"""Transposed convolution against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, check, host, make_region

from effc.kernels.conv_transpose import ConvTranspose

EPS = float(np.finfo(np.float32).eps)


def transpose(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    bias: bool = True,
    best: int = 1,
    bits: int = 256,
    tail: tuple[Node, ...] = (),
    **attrs: Any,
) -> None:
    """Check the best predicted configurations; the bound is that of a dot product."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    constants = {"w": rng.standard_normal(weight).astype(np.float32)}
    if bias:
        outputs = weight[1] * attrs.get("group", 1)
        constants["b"] = rng.standard_normal(outputs).astype(np.float32)
    node = Node("ConvTranspose", ["x", *constants], ("c",) if tail else ("y",), attrs)
    template, target = ConvTranspose(), host(bits)
    region, _ = make_region([node, *tail], {"x": x}, constants, ("y",), anchored=True)
    configs = [c for c, _ in template.candidates(region, target)][:best]
    for found, expected in check(
        template, [node, *tail], {"x": x}, constants, target=target, configs=configs
    ):
        length = int(np.prod(weight[2:])) * shape[1] + 2
        bound = 2 * length * EPS * np.sqrt(length) * np.abs(x).max() * np.abs(constants["w"]).max()
        np.testing.assert_allclose(found["y"], expected["y"], rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("shape", "weight", "attrs"),
    [
        ((1, 4, 9, 10), (4, 6, 4, 4), {"strides": [2, 2], "pads": [1] * 4}),
        ((2, 3, 9, 10), (3, 4, 2, 2), {"strides": [2, 2]}),
        (
            (1, 4, 9, 10),
            (4, 5, 3, 3),
            {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
        ),
        (
            (1, 4, 9, 20),
            (4, 1, 9, 9),
            {"strides": [3, 3], "pads": [4] * 4, "output_padding": [2, 2]},
        ),
        (
            (1, 4, 9, 20),
            (4, 3, 3, 2),
            {"strides": [1, 3], "pads": [0, 1, 2, 0], "dilations": [2, 3], "group": 2},
        ),
        ((1, 4, 5, 6), (4, 2, 2, 2), {"strides": [3, 3]}),
        ((1, 4, 9), (4, 3, 3), {"strides": [2]}),
        ((1, 4, 3, 3), (4, 2, 3, 3), {"strides": [3, 2], "auto_pad": "SAME_LOWER"}),
        (
            (1, 4, 3, 3),
            (4, 2, 3, 3),
            {"strides": [3, 2], "output_shape": [10, 8], "auto_pad": "SAME_UPPER"},
        ),
        ((1, 4, 3, 3), (4, 1, 3, 3), {"group": 4}),
    ],
)
def test_geometry(shape: tuple[int, ...], weight: tuple[int, ...], attrs: dict[str, Any]) -> None:
    transpose(shape, weight, **attrs)


@pytest.mark.parametrize("bits", [0, 128])
def test_other_vector_widths(bits: int) -> None:
    transpose((1, 3, 7, 13), (3, 4, 4, 4), bits=bits, strides=[2, 2], pads=[1] * 4)


def test_every_configuration() -> None:
    transpose((1, 4, 6, 20), (4, 6, 2, 2), best=99, strides=[2, 2])


def test_epilogue_without_bias() -> None:
    tail = (Node("Relu", ["c"], ("y",)),)
    transpose((1, 4, 6, 7), (4, 6, 3, 3), bias=False, tail=tail, strides=[2, 2])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 5),
)
def test_any_shape(h: int, w: int, kernel: int, stride: int, dilation: int, cout: int) -> None:
    attrs = {"strides": [stride] * 2, "dilations": [dilation] * 2}
    transpose((1, 2, h, w), (2, cout, kernel, kernel), **attrs)


def test_refuses_runtime_weights() -> None:
    inputs = {"x": np.ones((1, 2, 4, 4), np.float32), "w": np.ones((2, 2, 3, 3), np.float32)}
    region, _ = make_region([Node("ConvTranspose", ["x", "w"])], inputs, {}, ("y",), anchored=True)
    assert "constant" in (ConvTranspose().refuse(region, host()) or "")
