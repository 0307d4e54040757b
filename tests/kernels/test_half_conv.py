"""Convolutions in float16 under QEMU, and with float16 weights natively, over generated shapes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import check_conv, conv_region, random_inputs
from half_cases import FULLFP16, check_half, halved
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import host
from sparse_cases import block_mask, with_zeros

from effc.devices.catalog import get_target
from effc.kernels.conv import DirectConv
from effc.kernels.depthwise import DepthwiseConv
from effc.kernels.region import Region
from effc.kernels.sparse_conv import SparseConv
from effc.kernels.template import Template
from effc.kernels.winograd import Winograd

DIRECT, SPARSE, DEPTHWISE = DirectConv(), SparseConv(), DepthwiseConv()

GEOMETRIES = [
    ((1, 3, 17, 19), 16, (3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((2, 20, 9, 7), 12, (1, 1), {}),
    ((1, 70, 14, 14), 24, (1, 1), {"residual": True, "relu": True}),
    ((1, 24, 7, 7), 33, (3, 3), {"pads": (1, 1, 1, 1), "relu": True}),
    ((1, 16, 8, 9), 10, (3, 3), {"group": 2, "dilations": (2, 2), "bias": False}),
    ((1, 130, 1, 1), 40, (1, 1), {}),
    ((1, 4, 33), 8, (5,), {"strides": (2,)}),
]
DEPTHWISES = [
    ((1, 12, 15, 17), 12, (3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 5, 14, 14), 10, (3, 3), {"pads": (1, 1, 0, 1), "strides": (2, 2), "relu": True}),
    ((2, 3, 40), 3, (5,), {"bias": False}),
]


def half_inputs(region: Region) -> dict[str, np.ndarray]:
    return {k: v.astype(np.float16) for k, v in random_inputs(region).items()}


def spread(template: Template, region: Region, count: int) -> list[dict[str, int | str | bool]]:
    """Some configurations from the best to the worst on offer."""
    offered = [dict(config) for config, _ in template.candidates(region, FULLFP16)]
    return offered[:: max(len(offered) // count, 1)][:count]


def test_direct() -> None:
    cases = []
    for number, (x_shape, cout, kernel, attrs) in enumerate(GEOMETRIES):
        terms = (8, 64, 4096)[number % 3]
        region = halved(conv_region(x_shape, cout, kernel, **attrs), terms=terms)
        assert DIRECT.refuse(region, FULLFP16) is None
        both = {str(c["along"]): c for c in reversed(spread(DIRECT, region, 24))}
        cases += [(DIRECT, region, config) for config in both.values()]
    check_half(cases, [half_inputs(region) for _, region, _ in cases])


def test_sparse() -> None:
    cases = []
    for block, terms in (((1, 1), 4096), ((8, 4), 16)):
        for x_shape, cout, kernel, attrs in GEOMETRIES[1:4]:
            plain = conv_region(x_shape, cout, kernel, **attrs)
            weight = plain.ops[0].inputs[1]
            assert weight is not None
            mask = block_mask(weight.shape, 0.3, block)
            region = halved(with_zeros(plain, mask), terms=terms)
            assert SPARSE.refuse(region, FULLFP16) is None
            cases += [(SPARSE, region, config) for config in spread(SPARSE, region, 2)]
    check_half(cases, [half_inputs(region) for _, region, _ in cases])


def test_depthwise() -> None:
    cases = []
    for x_shape, cout, kernel, attrs in DEPTHWISES:
        region = halved(conv_region(x_shape, cout, kernel, group=x_shape[1], **attrs))
        assert DEPTHWISE.refuse(region, FULLFP16) is None
        cases += [(DEPTHWISE, region, config) for config in spread(DEPTHWISE, region, 4)]
    check_half(cases, [half_inputs(region) for _, region, _ in cases])


@settings(deadline=None, max_examples=2, derandomize=True)
@given(data=st.data())
def test_generated_shapes(data: st.DataObject) -> None:
    cases = []
    for seed in range(4):
        size, channels = data.draw(st.integers(3, 20)), data.draw(st.integers(1, 40))
        kernel = data.draw(st.sampled_from((1, 2, 3)))
        stride = data.draw(st.sampled_from((1, 2)))
        region = conv_region(
            (1, channels, size, size + data.draw(st.integers(0, 5))),
            data.draw(st.integers(1, 40)),
            (kernel, kernel),
            strides=(stride, stride),
            pads=(kernel // 2,) * 4,
            relu=data.draw(st.booleans()),
            seed=seed,
        )
        region = halved(region, terms=data.draw(st.sampled_from((8, 32, 128))))
        config, _ = DIRECT.candidates(region, FULLFP16)[0]
        cases.append((DIRECT, region, config))
    check_half(cases, [half_inputs(region) for _, region, _ in cases])


@pytest.mark.parametrize(
    "features", [("+avx2", "+fma", "+f16c"), ("+avx2", "+fma")], ids=["f16c", "no-f16c"]
)
@pytest.mark.parametrize("kind", ["direct", "sparse", "depthwise"])
def test_weights_only(kind: str, features: tuple[str, ...]) -> None:
    target = host()
    if target.arch == "x86_64":
        target = replace(target, features=features)
    template = {"direct": DIRECT, "sparse": SPARSE, "depthwise": DEPTHWISE}[kind]
    for x_shape, cout, kernel, attrs in DEPTHWISES if kind == "depthwise" else GEOMETRIES[:4]:
        group = {"group": x_shape[1]} if kind == "depthwise" else {}
        plain = conv_region(x_shape, cout, kernel, **attrs, **group)
        if kind == "sparse":
            weight = plain.ops[0].inputs[1]
            assert weight is not None
            plain = with_zeros(plain, block_mask(weight.shape, 0.3, (8, 4)))
        region = halved(plain, weights_only=True)
        config, _ = template.candidates(region, target)[0]
        assert template.build(region, target, config).weights["w"].dtype == np.float16
        check_conv(template, region, target, config)


def test_who_takes_half_precision() -> None:
    region = halved(conv_region((1, 8, 8, 8), 8, (3, 3), pads=(1, 1, 1, 1)))
    android = get_target("android")
    assert not android.half_arithmetic
    assert FULLFP16.half_arithmetic
    assert "float16" in str(DIRECT.refuse(region, android))
    assert DIRECT.refuse(region, FULLFP16) is None
    assert Winograd().refuse(region, FULLFP16) is not None
