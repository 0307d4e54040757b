"""Interpolation tables of ONNX Resize: which input elements, with which weights.

Every mode and coordinate transformation becomes, per axis, ``taps`` input positions
and weights for each output position. Coordinates are computed in float32, as ONNX
Runtime does, because nearest modes depend on their rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from effc.kernels.region import Op, Value

__all__ = ["AxisTable", "Phases", "axis_tables", "phases", "table_refusal"]


@dataclass(frozen=True)
class AxisTable:
    """Interpolation along one axis: ``out[k] = sum_t weight[k, t] * in[index[k, t]]``.

    Attributes:
        axis: Axis of the tensor.
        index: int32 ``[out, taps]``, all valid.
        weight: float32 ``[out, taps]``.
    """

    axis: int
    index: np.ndarray
    weight: np.ndarray

    @property
    def taps(self) -> int:
        """Input elements per output element."""
        return int(self.index.shape[1])

    def repeats(self, size: int) -> int:
        """``f`` if output ``k`` is just input ``k // f`` of ``size``, else 0."""
        out = len(self.index)
        if self.taps != 1 or out % size:
            return 0
        factor = out // size
        return factor if np.array_equal(self.index[:, 0], np.arange(out) // factor) else 0


@dataclass(frozen=True)
class Phases:
    """Interpolation by a whole factor: output ``factor * i + p`` weighs ``in[i + shift[p][t]]``.

    Attributes:
        factor: Outputs per input.
        shifts: Per phase and tap, the distance to the input element.
        first, last: Inputs ``first <= i < last`` for which this holds; the rest are borders.
        middle: An input inside, whose weights hold for all (up to float32 rounding).
    """

    factor: int
    shifts: tuple[tuple[int, ...], ...]
    first: int
    last: int
    middle: int

    def __str__(self) -> str:
        """All that code generated for the phases depends on."""
        shifts = "/".join(",".join(map(str, shift)) for shift in self.shifts)
        return f"{self.factor}:{shifts}:{self.first}-{self.last}"


def phases(table: AxisTable, size: int) -> Phases | None:
    """The phases of an axis of ``size`` elements, if it grows by a whole factor from 2 to 8."""
    factor, rest = divmod(len(table.index), size)
    if rest or not 2 <= factor <= 8 or size < 8:
        return None
    shifts = table.index.reshape(size, factor, -1) - np.arange(size)[:, None, None]
    weights = table.weight.reshape(size, factor, -1)
    middle = size // 2
    same = (shifts == shifts[middle]).all(axis=(1, 2))
    same &= (np.abs(weights - weights[middle]) < 1e-5).all(axis=(1, 2))
    first = last = middle
    while first > 0 and same[first - 1]:
        first -= 1
    while last < size and same[last]:
        last += 1
    if last - first < size - 8:
        return None
    found = tuple(tuple(int(s) for s in phase) for phase in shifts[middle])
    return Phases(factor, found, first, last, middle)


def _const(op: Op, index: int) -> Value | None:
    value = op.inputs[index] if len(op.inputs) > index else None
    return None if value is None or not value.type.size else value


def _text(op: Op, name: str, default: str) -> str:
    value = op.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def table_refusal(op: Op) -> str | None:
    """Why no tables can be made, or ``None``."""
    scales, sizes = _const(op, 2), _const(op, 3)
    given = scales if scales is not None else sizes
    if given is None or given.const is None:
        return "scales and sizes are not constant"
    transformation = _text(op, "coordinate_transformation_mode", "half_pixel")
    if transformation not in _TRANSFORMATIONS:
        return f"coordinate transformation {transformation}"
    mode = _text(op, "mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        return f"mode {mode}"
    if op.attrs.get("antialias", 0) and mode == "nearest":
        return "antialias with nearest"
    return None


def axis_tables(op: Op) -> list[AxisTable]:
    """Tables of all axes whose size or position changes."""
    data = op.inputs[0]
    assert data is not None
    tables = []
    for axis, (size, out) in enumerate(zip(data.shape, op.outputs[0].shape, strict=True)):
        scale = _scale(op, axis, size, out)
        if scale == 1.0 and size == out:
            continue
        tables.append(AxisTable(axis, *_axis_table(op, size, out, scale)))
    return tables


def _scale(op: Op, axis: int, size: int, out: int) -> float:
    data, scales = op.inputs[0], _const(op, 2)
    assert data is not None
    axes = [int(a) % len(data.shape) for a in op.attrs.get("axes", range(len(data.shape)))]
    if axis not in axes:
        return 1.0
    position = axes.index(axis)
    if scales is not None:
        assert scales.const is not None
        return float(scales.const.reshape(-1)[position])
    policy = _text(op, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return float(np.float32(out) / np.float32(size))
    sizes = _const(op, 3)
    assert sizes is not None
    assert sizes.const is not None
    ratios = [
        float(np.float32(s) / np.float32(data.shape[a]))
        for s, a in zip(sizes.const.reshape(-1), axes, strict=True)
    ]
    return min(ratios) if policy == "not_larger" else max(ratios)


def _half_pixel(k: Any, scale: Any, size: int, out: int) -> Any:
    return (k + np.float32(0.5)) / scale - np.float32(0.5)


def _pytorch_half_pixel(k: Any, scale: Any, size: int, out: int) -> Any:
    return _half_pixel(k, scale, size, out) if out > 1 else np.zeros_like(k)


def _align_corners(k: Any, scale: Any, size: int, out: int) -> Any:
    # ONNX divides by the exact scaled length here, which need not be the whole number `out`.
    length = np.float32(scale) * np.float32(size)
    return k * np.float32(size - 1) / (length - np.float32(1)) if out > 1 else np.zeros_like(k)


def _asymmetric(k: Any, scale: Any, size: int, out: int) -> Any:
    return k / scale


def _half_pixel_symmetric(k: Any, scale: Any, size: int, out: int) -> Any:
    adjustment = np.float32(out) / (scale * np.float32(size))
    offset = np.float32(size / 2) * (np.float32(1) - adjustment)
    return offset + _half_pixel(k, scale, size, out)


_TRANSFORMATIONS = {
    "align_corners": _align_corners,
    "asymmetric": _asymmetric,
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _half_pixel_symmetric,
    "pytorch_half_pixel": _pytorch_half_pixel,
}


def _axis_table(op: Op, size: int, out: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    transform = _TRANSFORMATIONS[_text(op, "coordinate_transformation_mode", "half_pixel")]
    positions = transform(np.arange(out, dtype=np.float32), np.float32(scale), size, out)
    mode = _text(op, "mode", "nearest")
    if mode == "nearest":
        index = _nearest(positions, _text(op, "nearest_mode", "round_prefer_floor"))
        clipped = np.clip(index, 0, size - 1).astype(np.int32)[:, None]
        return clipped, np.ones_like(clipped, np.float32)
    stretch = max(1.0, 1.0 / scale) if op.attrs.get("antialias", 0) else 1.0
    if mode == "linear":
        if stretch == 1.0:
            positions = np.clip(positions, 0, size - 1)
        radius, kernel = 1.0, lambda t: np.maximum(1 - np.abs(t), 0)
    else:
        a = float(op.attrs.get("cubic_coeff_a", -0.75))
        radius, kernel = 2.0, lambda t: _cubic(np.abs(t), a)
    exclude = bool(op.attrs.get("exclude_outside", 0))
    return _filter(positions.astype(np.float64), size, radius * stretch, stretch, kernel, exclude)


def _nearest(positions: np.ndarray, mode: str) -> np.ndarray:
    if mode == "floor":
        return np.asarray(np.floor(positions))
    if mode == "ceil":
        return np.asarray(np.ceil(positions))
    if mode == "round_prefer_ceil":
        return np.asarray(np.floor(positions + np.float32(0.5)))
    return np.asarray(np.ceil(positions - np.float32(0.5)))


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel for ``t >= 0``."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _filter(
    positions: np.ndarray, size: int, radius: float, stretch: float, kernel: Any, exclude: bool
) -> tuple[np.ndarray, np.ndarray]:
    taps = 2 * int(np.ceil(radius))
    first = np.floor(positions).astype(np.int64) - taps // 2 + 1
    index = first[:, None] + np.arange(taps)
    weight = kernel((index - positions[:, None]) / stretch)
    if exclude:
        weight = np.where((index >= 0) & (index < size), weight, 0.0)
    weight = weight / weight.sum(axis=1, keepdims=True)
    return np.clip(index, 0, size - 1).astype(np.int32), weight.astype(np.float32)
