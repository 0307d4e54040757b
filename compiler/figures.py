"""Figures as people read them: bytes, counts and times with three digits and a unit."""

from __future__ import annotations

__all__ = ["human_bytes", "human_count", "human_time"]


def human_bytes(count: float) -> str:
    """``1536`` as ``1.54 kB`` (1 kB = 1000 bytes, as the figures of the project)."""
    if count < 1000:
        return f"{int(count)} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
    raise AssertionError


def human_count(count: float) -> str:
    """``300000000`` as ``300 M``."""
    if count < 1000:
        return str(int(count))
    for unit in ("k", "M", "G", "T"):
        count /= 1000
        if count < 1000 or unit == "T":
            return f"{count:.3g} {unit}"
    raise AssertionError


def human_time(seconds: float) -> str:
    """``0.00123`` as ``1.23 ms``."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"
