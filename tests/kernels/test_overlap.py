"""Results over inputs: kernels at their stated distances give the bits that they give apart.

``integer_cases.check`` runs every stated distance of every kernel; here the geometries are those
that matter for distances, on targets with threads and on serial ones, and a distance that is one
step too large must give other bits: the stated ones are not too careful.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, region_of
from single_op import Shared, host, run_kernel

from effc.devices.target import Target
from effc.kernels.conv import DirectConv
from effc.kernels.depthwise_integer import DepthwiseInteger
from effc.kernels.overlap import ascending, plane_by_plane
from effc.kernels.pool_quads import QuadPool
from effc.kernels.window import Axis
from effc.passes.integer.reference import to_quads

SERIAL = replace(host(), os="none")
REQUANTIZE = {"x_zero": 0, "left": 0, "right": 1, "zero": 3, "low": -128, "high": 127, "to": 3}


def _conv(
    channels: int, filters: int, size: tuple[int, int], kernel: int, stride: int, depthwise: bool
) -> tuple[list[Node], dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(channels * size[0] + filters)
    dtype = "uint8" if host().arch == "x86_64" else "int8"
    info = np.iinfo(dtype)
    x = to_quads(rng.integers(info.min, info.max + 1, (1, channels, *size)).astype(dtype))
    depth = 1 if depthwise else channels
    w = rng.integers(-127, 128, (filters, depth, kernel, kernel)).astype(np.int8)
    pad = kernel // 2
    attrs = {"pads": (pad,) * 4, "strides": (stride,) * 2, "group": filters if depthwise else 1}
    to = 2 if dtype == "uint8" else 3
    limits = {"low": info.min, "high": info.max, "zero": info.min + 100, "to": to}
    nodes = [
        Node("ConvInteger", ["x", "w"], "c", {**attrs, "x_zero": info.min + 9}),
        Node("Requantize", ["c", "m"], attrs=REQUANTIZE | limits),
    ]
    return nodes, {"x": x}, {"w": w, "m": np.array(2**24, np.int32)}


@pytest.mark.parametrize("target", [host(), SERIAL], ids=["threads", "serial"])
@pytest.mark.parametrize(("channels", "filters"), [(8, 16), (16, 8), (12, 12)])
def test_pointwise_convolution_over_its_input(target: Target, channels: int, filters: int) -> None:
    case = _conv(channels, filters, (9, 11), 1, 1, depthwise=False)
    region, _ = region_of(*case, anchored=True)
    template = DirectConv()
    packed = [
        config
        for config, _ in template.candidates(region, target)
        if template.build(region, target, config).overlaps
    ]
    assert packed
    check(template, *case, target=target, configs=packed[:1])
    found = template.build(region, target, packed[0]).overlaps[0].shifts
    plane = 9 * 11 * 4
    assert (0, 0) in found
    assert ((channels - 1) // 4 * plane,) * 2 in found


@pytest.mark.parametrize("target", [host(), SERIAL], ids=["threads", "serial"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(13, 7), (96, 61)])
def test_depthwise_convolution_over_its_input(
    target: Target, stride: int, size: tuple[int, int]
) -> None:
    case = _conv(12, 12, size, 3, stride, depthwise=True)
    region, _ = region_of(*case, anchored=True)
    template = DepthwiseInteger()
    configs = [config for config, _ in template.candidates(region, target)][:1]
    check(template, *case, target=target, configs=configs)
    kernel = template.build(region, target, configs[0])
    assert bool(kernel.overlaps) == (target.serial or (stride == 1 and size[0] < 50))


def test_one_row_further_overwrites_what_is_still_read() -> None:
    case = _conv(8, 8, (96, 64), 3, 1, depthwise=True)
    region, expected = region_of(*case, anchored=True)
    kernel = DepthwiseInteger().build(region, SERIAL, {"blocks": 2, "rows": 2})
    ((_, highest),) = kernel.overlaps[0].shifts
    for shift, alike in ((highest, True), (highest + 64 * 4, False)):
        got = run_kernel(kernel, region, case[1], SERIAL, inplace=Shared("x", "y", shift))
        assert np.array_equal(got["y"], expected["y"]) is alike


@pytest.mark.parametrize("op", ["MaxPool8", "SumPool"])
def test_pool_over_its_input(op: str) -> None:
    x = np.random.default_rng(3).integers(0, 256, (1, 8, 10, 12)).astype(np.uint8)
    attrs = {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 0)}
    nodes = [Node(op, ["x"], attrs=attrs | ({"x_zero": 7} if op == "SumPool" else {}))]
    check(QuadPool(), nodes, {"x": to_quads(x)}, target=SERIAL)
    region, _ = region_of(nodes, {"x": to_quads(x)}, {}, anchored=True)
    assert QuadPool().build(region, SERIAL, {}).overlaps


_AXES = st.builds(
    Axis,
    size=st.integers(1, 6),
    out=st.integers(1, 5),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    before=st.integers(0, 2),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(_AXES, min_size=1, max_size=2), st.integers(1, 3), st.integers(0, 3))
def test_largest_distance_by_trying_all(axes: list[Axis], planes: int, rows: int) -> None:
    shifts = plane_by_plane(axes, planes, (1, 1), rows)
    source = planes * int(np.prod([a.size for a in axes]))
    result = planes * int(np.prod([a.out for a in axes]))
    allowed = [s for s in range(1 - result, source) if _safe(axes, planes, rows, s)]
    found = [
        s for low, high in shifts for s in range(max(low, 1 - result), min(high, source - 1) + 1)
    ]
    assert set(found) <= set(allowed)
    if all(
        (a.out - 1) * a.stride - a.before < a.size for a in axes
    ):  # every window reads something
        assert found == allowed


def _safe(axes: list[Axis], planes: int, rows: int, shift: int) -> bool:
    """Play the steps: whether a byte is overwritten before the step that reads from there on."""
    sizes, outs = [a.size for a in axes], [a.out for a in axes]
    steps: list[tuple[int, set[int]]] = []  # first byte read, bytes written
    for plane in range(planes):
        places = list(np.ndindex(*outs))
        groups = [[p] for p in places]
        if rows:
            starts = range(0, outs[0], rows)
            groups = [[p for p in places if s <= p[0] < s + rows] for s in starts]
        for group in groups:
            first = [
                max(group[0][i] * a.stride - a.before, 0) if i == 0 or not rows else 0
                for i, a in enumerate(axes)
            ]
            flat = 0
            for size, index in zip(sizes, first, strict=True):
                flat = flat * size + index
            begin = plane * int(np.prod(sizes)) + flat
            at = {plane * int(np.prod(outs)) + int(np.ravel_multi_index(p, outs)) for p in group}
            steps.append((begin, at))
    end = planes * int(np.prod(sizes))
    for number, (_, written) in enumerate(steps):
        unread = min((first for first, _ in steps[number + 1 :]), default=end)
        if any(unread <= byte + shift < end for byte in written):
            return False
    return True


def test_a_single_step_may_write_anywhere() -> None:
    assert ascending(np.array([0]), np.array([8]), (16, 8)) == ((-8, 16),)
