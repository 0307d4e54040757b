"""Projection: exact sparsity, idempotent, optimal by brute force, constraints kept."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.errors import UsageError
from effc.passes.pruning.patterns import PATTERNS
from effc.passes.pruning.project import grid_of, project, projection_mask
from effc.passes.pruning.scheme import Scheme, parse_block, parse_scheme
from effc.passes.pruning.units import Grid, cheapest

Array = np.ndarray[Any, Any]

BLOCKS = [(8, 4), (4, 4), (16, 4), (4, 1), (1, 4), (1, 1), (3, 5)]


def random_weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def unit_sums(mask: Array, grid: Grid) -> Array:
    return grid.sum(mask.reshape(grid.cout, grid.cin, grid.positions))


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 3),
    st.integers(1, 19),
    st.integers(1, 13),
    st.sampled_from([(1, 1), (3, 3), (1, 5), ()]),
    st.sampled_from(BLOCKS),
    st.floats(0, 0.99),
)
def test_block_punched_zeros_whole_units_and_hits_the_count(
    groups: int, cout: int, cin: int, kernel: tuple[int, ...], block: tuple[int, int], s: float
) -> None:
    scheme = Scheme("block-punched", block)
    weight = random_weight(groups * cout, cin, *kernel)
    pruned = project(weight, scheme, s, groups=groups)
    grid = grid_of((groups * cout, cin, int(np.prod(kernel))), scheme, groups)
    kept = unit_sums(pruned != 0, grid)
    assert np.all((kept == 0) | (kept == grid.sizes))
    assert abs(np.count_nonzero(pruned == 0) - s * weight.size) <= grid.sizes.max() / 2 + 1e-6
    np.testing.assert_array_equal(project(pruned, scheme, s, groups=groups), pruned)
    np.testing.assert_array_equal(pruned[pruned != 0], weight[pruned != 0])


def test_bands_do_not_cross_groups() -> None:
    assert Grid(12, 3, 1, 2, (4, 4)).bands == ((0, 4), (4, 6), (6, 10), (10, 12))


def test_a_unit_is_one_position_of_a_block() -> None:
    weight = np.ones((8, 8, 3, 3), np.float32)
    weight[:, :4, 1, 2] = 0.1
    pruned = project(weight, Scheme("block-punched", (8, 4)), 1 / 18)
    assert not pruned[:, :4, 1, 2].any()
    assert np.count_nonzero(pruned) == weight.size * 17 / 18


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5), st.floats(0, 1))
def test_cheapest_is_optimal(seed: int, rows: int, columns: int, share: float) -> None:
    """By brute force over all subsets of at most 10 units with ragged sizes."""
    rng = np.random.default_rng(seed)
    grid = Grid(rows, columns, 1, 1, (2, 3))
    sizes = grid.sizes
    costs = rng.random(sizes.shape)
    target = share * sizes.sum()
    chosen = cheapest(costs, sizes, target)
    flat_sizes, flat_costs = sizes.reshape(-1), costs.reshape(-1)
    best = min(
        (
            (round(abs(flat_sizes[list(subset)].sum() - target), 6), flat_costs[list(subset)].sum())
            for count in range(sizes.size + 1)
            for subset in combinations(range(sizes.size), count)
        ),
    )
    got = (round(abs(sizes[chosen].sum() - target), 6), costs[chosen].sum())
    np.testing.assert_allclose(got, best, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([(1, 4), (2, 4), (4, 8), (3, 4), (1, 2)]),
    st.integers(1, 17),
    st.integers(1, 9),
    st.sampled_from([1, 4]),
    st.sampled_from([(), (3, 3)]),
)
def test_n_of_m(
    n_m: tuple[int, int], cin: int, cout: int, bf: int, kernel: tuple[int, ...]
) -> None:
    n, m = n_m
    scheme = Scheme("n:m", (bf, 1), n, m)
    weight = random_weight(cout, cin, *kernel)
    mask = projection_mask(weight, scheme, None).reshape(cout, cin, -1)
    costs = np.square(weight.reshape(cout, cin, -1).astype(np.float64))
    for row in range(0, cout, bf):
        for start in range(0, cin, m):
            window = slice(start, start + m)
            kept = mask[row : row + bf, window]
            assert (kept == kept[:1]).all()
            assert (kept.sum(axis=1) == min(n, kept.shape[1])).all()
            energy = costs[row : row + bf, window].sum(axis=0)
            best = np.sort(energy, axis=0)[::-1][:n].sum(axis=0)
            np.testing.assert_allclose((energy * kept[0]).sum(axis=0), best)
    np.testing.assert_array_equal(
        project(weight * mask.reshape(weight.shape), scheme, None),
        weight * mask.reshape(weight.shape),
    )


@pytest.mark.parametrize("block", [(1, 1), (8, 4), (5, 3)])
@pytest.mark.parametrize("sparsity", [None, 0.7, 0.9])
def test_patterns(block: tuple[int, int], sparsity: float | None) -> None:
    weight = random_weight(18, 11, 3, 3)
    scheme = Scheme("pattern", block)
    pruned = project(weight, scheme, sparsity)
    kernels = (pruned != 0).reshape(-1, 9)
    kernels = kernels[kernels.any(axis=1)]
    assert (kernels.sum(axis=1) == 4).all()
    assert kernels[:, 4].all()
    assert len(np.unique(kernels, axis=0)) <= 8
    zeros = np.count_nonzero(pruned == 0) / weight.size
    assert abs(zeros - (sparsity or 5 / 9)) <= block[0] * block[1] * 2 / weight.size + 1e-9
    np.testing.assert_array_equal(project(pruned, scheme, sparsity), pruned)
    bands = (pruned != 0)[: block[0], : block[1]].reshape(-1, 9)
    assert (bands == bands[0]).all()


def test_each_kernel_has_the_best_pattern_of_the_library() -> None:
    weight = random_weight(6, 6, 3, 3, seed=3)
    pruned = project(weight, Scheme("pattern", (1, 1)), None)
    used = np.unique((pruned != 0).reshape(-1, 9), axis=0)
    energy = np.square(weight.reshape(-1, 9))
    np.testing.assert_allclose(
        np.square(pruned).reshape(-1, 9).sum(axis=1), (energy @ used.T).max(axis=1), rtol=1e-5
    )
    assert len(PATTERNS) == 56


def test_scores_replace_magnitude() -> None:
    weight = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    pruned = project(weight, Scheme("block-punched", (1, 1)), 0.5, scores=-weight)
    np.testing.assert_array_equal(pruned, [[1, 2, 3, 4], [0, 0, 0, 0]])


def test_larger_targets_remove_more_of_the_same() -> None:
    weight, scheme = random_weight(16, 8, 3, 3), Scheme("block-punched", (8, 4))
    masks = [projection_mask(weight, scheme, s) for s in (0.25, 0.5, 0.75)]
    assert not (masks[1] & ~masks[0]).any()
    assert not (masks[2] & ~masks[1]).any()


def test_parse_scheme() -> None:
    assert parse_scheme("block-punched") == Scheme("block-punched", (8, 4))
    assert parse_scheme("block-punched", "16x4").block == (16, 4)
    assert parse_scheme("unstructured") == Scheme("block-punched", (1, 1))
    assert parse_scheme("2:4", "8x1") == Scheme("n:m", (8, 1), 2, 4)
    assert str(parse_scheme("4:8")) == "4:8 1x1"
    assert parse_scheme("pattern").block == (1, 1)
    assert parse_block("1x4") == (1, 4)


@pytest.mark.parametrize(
    ("scheme", "block", "text"),
    [
        ("block-punch", None, "did you mean block-punched"),
        ("4:2", None, "1 <= n < m"),
        ("2:4", "8x4", "bf x 1"),
        ("unstructured", "8x4", "1x1"),
        ("block-punched", "8by4", "FILTERSxCHANNELS"),
        ("block-punched", "0x4", "FILTERSxCHANNELS"),
        ("channel", "8x4", "no block"),
    ],
)
def test_wrong_schemes(scheme: str, block: str | None, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        parse_scheme(scheme, block)


@pytest.mark.parametrize(
    ("scheme", "sparsity"),
    [("2:4", 0.75), ("pattern", 0.3), ("block-punched", None), ("block-punched", 1.0)],
)
def test_impossible_sparsities(scheme: str, sparsity: float | None) -> None:
    with pytest.raises(UsageError, match=r"sparsity|zeros"):
        project(random_weight(8, 8, 3, 3), parse_scheme(scheme), sparsity)
