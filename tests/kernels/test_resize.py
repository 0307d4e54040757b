"""Resize against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from single_op import Node, assert_close, check, host, make_region

from effc.kernels.resize import ResizeTemplate

_TEMPLATE = ResizeTemplate()
_MODES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
# ONNX Runtime computes coordinates in float32: weights are off by the rounding of positions
# up to 64, times neighbours that differ by up to 10.
_EPS = 2.0**-23 * 64


def _x(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_normal(shape) * 3).astype(dtype)


def _scaled(x: np.ndarray, scales: tuple[float, ...], **attrs: Any) -> Any:
    node = Node("Resize", ["x", "", "s"], attrs=attrs)
    return check(_TEMPLATE, [node], {"x": x}, {"s": np.array(scales, np.float32)})


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("transformation", _MODES)
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.7, 0.6), (1, 1, 0.5, 3)])
def test_interpolation(mode: str, transformation: str, scales: tuple[float, ...]) -> None:
    if transformation == "align_corners":  # of lengths that are no whole numbers: see below
        scales = (1, 1, 9 / 7, 12 / 21)
    found = _scaled(_x(2, 3, 7, 21), scales, mode=mode,
                    coordinate_transformation_mode=transformation)  # fmt: skip
    assert_close(found, 10.0, _EPS)


def test_align_corners_follows_onnx_where_onnx_runtime_does_not() -> None:
    x = np.arange(1.0, 5.0, dtype=np.float32).reshape(1, 1, 1, 4)
    attrs = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    ((got, _),) = _scaled(x, (1, 1, 1, 0.6), **attrs)
    np.testing.assert_allclose(got["y"].reshape(-1), [1.0, 1 + 3 / 1.4], rtol=1e-6)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("transformation", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("sizes", [(1, 2, 8, 9), (1, 2, 10, 18), (1, 2, 3, 2)])
def test_nearest(rounding: str, transformation: str, sizes: tuple[int, ...]) -> None:
    attrs = {"nearest_mode": rounding, "coordinate_transformation_mode": transformation}
    node = Node("Resize", ["x", "", "", "s"], attrs={"mode": "nearest", **attrs})
    found = check(_TEMPLATE, [node], {"x": _x(1, 2, 5, 6)}, {"s": np.array(sizes, np.int64)})
    assert_close(found, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float16"])
@pytest.mark.parametrize("factors", [(2, 2), (3, 1), (1, 4)])
def test_repeat_by_whole_factors(dtype: str, factors: tuple[int, int]) -> None:
    x = np.abs(_x(1, 3, 5, 19)).astype(dtype)
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
             "nearest_mode": "floor"}  # fmt: skip
    assert_close(_scaled(x, (1, 1, *factors), **attrs), 0.0)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias(mode: str) -> None:
    assert_close(_scaled(_x(1, 2, 15, 26), (1, 1, 0.6, 0.4), mode=mode, antialias=1), 10.0, _EPS)


@pytest.mark.parametrize("shape", [(1, 2, 15), (1, 2, 4, 5, 6), (5, 9)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    scales = (1.0,) * min(2, len(shape) - 1) + (1.6,) * (len(shape) - min(2, len(shape) - 1))
    assert_close(_scaled(_x(*shape), scales, mode="linear"), 10.0, _EPS)


@pytest.mark.printed
def test_exclude_outside_and_other_coefficient() -> None:
    attrs = {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}
    assert_close(_scaled(_x(1, 2, 9, 10), (1, 1, 1.5, 0.8), **attrs), 10.0, _EPS)


def test_sizes_keep_the_aspect_ratio() -> None:
    attrs = {"mode": "linear", "keep_aspect_ratio_policy": "not_larger", "axes": [2, 3]}
    node = Node("Resize", ["x", "", "", "s"], attrs=attrs)
    found = check(_TEMPLATE, [node], {"x": _x(1, 2, 5, 6)}, {"s": np.array([8, 9], np.int64)})
    assert_close(found, 10.0, _EPS)


def test_refuses_integers_with_weights() -> None:
    x = np.abs(_x(1, 1, 4, 4)).astype(np.uint8)
    node = Node("Resize", ["x", "", "s"], attrs={"mode": "linear"})
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    region, _ = make_region([node], {"x": x}, scales, ["y"], anchored=True)
    assert _TEMPLATE.refuse(region, host()) == "linear interpolation of uint8"
