"""DFT and STFT as matrix products with constant matrices.

A transform of ``n`` points is a product with cosines and sines. Real and
imaginary parts are interleaved in ONNX, so one product of ``[..., n * c]`` with
``[n * c, bins * 2]`` (``c`` = 1 for real, 2 for complex input) does it. Angles are
reduced modulo the length and computed in float64. The cost grows with the square
of the length: right for the frames of audio models, wrong for long signals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from effc.passes.graph import Writer, attribute, const, dtype_of, shape_of

__all__ = ["dft", "stft"]

Array = np.ndarray[Any, Any]
Result = list[ir.Value] | str

MATRIX_LIMIT = 64 << 20
"""Bytes of the largest matrix."""


def _matrix(length: int, bins: int, parts: int, inverse: bool, dtype: Any) -> Array:
    """The matrix ``[length * parts, bins * 2]``."""
    turns = np.outer(np.arange(length), np.arange(bins)) % length
    angle = 2 * np.pi * turns / length
    cos, sin = np.cos(angle), np.sin(angle) * (1 if inverse else -1)
    matrix = np.empty((length, parts, bins, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = cos, sin
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -sin, cos
    if inverse:
        matrix /= length
    return matrix.reshape(length * parts, bins * 2).astype(dtype)


def _inverse_real(length: int, dtype: Any) -> Array:
    """The matrix ``[bins * 2, length]`` from one-sided spectra to real signals."""
    bins = length // 2 + 1
    angle = 2 * np.pi * (np.outer(np.arange(bins), np.arange(length)) % length) / length
    twice = np.full((bins, 1), 2.0)  # each bin stands for its mirror image, too
    twice[0] = 1
    if length % 2 == 0:
        twice[-1] = 1
    matrix = np.stack([twice * np.cos(angle), -twice * np.sin(angle)], axis=1) / length
    return matrix.reshape(bins * 2, length).astype(dtype)


def _scalar(value: ir.Value | None) -> int | None:
    array = const(value)
    return None if array is None else int(array.reshape(-1)[0])


def _too_large(length: int, bins: int) -> bool:
    return length * bins * 16 > MATRIX_LIMIT


def dft(writer: Writer, node: ir.Node) -> Result:
    """DFT, its inverse, and the one-sided DFT of real input, along any axis."""
    x, length_value, axis_value = [*node.inputs, None, None][:3]
    if x is None:
        return "it has no input"
    shape = shape_of(x)
    rank = len(shape)
    axis = -2 if axis_value is None else _scalar(axis_value)
    if axis is None:
        return "axis must be constant"
    axis %= rank
    inverse, onesided = (bool(attribute(node, name, 0)) for name in ("inverse", "onesided"))
    real = inverse and onesided
    default = 2 * (shape[axis] - 1) if real else shape[axis]
    length = default if length_value is None else _scalar(length_value)
    if length is None:
        return "dft_length must be constant"
    bins = length if real or not onesided else length // 2 + 1
    if _too_large(length, bins):
        return f"{length} points are too many for a matrix product"
    points = length // 2 + 1 if real else length
    x = _resized(writer, x, axis, points)
    order = [d for d in range(rank) if d not in (axis, rank - 1)] + [axis, rank - 1]
    moved = writer.op("Transpose", x, perm=order) if order != list(range(rank)) else x
    lead = [shape[d] for d in order[:-2]]
    parts = shape[-1]
    flat = writer.op("Reshape", moved, np.array([*lead, points * parts], np.int64))
    dtype = dtype_of(x).numpy()
    matrix = _inverse_real(length, dtype) if real else _matrix(length, bins, parts, inverse, dtype)
    product = writer.op("MatMul", flat, matrix)
    y = writer.op("Reshape", product, np.array([*lead, bins, 1 if real else 2], np.int64))
    if order != list(range(rank)):
        y = writer.op("Transpose", y, perm=[order.index(d) for d in range(rank)])
    return [y]


def _resized(writer: Writer, x: ir.Value, axis: int, length: int) -> ir.Value:
    """Cut or zero-pad ``axis`` at its end."""
    size = shape_of(x)[axis]
    if size > length:
        bounds = [np.array([v], np.int64) for v in (0, length, axis)]
        return writer.op("Slice", x, *bounds)
    if size < length:
        pads = np.zeros(2 * len(shape_of(x)), np.int64)
        pads[len(shape_of(x)) + axis] = length - size
        return writer.op("Pad", x, pads)
    return x


def stft(writer: Writer, node: ir.Node) -> Result:
    """STFT with a constant step: frames by Gather, windows folded into the matrix."""
    signal, step_value, window, length_value = [*node.inputs, None, None][:4]
    if signal is None:
        return "it has no input"
    step = _scalar(step_value)
    length = _scalar(length_value)
    if length is None and window is not None:
        length = shape_of(window)[0]
    if step is None or length is None:
        return "frame_step and frame_length must be constant"
    shape = shape_of(signal)
    parts = shape[2] if len(shape) == 3 else 1
    bins = length // 2 + 1 if attribute(node, "onesided", 1) else length
    if _too_large(length, bins):
        return f"frames of {length} points are too long for a matrix product"
    frames = (shape[1] - length) // step + 1
    dtype = dtype_of(signal).numpy()
    matrix = _matrix(length, bins, parts, False, dtype)
    where = np.arange(frames)[:, None] * step + np.arange(length)
    x = writer.op("Reshape", signal, np.array([shape[0], shape[1], parts], np.int64))
    x = writer.op("Gather", x, where.astype(np.int64), axis=1)
    known = const(window)
    if known is not None:
        matrix *= np.repeat(known, parts)[:, None].astype(dtype)
    elif window is not None:
        x = writer.op("Mul", x, writer.op("Unsqueeze", window, np.array([1], np.int64)))
    flat = writer.op("Reshape", x, np.array([shape[0], frames, length * parts], np.int64))
    y = writer.op("MatMul", flat, matrix)
    return [writer.op("Reshape", y, np.array([shape[0], frames, bins, 2], np.int64))]
