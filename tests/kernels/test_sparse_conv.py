"""Sparse convolution against float64, over geometries, blocks, densities and configurations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import check_conv, conv_region, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import host, run_kernel
from sparse_cases import block_mask, with_zeros
from test_conv import CASES

from effc.kernels.region import Region
from effc.kernels.sparse_conv import SparseConv
from effc.kernels.template import Config

SPARSE = SparseConv()
# Arm's form of the code (scalars taken from vector lanes), compiled for this machine.
NEON = replace(host(), arch="aarch64", vector_bits=128, vector_registers=32)


def knobs(along: str, lanes: int, rows: int, depth: int, columns: int, **more: int) -> Config:
    base = {"height": 0, "pack": True, "panels": 2, "splits": 1, "unroll": 1, "fetch": False}
    base["sort"] = False
    tile = {"along": along, "lanes": lanes, "rows": rows, "depth": depth, "columns": columns}
    return tile | base | more


def sparse(region: Region, density: float, block: tuple[int, int], seed: int = 0) -> Region:
    assert region.anchor is not None
    weight = region.anchor.inputs[1]
    assert weight is not None
    return with_zeros(region, block_mask(weight.shape, density, block, seed))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [(8, 4), (1, 1)])
def test_first_candidate(name: str, block: tuple[int, int]) -> None:
    region = conv_region(**CASES[name], relu=True, residual=True)  # type: ignore[arg-type]
    region = sparse(region, 0.3, block)
    config = SPARSE.candidates(region, host())[0][0]
    check_conv(SPARSE, region, host(), config)


CONFIGS = [
    knobs("space", 8, 8, 4, 24),
    knobs("space", 8, 4, 1, 16, splits=3, unroll=4),
    knobs("space", 16, 1, 1, 80, panels=1, unroll=2),
    knobs("space", 16, 2, 4, 11, panels=1),
    knobs("channel", 8, 8, 4, 7),
    knobs("channel", 4, 8, 1, 5, splits=2, panels=3, unroll=4),
    knobs("channel", 16, 16, 4, 3),
]


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c['along']}-{c['lanes']}-{c['rows']}x{c['depth']}"
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_configurations(config: Config, kernel: int) -> None:
    pads = (kernel // 2,) * 4
    region = conv_region((1, 13, 7, 13), 37, (kernel, kernel), pads=pads, relu=True, residual=True)
    region = sparse(region, 0.4, (8, 4))
    check_conv(SPARSE, region, host(), config)
    for height, columns in ((1, 13), (2, 5), (7, 4)):
        check_conv(
            SPARSE, region, host(), {**config, "pack": False, "height": height, "columns": columns}
        )
    if kernel == 1:
        check_conv(SPARSE, region, host(), {**config, "pack": False, "fetch": True})


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.94])
@pytest.mark.parametrize("group", [1, 3])
def test_empty_and_full_groups(density: float, group: int) -> None:
    """No weights at all, tiles without entries, and nearly all kept."""
    region = conv_region((2, 9, 6, 5), 30, (3, 3), group=group, pads=(1,) * 4, relu=True)
    region = sparse(region, density, (8, 4))
    for config in (CONFIGS[0], CONFIGS[4]):
        check_conv(SPARSE, region, host(), {**config, "depth": min(config["depth"], 9 // group)})


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_generated_shapes(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1)]))
    stride = draw(st.integers(1, 2))
    cin, cout = draw(st.integers(1, 19)), draw(st.integers(1, 35))
    size = (draw(st.integers(5, 18)), draw(st.integers(5, 18)))
    region = conv_region(
        (1, cin, *size),
        cout,
        kernel,
        strides=(stride, stride),
        pads=(kernel[0] // 2, kernel[1] // 2) * 2,
        relu=draw(st.booleans()),
        residual=draw(st.booleans()),
    )
    block = draw(st.sampled_from([(8, 4), (4, 1), (1, 4), (1, 1), (16, 4), (3, 5)]))
    region = sparse(region, draw(st.floats(0, 0.9)), block, draw(st.integers(0, 99)))
    target = draw(st.sampled_from([host(), NEON]))
    if SPARSE.refuse(region, target) is not None:  # hardly any zeros were drawn
        return
    config = draw(st.sampled_from([c for c, _ in SPARSE.candidates(region, target)]))
    check_conv(SPARSE, region, target, config)


def test_split_work_is_balanced() -> None:
    """Units of unequal work: bounds are cumulative entries, and any split gives the same."""
    region = conv_region((1, 16, 6, 6), 64, (3, 3), pads=(1,) * 4)
    mask = block_mask((64, 16, 3, 3), 0.5, (8, 4))
    mask[:32] = False
    mask[:8, :4] = True
    region = with_zeros(region, mask)
    config = knobs("space", 8, 8, 4, 24, splits=4)
    kernel = SPARSE.build(region, host(), config)
    stage = kernel.stages[-1]
    assert stage.bounds is not None
    assert len(stage.bounds) == stage.extent + 1
    work = np.diff(stage.bounds)
    assert work.min() > 0
    assert work.max() <= 2 * work.mean()
    check_conv(SPARSE, region, host(), config)


@pytest.mark.printed
def test_infinities_behind_zeros_stay_out() -> None:
    region = with_zeros(
        conv_region((1, 4, 3, 3), 8, (1, 1)),
        np.arange(4)[None, :, None, None] == np.zeros((8, 1, 1, 1)),
    )
    config = SPARSE.candidates(region, host())[0][0]
    kernel = SPARSE.build(region, host(), config)
    inputs = random_inputs(region)
    inputs["x"][0, 3] = np.inf
    found = run_kernel(kernel, region, inputs, host())[region.outputs[0].name]
    assert np.isfinite(found).all()


@pytest.mark.parametrize("along", ["space", "channel"])
@pytest.mark.parametrize("group", [1, 2])
def test_sorted_filters(along: str, group: int) -> None:
    """Filters that share a mask but lie apart: sorting finds them, results go where they belong."""
    region = conv_region((1, 32, 6, 7), 64, (3, 3), group=group, pads=(1,) * 4, residual=True)
    apart = np.random.default_rng(0).permutation(64 // group)
    masks = [
        block_mask((64 // group, 32 // group, 3, 3), 0.3, (8, 4), g)[apart] for g in range(group)
    ]
    region = with_zeros(region, np.concatenate(masks))
    assert region.anchor is not None
    zeros = region.anchor.zeros
    assert zeros is not None
    assert dict(zeros.sorted_units)[8, 4] == pytest.approx(zeros.density, abs=0.05)
    config = {**knobs(along, 8, 8, 4, 7), "sort": True}
    check_conv(SPARSE, region, host(), config)
    best = SPARSE.candidates(region, host())[0][0]
    assert best["sort"]
    check_conv(SPARSE, region, host(), best)
