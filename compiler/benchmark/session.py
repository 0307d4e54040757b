"""Runs the benchmark program for several artifacts or settings in turn, and adds the answers up.

Every round starts one process per subject. Their order changes from round to round (ABBA BAAB
for two), so that what drifts - heat, clocks, other load - hits all alike and cancels in the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from effc.benchmark.layers import layer_rows
from effc.benchmark.measurement import Measurement, Plan
from effc.benchmark.reliability import Conditions, Finding, findings
from effc.benchmark.statistics import spread_interval
from effc.runtimes.loader import BenchStats

__all__ = ["Program", "Result", "Subject", "order", "run_rounds"]

Program = Callable[[Sequence[str], float], Mapping[str, Any]]
"""Runs the benchmark program of an artifact with arguments and a time limit; what it printed."""

_KEPT_TIMES = 2000
"""Single times in a report."""


@dataclass(frozen=True)
class Subject:
    """An artifact with settings.

    Attributes:
        label: What it is called in tables; unique in a session.
        artifact: Its path as the user gave it.
        manifest: Of the library that runs.
        program: The benchmark program with this library on the device.
        device: ``local``, ``qemu`` ...
        threads: Of one inference.
        cores: As the user named them; ``cpus``: which these are, none: not pinned.
        variant: Version of the code that was asked for.
    """

    label: str
    artifact: str
    manifest: Mapping[str, Any]
    program: Program
    device: str
    threads: int
    cores: str = "all"
    cpus: tuple[int, ...] = ()
    variant: str | None = None

    def ask(self, arguments: Iterable[str], timeout_s: float) -> Mapping[str, Any]:
        """Run one process."""
        words = [*arguments, "--threads", str(self.threads)]
        if self.cpus:
            words += ["--cpus", f"{sum(1 << cpu for cpu in self.cpus):x}"]
        if self.variant is not None:
            words += ["--variant", self.variant]
        return self.program(words, timeout_s)


@dataclass
class Result:
    """What was measured of a subject.

    Attributes:
        rounds: One process each, in order.
        layers: Rows of the profile, in execution order; empty without one.
    """

    subject: Subject
    plan: Plan
    rounds: list[Measurement] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def medians_ms(self) -> list[float]:
        """One per process."""
        return [m.median_ms for m in self.rounds]

    @property
    def stats(self) -> BenchStats:
        """Over the inferences of all rounds."""
        times = np.concatenate([m.times_ms for m in self.rounds])
        nanoseconds = [round(ms * 1e6) for ms in times]
        return BenchStats.from_nanoseconds(
            nanoseconds, warmup=self.plan.warmup, threads=self.subject.threads
        )

    def findings(self) -> list[Finding]:
        """Reasons to doubt the figures."""
        conditions = Conditions(
            emulated=self.subject.device == "qemu",
            threads=self.subject.threads,
            cpus=self.subject.cpus,
            paced=self.plan.fps is not None,
            sustained=self.plan.window_s is not None,
        )
        return findings(self.rounds, conditions)

    def describe(self) -> dict[str, Any]:
        """For JSON; also what a later run may be compared with."""
        stats, rounds, plan = self.stats, self.rounds, self.plan
        interval = spread_interval(self.medians_ms)
        values: dict[str, Any] = {
            "label": self.subject.label,
            "artifact": self.subject.artifact,
            "name": self.subject.manifest["name"],
            "target": self.subject.manifest["target"],
            "latency_ms": {
                "median": stats.median_ms,
                "min": stats.min_ms,
                "p90": stats.p90_ms,
                "p99": stats.p99_ms,
                "mean": stats.mean_ms,
                "std": stats.std_ms,
            },
            "median_interval_ms": list(interval) if interval else None,
            "load_ms": float(np.median([m.load_ms for m in rounds])),
            "first_ms": float(np.median([m.first_ms for m in rounds])),
            "peak_memory_bytes": max(m.peak_bytes for m in rounds),
            "runs": sum(m.runs for m in rounds),
            "warmup": plan.warmup,
            "threads": self.subject.threads,
            "cores": self.subject.cores,
            "cpus": list(self.subject.cpus),
            "device": self.subject.device,
            "variant": rounds[0].variant,
            "emulated": self.subject.device == "qemu",
            "mode": "burst" if plan.fps is None else "paced",
            "fps": plan.fps,
            "late": sum(m.late for m in rounds),
            "skipped": sum(m.skipped for m in rounds),
            "preempted": sum(m.preempted for m in rounds),
            "busy_cpus": float(np.mean([m.busy for m in rounds])),
            "ran_on": _sums(m.ran_on for m in rounds),
            "rounds_ms": self.medians_ms,
            "blocks_ms": rounds[0].blocks_ms(),
            "times_ms": self._kept_times(),
            "series": self._series(),
            "machine": {
                "before": rounds[0].before.describe(),
                "after": rounds[-1].after.describe(),
            },
            "warnings": [finding.describe() for finding in self.findings()],
        }
        if self.layers:
            values["per_layer"] = self.layers
        return values

    def _kept_times(self) -> list[float]:
        """Times in order, evenly thinned out where there are many."""
        times = np.concatenate([m.times_ms for m in self.rounds])
        step = -(-len(times) // _KEPT_TIMES)
        return [float(ms) for ms in times[::step]]

    def _series(self) -> list[dict[str, Any]]:
        """Rows of all rounds, with a round's number."""
        return [
            {
                "round": number,
                "start_s": w.start_s,
                "runs": w.runs,
                "mean_ms": w.mean_ms,
                "min_ms": w.min_ms,
                "p10_ms": w.p10_ms,
                "median_ms": w.median_ms,
                "p90_ms": w.p90_ms,
                "max_ms": w.max_ms,
                "mhz": list(w.mhz),
                "celsius": list(w.celsius),
            }
            for number, m in enumerate(self.rounds)
            for w in m.windows
        ]


def order(count: int, number: int) -> list[int]:
    """Order of subjects in a round: turned by one every second round, then reversed.

    Each comes as often before as behind any other in every two rounds.
    """
    turn = number // 2 % count
    places = [(i + turn) % count for i in range(count)]
    return places[::-1] if number % 2 else places


def run_rounds(
    subjects: Sequence[Subject],
    plan: Plan,
    rounds: int,
    *,
    profile: bool = False,
    cool_down_s: float = 0.0,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> list[Result]:
    """Measure all subjects, alternately.

    Args:
        subjects: What to measure.
        plan: What is measured of each.
        rounds: Processes per subject.
        profile: One more process for times of layers.
        cool_down_s: Pause before each process but the first.
        progress: Told before each process.

    Raises:
        DeviceError: A process failed.
    """
    results = [Result(subject, plan) for subject in subjects]
    arguments = [plan.arguments(n, rounds) for n in range(rounds)]
    jobs = [(results[i], arguments[n]) for n in range(rounds) for i in order(len(subjects), n)]
    jobs += [(result, plan.profile_arguments()) for result in results if profile]
    for number, (result, words) in enumerate(jobs):
        if progress is not None:
            progress("bench", number, len(jobs), result.subject.label)
        if number > 0:
            time.sleep(cool_down_s)
        answer = result.subject.ask(words, plan.timeout_s)
        if number < rounds * len(subjects):
            result.rounds.append(Measurement.of(answer))
        else:
            result.layers = layer_rows(result.subject.manifest, answer["steps_ns"])
    if progress is not None:
        progress("bench", len(jobs), len(jobs), "")
    return results


def _sums(mappings: Iterable[Mapping[int, int]]) -> dict[str, int]:
    total: dict[int, int] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            total[key] = total.get(key, 0) + value
    return {str(key): total[key] for key in sorted(total)}
