"""Direct convolution against float64, over geometries and configurations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import check_conv, conv_region, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import host, run_kernel

from effc.kernels.conv import DirectConv
from effc.kernels.conv_pack import pack_weights
from effc.kernels.conv_shape import ConvShape, source_layout
from effc.kernels.lanes import pieces
from effc.kernels.region import Region, TensorType, Value
from effc.kernels.register_tile import Tile, split_widths
from effc.kernels.template import Config

DIRECT = DirectConv()
# Arm's form of the code (scalars taken from vector lanes), compiled for this machine.
NEON = replace(host(), arch="aarch64", vector_bits=128, vector_registers=32)


def knobs(along: str, lanes: int, channels: int, columns: int, **more: int | bool) -> Config:
    base = {"pack": True, "panels": 2, "block": 1, "splits": 1, "unroll": 2}
    return {"along": along, "lanes": lanes, "channels": channels, "columns": columns} | base | more


CASES = {
    "1x1": dict(x_shape=(1, 20, 7, 9), cout=13, kernel=(1, 1)),
    "1x1 stride 2": dict(x_shape=(1, 8, 9, 9), cout=9, kernel=(1, 1), strides=(2, 2)),
    "3x3 padded": dict(x_shape=(1, 8, 9, 11), cout=12, kernel=(3, 3), pads=(1, 1, 1, 1)),
    "stride 2, groups, batch": dict(
        x_shape=(2, 6, 17, 15), cout=10, kernel=(3, 3), pads=(1, 0, 2, 1), strides=(2, 2), group=2
    ),
    "dilated, uneven pads": dict(
        x_shape=(1, 4, 17, 15), cout=5, kernel=(3, 2), pads=(2, 0, 1, 3), dilations=(2, 3)
    ),
    "7x7 stride 2": dict(
        x_shape=(1, 3, 30, 34), cout=16, kernel=(7, 7), pads=(3, 3, 3, 3), strides=(2, 2)
    ),
    "1-D": dict(x_shape=(1, 8, 40), cout=10, kernel=(3,)),
    "1-D, stride 3": dict(x_shape=(1, 8, 40), cout=10, kernel=(5,), strides=(3,), pads=(2, 2)),
    "3-D": dict(
        x_shape=(1, 4, 6, 7, 5), cout=6, kernel=(3, 2, 3), pads=(1,) * 6, strides=(1, 2, 1)
    ),
    "one position": dict(x_shape=(1, 16, 1, 1), cout=40, kernel=(1, 1)),
    "kernel as large as the input": dict(x_shape=(1, 8, 5, 5), cout=9, kernel=(5, 5)),
    "stride beyond the kernel": dict(x_shape=(1, 4, 11, 13), cout=6, kernel=(2, 2), strides=(4, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_first_candidate(name: str) -> None:
    region = conv_region(**CASES[name], relu=True, residual=True)  # type: ignore[arg-type]
    config = DIRECT.candidates(region, host())[0][0]
    check_conv(DIRECT, region, host(), config)


CONFIGS = [
    knobs("space", 8, 4, 24, block=12),
    knobs("space", 8, 5, 16, block=4, splits=3),
    knobs("space", 16, 6, 11, block=3, panels=1),
    knobs("channel", 8, 16, 7, block=12),
    knobs("channel", 4, 8, 5, block=6, splits=2, panels=3),
    knobs("channel", 16, 37, 3, block=1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['along']}-{c['lanes']}-{c['block']}")
@pytest.mark.parametrize("kernel", [1, 3])
def test_configurations(config: Config, kernel: int) -> None:
    pads = (kernel // 2,) * 4
    region = conv_region((1, 12, 7, 13), 37, (kernel, kernel), pads=pads, relu=True, residual=True)
    check_conv(DIRECT, region, host(), config)
    if kernel == 1:
        check_conv(DIRECT, region, host(), {**config, "pack": False})


@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_geometry(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    group = draw(1, 2)
    kernel, strides, dilations = ((draw(1, 3), draw(1, 3)) for _ in range(3))
    space = tuple(draw(7, 20) for _ in range(2))
    region = conv_region(
        (draw(1, 2), group * draw(1, 9), *space),
        group * draw(1, 20),
        kernel,
        group=group,
        strides=strides,
        dilations=dilations,
        pads=tuple(draw(0, 2) for _ in range(4)),
        bias=data.draw(st.booleans()),
    )
    target = data.draw(st.sampled_from([host(), NEON]))
    choices = DIRECT.candidates(region, target)
    check_conv(DIRECT, region, target, choices[draw(0, len(choices) - 1)][0])


def test_residual_may_be_overwritten() -> None:
    region = conv_region((1, 12, 7, 13), 37, (1, 1), relu=True, residual=True)
    for config in (knobs("space", 8, 4, 24, block=12), knobs("channel", 8, 16, 7, block=4)):
        kernel = DIRECT.build(region, host(), config)
        assert kernel.inplace == (("other", "positive"),)
        inputs = random_inputs(region)
        apart = run_kernel(kernel, region, inputs, host(), parts=(1,))
        shared = run_kernel(
            kernel, region, inputs, host(), parts=(1,), inplace=("other", "positive")
        )
        np.testing.assert_array_equal(apart["positive"], shared["positive"])


def test_equal_signatures_give_equal_code() -> None:
    one, two = (conv_region((1, 8, 9, 9), 12, (3, 3), seed=seed) for seed in (0, 1))
    config = DIRECT.candidates(one, host())[0][0]
    first, second = (DIRECT.build(region, host(), config) for region in (one, two))
    assert [str(s.func) for s in first.stages] == [str(s.func) for s in second.stages]
    assert not np.array_equal(first.weights["w"], second.weights["w"])


def _without_constants(region: Region) -> Region:
    anchor = region.ops[0]
    weight = anchor.inputs[1]
    assert weight is not None
    loose = Value("w", TensorType(weight.shape, "float32"))
    op = replace(anchor, inputs=(anchor.inputs[0], loose))
    return Region("conv", (op,), op, (*region.inputs, loose), region.outputs)


def test_refuses_runtime_weights() -> None:
    region = _without_constants(conv_region((1, 8, 9, 9), 12, (3, 3)))
    assert "not constant" in str(DIRECT.refuse(region, host()))


def test_candidates_are_ranked_and_valid() -> None:
    region = conv_region((1, 32, 28, 28), 48, (1, 1))
    found = DIRECT.candidates(region, host())
    costs = [cost for _, cost in found]
    assert costs == sorted(costs)
    assert len({str(config) for config, _ in found}) == len(found) <= 24


def test_source_layout_of_strided_convolution() -> None:
    region = conv_region((1, 2, 8, 8), 4, (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    assert region.anchor is not None
    source = source_layout(ConvShape.of(region.anchor))
    assert source.copied
    assert source.extent == (5, 8)  # five columns at a pitch that is a multiple of four
    assert len(source.phases) == 4
    assert source.taps[0] == 0  # phase (0, 0)
    assert source.taps[2] == 1  # the same phase, one to the right
    assert source.taps[4] == 3 * source.plane  # phase (1, 1)


def test_one_by_one_reads_its_input_in_place() -> None:
    region = conv_region((1, 2, 8, 8), 4, (1, 1))
    assert region.anchor is not None
    source = source_layout(ConvShape.of(region.anchor))
    assert source.flat
    assert not source.copied


def test_pack_weights_keeps_a_narrow_last_tile() -> None:
    weight = np.arange(2 * 3 * 2, dtype=np.float32).reshape(6, 2, 1)
    packed = pack_weights(weight, groups=2, tile=2)
    np.testing.assert_array_equal(packed, [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11])


@pytest.mark.parametrize(
    ("columns", "lanes", "widths"),
    [(7, 8, (4, 2, 1)), (8, 8, (8,)), (33, 16, (16, 16, 1)), (13, 4, (4, 4, 4, 1))],
)
def test_split_widths(columns: int, lanes: int, widths: tuple[int, ...]) -> None:
    assert split_widths(columns, lanes) == widths
    assert sum(width for _, width in pieces(columns, lanes)) == columns
    assert Tile(3, widths).columns == columns
