"""Winograd convolution: 3x3, stride 1, by ``F(2x2, 3x3)`` or ``F(4x4, 3x3)``.

Weights are transformed at compile time (in float64) and grow from 9 to 16 or 36 values per
pair of channels. Per strip of tile rows: transform the input (first down the columns, on
contiguous vectors, then along the rows, on vectors of every ``m``-th element), one matrix
product per transformed element with the shared register tile (vectors along output
channels, so no lane is lost on few tiles), transform back, transpose, epilogue.

Not exact: ``F(4, 3)`` loses about 15 dB against direct summation (123 dB per layer in
f32, see ``winograd_matrices``), ``F(2, 3)`` about 6 dB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.conv_cost import tile_cycles, tile_fits, tile_parts
from effc.kernels.conv_problem import conv_bias, conv_epilogue
from effc.kernels.conv_shape import ConvShape, conv_refusal
from effc.kernels.lanes import uses_lanes
from effc.kernels.region import Region
from effc.kernels.register_tile import Tile, split_widths
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.kernels.winograd_kernel import WinogradConfig, WinogradKernel
from effc.kernels.winograd_matrices import transform_weights

__all__ = ["Winograd"]

LIMIT = 12
_UNITS = 8


class Winograd(Template):
    """3x3 convolution with stride 1 by Winograd's minimal filtering."""

    name: ClassVar[str] = "winograd"

    def refuse(self, region: Region, target: Target) -> str | None:
        if reason := conv_refusal(region):
            return reason
        assert region.anchor is not None
        if region.anchor.domain:
            return "integers"
        if target.bare:
            return "its weights are larger than the model's, and flash is scarce"
        weight = region.anchor.inputs[1]
        if weight is None or weight.dtype != "float32":
            return "the weights are not float32"
        shape = ConvShape.of(region.anchor)
        if shape.kernel != (3, 3):
            return "the kernel is not 3x3"
        if set(shape.strides + shape.dilations) != {1}:
            return "stride or dilation is not 1"
        if shape.groups != 1:
            return "grouped"
        if shape.cin < 8 or shape.cout < 8:
            return "fewer than 8 channels: the transforms would outweigh the products"
        return conv_epilogue(region, shape).refusal

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        assert region.anchor is not None
        shape = ConvShape.of(region.anchor)
        costs = {knobs: _cost(shape, knobs, target) for knobs in _configurations(shape, target)}
        ranked = sorted(costs.items(), key=lambda item: (item[1], str(item[0])))
        return [(asdict(knobs), cost) for knobs, cost in ranked[:LIMIT]]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        anchor = region.anchor
        assert anchor is not None
        data, weight = anchor.inputs[0], anchor.inputs[1]
        assert data is not None
        assert weight is not None
        assert weight.const is not None
        shape = ConvShape.of(anchor)
        knobs = WinogradConfig.of(config)
        epilogue = conv_epilogue(region, shape)
        bias = conv_bias(region)
        kernel = WinogradKernel(shape, knobs, target, epilogue, bias is not None)

        weights = {"w": _pack(transform_weights(weight.const, knobs.m), knobs.channels)}
        if bias is not None:
            weights["bias"] = bias
        stages: list[Stage] = []
        workspaces: dict[str, int] = {}
        source = data.name
        if knobs.shared:
            source = "t:transformed"
            workspaces["transformed"] = kernel.workspace_elements * 4
            stages.append(
                Stage(
                    kernel.transform_function(),
                    (data.name, source, "scratch"),
                    kernel.transform_units,
                    kernel.transform_scratch_bytes,
                )
            )
        args = (source, *(f"w:{name}" for name in weights), *epilogue.args)
        args += (region.outputs[0].name, "scratch")
        stages.append(Stage(kernel.function(), args, kernel.units, kernel.scratch_bytes))
        inplace = tuple(pair for pair in epilogue.inplace if pair[0] != data.name)
        return Kernel(tuple(stages), weights | epilogue.weights, workspaces, inplace)


def _pack(transformed: np.ndarray, tile: int) -> np.ndarray:
    """``[k, cout, cin]`` to ``[k][ceil(cout/tile)][cin][tile]``, flat; the last tile narrower."""
    parts = [
        np.ascontiguousarray(matrix[start : start + tile].T).ravel()
        for matrix in transformed
        for start in range(0, matrix.shape[0], tile)
    ]
    return np.concatenate(parts)


def _configurations(shape: ConvShape, target: Target) -> Iterator[WinogradConfig]:
    unroll = 8 if target.arch == "aarch64" else 2
    for m in (4, 2):
        rows, columns = (-(-n // m) for n in shape.output)
        for strip in (d for d in range(1, rows + 1) if rows % d == 0):
            tiles = strip * columns
            if strip > 1 and tiles > 128:
                break
            for vectors, run in _register_tiles(tiles, shape.cout, target):
                channels = min(vectors * target.lanes, shape.cout)
                strips = shape.batch * rows // strip
                shared = strips < _UNITS
                wanted = -(-_UNITS // strips) if shared else 1
                splits = min(wanted, -(-shape.cout // channels))
                yield WinogradConfig(m, strip, target.lanes, channels, run, shared, splits, unroll)


def _register_tiles(tiles: int, cout: int, target: Target) -> Iterator[tuple[int, int]]:
    """(vectors of channels, Winograd tiles) of a register tile; per width the best few."""
    for vectors in range(1, 7):
        if (vectors - 1) * target.lanes >= cout:
            return
        widths = (target.lanes,) * vectors
        most = max((n for n in range(1, 29) if tile_fits(Tile(n, widths), target)), default=0)
        if not most:
            return
        # Equal parts waste no row of the register tile.
        parts = -(-tiles // most)
        yield vectors, -(-tiles // parts)
        if -(-tiles // parts) != min(most, tiles):
            yield vectors, min(most, tiles)


def _cost(shape: ConvShape, knobs: WinogradConfig, target: Target) -> float:
    m, size = knobs.m, knobs.m + 2
    rows, columns = (-(-n // m) for n in shape.output)
    tiles = knobs.strip * columns
    strips = shape.batch * rows // knobs.strip
    product = 0.0
    for count, times in tile_parts(tiles, knobs.columns):
        for channels, repeats in tile_parts(shape.cout, knobs.channels):
            widths = split_widths(channels, knobs.lanes)
            tile = Tile(count, widths)
            product += times * repeats * tile_cycles(tile, shape.cin, knobs.unroll, target)
    product *= size * size
    run = min(knobs.lanes, 1 << (columns - 1).bit_length())
    vectors = knobs.strip * -(-columns // run)
    arithmetic = 1.5 if uses_lanes(target) else 1.0
    forward = shape.cin * vectors * arithmetic * size * (6 * size + 14)
    outputs = tiles * -(-shape.cout // knobs.lanes)
    backward = outputs * arithmetic * (size * (size + 3 * m) + m * (3 * m + size) + m * m * 6)
    # Transformed weights come from far for every strip; transformed inputs for every channel tile.
    weights = 4.0 * size * size * shape.cout * shape.cin
    pace = 12.0 if weights < 16 * target.l2_bytes else 6.0
    inputs = 4.0 * size * size * shape.cin * tiles
    again = inputs * -(-shape.cout // knobs.channels)
    far = again / 14.0 if inputs > target.l2_bytes // 2 else again / 48.0
    return strips * (product + forward + backward + 0.6 * weights / pace + 0.5 * far)
