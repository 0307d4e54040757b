"""Phases of a compilation: who is told of them, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from effc.dump import Dump
from effc.options import ProgressCallback

__all__ = ["PhaseClock"]


class PhaseClock:
    """Wall time per phase, and the progress callback.

    Attributes:
        seconds: By phase; those of a phase that comes twice are added up.
        dump: Shown what phases make.
    """

    def __init__(
        self,
        progress: ProgressCallback | None,
        seconds: dict[str, float] | None = None,
        dump: Dump | None = None,
    ) -> None:
        self.progress = progress
        self.dump = dump or Dump(None, None)
        self.seconds = {} if seconds is None else seconds

    def report(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Tell how far a phase is."""
        if self.progress is not None:
            self.progress(phase, done, total, detail)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        self.report(name, 0, 1)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.report(name, 1, 1)
