"""How many operators are widened, and what a loss is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.compression.precision import fewest, loss_of


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_fewest(low: int, size: int, first: int) -> None:
    """Bisection finds the boundary, with few trials."""
    high = low + size
    trials = []

    def suffices(number: int) -> bool:
        trials.append(number)
        return number >= first

    found = fewest(suffices, low, high)
    assert found == min(max(first, low), high)
    assert len(trials) <= 2 * np.log2(size + 1) + 3
    assert all(low <= number <= high for number in trials)


def test_loss_of_classes() -> None:
    scores = np.eye(5, dtype=np.float32)
    other = scores[[0, 1, 2, 3, 0]]
    assert loss_of([scores], [other]) == pytest.approx(20)
    assert loss_of([scores], [scores * 0.1]) == 0


def test_loss_of_other_outputs() -> None:
    image = np.ones((3, 1, 4, 4), np.float32)
    assert loss_of([image, image], [image * np.float32(1.1), image]) == pytest.approx(0.5, rel=1e-4)
