"""Recognition of zeros: blocks, N:M, patterns, channels; and their packing."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import conv_region
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import block_mask, with_zeros

from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.kernels.sparse_pack import cut_evenly, pack_tiles
from effc.kernels.sparsity import Structure, covered, filters_of, structure


def zeros_of(mask: np.ndarray, **attrs: object) -> Structure | None:
    region = conv_region((1, mask.shape[1], 5, 5), mask.shape[0], mask.shape[2:])  # type: ignore[arg-type]
    anchor = with_zeros(region, mask).anchor
    assert anchor is not None
    return structure(anchor)


@pytest.mark.parametrize(
    ("block", "name"),
    [
        ((8, 4), "8x4"),
        ((16, 4), "16x4"),
        ((4, 4), "4x4"),
        ((8, 1), "8x1"),
        ((4, 1), "4x1"),
        ((1, 4), "1x4"),
        ((1, 1), "unstructured"),
    ],
)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_blocks(block: tuple[int, int], name: str, kernel: tuple[int, int]) -> None:
    found = zeros_of(block_mask((64, 64, *kernel), 0.4, block))
    assert found is not None
    assert found.pattern == name
    assert dict(found.units)[min(block[0], 16), block[1]] == pytest.approx(
        found.density, abs=1 / 64
    )


def test_ragged_blocks() -> None:
    found = zeros_of(block_mask((61, 30, 3, 3), 0.4, (8, 4)))
    assert found is not None
    assert found.pattern == "8x4"


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("shared", [1, 8])
def test_n_of_m(n: int, m: int, shared: int) -> None:
    rng = np.random.default_rng(0)
    ranks = rng.random((64 // shared, 32 // m, m, 3, 3)).argsort(axis=2)
    mask = (ranks < n).reshape(64 // shared, 32, 3, 3).repeat(shared, 0)
    found = zeros_of(mask)
    assert found is not None
    assert found.pattern == (f"{n}:{m}" if shared == 1 else f"{n}:{m} {shared}x1")


@pytest.mark.parametrize("block", [(1, 1), (8, 4)])
def test_kernel_patterns(block: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    library = np.zeros((6, 9), bool)
    for row in library:
        row[[4, *rng.choice([0, 1, 2, 3, 5, 6, 7, 8], 3, replace=False)]] = True
    kernels = library[rng.integers(0, 6, (64 // block[0], 32 // block[1]))]
    kernels[rng.random(kernels.shape[:2]) < 0.2] = False
    mask = kernels.repeat(block[0], 0).repeat(block[1], 1).reshape(64, 32, 3, 3)
    found = zeros_of(mask)
    assert found is not None
    assert found.pattern == ("pattern" if block == (1, 1) else "pattern 8x4")


def test_channels() -> None:
    rng = np.random.default_rng(0)
    mask = np.ones((32, 24, 3, 3), bool)
    mask[rng.choice(32, 10, replace=False)] = False
    mask[:, rng.choice(24, 7, replace=False)] = False
    found = zeros_of(mask)
    assert found is not None
    assert found.pattern == "channel"


def test_a_few_zeros_are_chance() -> None:
    assert zeros_of(block_mask((64, 64, 3, 3), 0.97, (1, 1))) is None


@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_filters_are_the_outputs(trans_b: int) -> None:
    mask = block_mask((64, 48), 0.3, (8, 4))
    weight = np.where(mask, np.float32(1), np.float32(0))
    stored = weight if trans_b else np.ascontiguousarray(weight.T)
    x = Value("x", TensorType((5, 48), "float32"))
    w = Value("w", TensorType(stored.shape, "float32"), stored)
    y = Value("y", TensorType((5, 64), "float32"))
    op = Op("Gemm", (x, w), (y,), {"transB": trans_b} if trans_b else {})
    filters = filters_of(op)
    assert filters is not None
    assert np.array_equal(filters[0, :, :, 0], weight)
    found = structure(op)
    assert found is not None
    assert found.pattern == "8x4"


def test_filters_of_an_integer_product_are_the_columns() -> None:
    weight = np.where(block_mask((64, 48), 0.3, (8, 4)), 5, 0).astype(np.int8)
    a = Value("a", TensorType((5, 48), "int8"))
    b = Value("b", TensorType((48, 64), "int8"), np.ascontiguousarray(weight.T))
    y = Value("y", TensorType((5, 64), "int32"))
    op = Op("MatMulInteger", (a, b), (y,), {}, domain=DOMAIN)
    found = structure(op)
    assert found is not None
    assert found.pattern == "8x4"
    assert structure(Op("MatMulInteger", (a, b), (y,), {})) is None  # may have a zero point


def test_structure_is_part_of_the_signature() -> None:
    """Code and measured times depend on it, so layers of another structure are other layers."""
    region = conv_region((1, 16, 5, 5), 32, (3, 3))

    def key(density: float, block: tuple[int, int]) -> str:
        masked: Region = with_zeros(region, block_mask((32, 16, 3, 3), density, block))
        return masked.key

    assert len({key(0.5, (8, 4)), key(0.25, (8, 4)), key(0.5, (1, 1)), region.key}) == 4
    assert key(0.5, (8, 4)) == key(0.5, (8, 4))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 10), st.integers(1, 4)),
    rows=st.sampled_from([1, 2, 4, 8]),
    depth=st.sampled_from([1, 3, 4]),
    density=st.floats(0, 1),
    seed=st.integers(0, 50),
)
def test_packing_loses_nothing(
    shape: tuple[int, int, int, int], rows: int, depth: int, density: float, seed: int
) -> None:
    """Unpacking gives the weights back, and units are those that hold a non-zero."""
    rng = np.random.default_rng(seed)
    groups, cout, cin, taps = shape
    depth = min(depth, cin)
    filters = rng.standard_normal(shape).astype(np.float32) * (rng.random(shape) < density)
    packed = pack_tiles(filters, rows, depth)
    tiles = packed.tiles
    restored = np.zeros((groups, tiles * rows, cin, taps), np.float32)
    for tile in range(groups * tiles):
        for e in range(packed.starts[tile], packed.starts[tile + 1]):
            g, row = tile // tiles, tile % tiles * rows
            channels = slice(packed.channels[e], packed.channels[e] + depth)
            restored[g, row : row + rows, channels, packed.taps[e]] += packed.values[e].T
    assert np.array_equal(restored[:, :cout], filters)
    assert not restored[:, cout:].any()
    for channels, tap, which in packed.slots:
        assert len(set(zip(channels, tap, strict=True))) == len(channels)
        assert which.size == 0 or which.max() < len(channels)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    parts=st.integers(1, 8),
)
def test_cuts_cover_all_tiles(counts: list[int], parts: int) -> None:
    starts = np.concatenate([[0], np.cumsum(counts)])
    cuts = cut_evenly(starts, len(counts), parts, 4)
    assert len(cuts) == parts + 1
    assert cuts[0] == 0
    assert cuts[-1] == len(counts)
    assert cuts == sorted(cuts)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 20), st.integers(1, 10), st.integers(1, 4)),
    unit=st.sampled_from([(1, 1), (4, 1), (8, 4), (3, 5)]),
    seed=st.integers(0, 50),
)
def test_covered_grows_with_the_unit(
    shape: tuple[int, int, int, int], unit: tuple[int, int], seed: int
) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.3
    grown = mask.copy()
    for o in range(0, shape[1], unit[0]):
        for c in range(0, shape[2], unit[1]):
            cell = grown[:, o : o + unit[0], c : c + unit[1]]
            cell[:] = cell.any(axis=(1, 2), keepdims=True)
    assert covered(mask, unit) == pytest.approx(grown.mean())
