"""What one process of the benchmark program measured, and how it is asked to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.devices.machine import Machine
from effc.errors import DeviceError

__all__ = ["Measurement", "Plan", "Window"]

_BLOCKS = 10
_PROFILED_RUNS = 50
_TIMEOUT_S = 3600.0
"""An emulator may take minutes per inference."""


@dataclass(frozen=True)
class Plan:
    """What is measured of each subject, in all of its processes together.

    Attributes:
        runs: Most timed inferences; ``None``: no limit.
        seconds: How long inferences are repeated; ``None``: until there are enough.
        least: So many inferences, even if they take longer.
        limit_s: No further inference starts later, whatever is missing; ``None``: no limit.
        warmup: Untimed inferences before, in each process.
        fps: Inferences per second, one per period; ``None``: back to back.
        window_s: Length of a row of the time series; ``None``: no series.
    """

    runs: int | None = None
    seconds: float | None = None
    least: int = 1
    limit_s: float | None = None
    warmup: int = 10
    fps: float | None = None
    window_s: float | None = None

    def arguments(self, number: int = 0, rounds: int = 1) -> list[str]:
        """For the benchmark program in one of several processes that share the inferences."""
        runs = None
        if self.runs is not None:
            runs = self.runs * (number + 1) // rounds - self.runs * number // rounds
        words = ["--machine", *self._extent(runs, -(-self.least // rounds), rounds)]
        if self.fps is not None:
            words += ["--period-us", str(max(round(1e6 / self.fps), 1))]
        return words + _milliseconds("--window-ms", self.window_s)

    @property
    def timeout_s(self) -> float:
        """When a process counts as hanging."""
        return _TIMEOUT_S + 2 * (self.seconds or 0.0)

    def profile_arguments(self) -> list[str]:
        """The same for times of layers: back to back, fewer inferences."""
        runs = min(self.runs or _PROFILED_RUNS, _PROFILED_RUNS)
        return ["--profile", *self._extent(runs, min(self.least, runs), 1)]

    def _extent(self, runs: int | None, least: int, rounds: int) -> list[str]:
        return [
            *("--warmup", str(self.warmup), "--runs", str(runs or 0), "--least", str(least)),
            *_milliseconds("--duration-ms", self.seconds, rounds),
            *_milliseconds("--limit-ms", self.limit_s, rounds),
        ]


def _milliseconds(flag: str, seconds: float | None, parts: int = 1) -> list[str]:
    return [] if seconds is None else [flag, str(max(round(seconds * 1e3 / parts), 1))]


@dataclass(frozen=True)
class Window:
    """A row of the time series; times in milliseconds.

    Attributes:
        start_s: Since the first timed inference.
        runs: Inferences in it.
        mean_ms, min_ms, p10_ms, median_ms, p90_ms, max_ms: Of their times.
        mhz: Clock per processor, ``None`` where unknown.
        celsius: Temperature per zone.
    """

    start_s: float
    runs: int
    mean_ms: float
    min_ms: float
    p10_ms: float
    median_ms: float
    p90_ms: float
    max_ms: float
    mhz: tuple[float | None, ...]
    celsius: tuple[float | None, ...]


@dataclass(frozen=True)
class Measurement:
    """One process.

    Attributes:
        times_ms: Time of each inference in order; a uniform sample of them if there were too many.
        runs: All inferences that were timed.
        load_ms: Mapping the library and making an instance of the model.
        first_ms: The first inference of the process, which also brings the weights into memory.
        peak_bytes: Most memory that the process held.
        preempted: How often another process took a processor away.
        busy: Processors in use, mean over the timed inferences.
        late: Paced runs that ended after their period; ``skipped``: periods that got no run.
        ran_on: Inferences by processor of the calling thread.
        variant: Version of the code.
        windows: The time series.
        before, after: The device.
    """

    times_ms: npt.NDArray[np.float64]
    runs: int
    load_ms: float
    first_ms: float
    peak_bytes: int
    preempted: int
    busy: float
    late: int
    skipped: int
    ran_on: Mapping[int, int]
    variant: str
    windows: tuple[Window, ...]
    before: Machine
    after: Machine

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Measurement:
        """From what the program printed.

        Raises:
            DeviceError: That is not an answer, or nothing was measured.
        """
        try:
            if not answer["times_ns"]:
                raise ValueError("no times")
            return cls(
                times_ms=np.asarray(answer["times_ns"], dtype=np.float64) / 1e6,
                runs=int(answer["runs"]),
                load_ms=answer["load_ns"] / 1e6,
                first_ms=answer["first_ns"] / 1e6,
                peak_bytes=int(answer["peak_bytes"]),
                preempted=int(answer["preempted"]),
                busy=answer["cpu_ns"] / max(answer["wall_ns"], 1),
                late=int(answer["late"]),
                skipped=int(answer["skipped"]),
                ran_on={int(cpu): int(runs) for cpu, runs in answer["ran_on"].items()},
                variant=str(answer["variant"]),
                windows=tuple(_window(row) for row in answer["windows"]),
                before=Machine.of(answer["before"]),
                after=Machine.of(answer["after"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DeviceError(
                "the benchmark program gave an unknown answer", got=repr(error)
            ) from error

    @property
    def median_ms(self) -> float:
        return float(np.median(self.times_ms))

    def blocks_ms(self) -> list[float]:
        """Medians of consecutive parts: what stands for rounds where there was one process."""
        count = min(_BLOCKS, len(self.times_ms))
        return [float(np.median(part)) for part in np.array_split(self.times_ms, count)]


def _window(row: Mapping[str, Any]) -> Window:
    low, p10, median, p90, high = (value / 1e6 for value in row["quantiles_ns"])
    return Window(
        start_s=row["start_ns"] / 1e9,
        runs=int(row["runs"]),
        mean_ms=row["mean_ns"] / 1e6,
        min_ms=low,
        p10_ms=p10,
        median_ms=median,
        p90_ms=p90,
        max_ms=high,
        mhz=_thousandths(row["khz"]),
        celsius=_thousandths(row["milli_c"]),
    )


def _thousandths(values: Sequence[int | None]) -> tuple[float | None, ...]:
    return tuple(None if value is None else value / 1000 for value in values)
