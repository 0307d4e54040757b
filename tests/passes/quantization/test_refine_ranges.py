"""Ranges are refined by what readers make of the error, on samples not seen as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from effc.passes.quantization.grid import grid_of
from effc.passes.quantization.points import Group
from effc.passes.quantization.refine_ranges import Reader, best_range

Array = np.ndarray[Any, Any]


def values(seed: int, outliers: float) -> Array:
    """``[1, columns, K]``; the last column of K has outliers."""
    x = np.random.default_rng(seed).standard_normal((1, 4000, 6)).astype(np.float32)
    x[..., -1] *= np.float32(outliers)
    return x


def weight(last: float) -> Array:
    w = np.random.default_rng(5).standard_normal((1, 4, 6)).astype(np.float32)
    w[..., -1] *= np.float32(last)
    return w


def refined(last: float, bits: int = 8) -> tuple[Reader, Any, Any]:
    x = values(0, 30.0)
    group = Group(["x"], bits)
    whole = grid_of(float(x.min()), float(x.max()), bits)
    ends = (float(x.min()), float(x.max()))
    return (
        Reader(weight(last), values(1, 30.0)),
        whole,
        best_range([Reader(weight(last), x)], whole, ends, group),
    )


def test_what_nobody_reads_is_clipped() -> None:
    unseen, whole, found = refined(last=1e-3)
    assert found.scale < 0.5 * whole.scale
    assert unseen.error(found) < 0.5 * unseen.error(whole)


def test_what_matters_is_kept() -> None:
    unseen, whole, found = refined(last=1.0)
    assert found.scale > 0.7 * whole.scale
    assert unseen.error(found) <= 1.1 * unseen.error(whole)


def test_constant_errors_do_not_count() -> None:
    """A bias makes up for them."""
    reader = Reader(None, np.full((1, 100, 1), 0.3, np.float32))
    assert reader.error(grid_of(0, 1.7)) == pytest.approx(0)


@pytest.mark.parametrize("pad", [0.0, -50.0])
def test_range_holds_padding(pad: float) -> None:
    x = values(0, 1.0)
    group = Group(["x"], 8, None, [pad])
    found = best_range([Reader(None, x)], grid_of(-60, 4), (float(x.min()), float(x.max())), group)
    assert found.low <= pad + found.scale
    assert found.dequantize(found.quantize(np.zeros(1)))[0] == 0
