"""Figures for people, at the borders between units."""

from __future__ import annotations

import pytest

from effc.figures import human_bytes, human_count, human_time


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.54 kB"), (123_456, "123 kB"), (5e12, "5000 GB")],
)
def test_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7"), (300_000_000, "300 M"), (1234, "1.23 k"), (4.2e12, "4.2 T")]
)
def test_counts(count: float, text: str) -> None:
    assert human_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.5 s"), (0.00123, "1.23 ms"), (1e-3, "1 ms"), (2.5e-6, "2.5 µs")]
)
def test_times(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
