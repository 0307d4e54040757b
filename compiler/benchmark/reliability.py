"""What makes the figures of a benchmark doubtful, and which flag helps.

Every finding follows from what was measured; where a device hides what a finding needs, there
is none. Thresholds are generous: a quiet phone at a fixed clock gets no warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from effc.benchmark.measurement import Measurement
from effc.devices.machine import Machine, cpu_ranges

__all__ = ["Conditions", "Finding", "findings"]

_SPREAD = 0.25
"""Of the middle 80 % of times, relative to the median."""
_DRIFT = 0.05
"""Last third of a process against the first, or last round against the first."""
_SIGNIFICANT = 1e-3
_ENOUGH = 5
_SLOWER_CLOCK = 0.95
_HOTTER = 10.0
"""Degrees between the beginning and the end."""
_PREEMPTED = 0.1
"""Preemptions per inference."""
_ALWAYS = 0.95
"""Processors that inferences back to back keep in use at least."""
_P99_RUNS = 100
_LATE = 0.01
_FIXED = ("performance", "userspace")
_THROTTLED_NOW = 0xF
"""Bits of a Raspberry Pi's firmware: under-voltage, capped, throttled, at the temperature limit."""


@dataclass(frozen=True)
class Finding:
    """A reason to doubt.

    Attributes:
        code: Short name, for programs.
        text: What was seen, with the numbers.
        hint: The flag that helps.
    """

    code: str
    text: str
    hint: str

    def describe(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Conditions:
    """What was asked for.

    Attributes:
        emulated: The code ran under an emulator.
        threads: Of one inference.
        cpus: Processors that it was pinned to; none: to no processors.
        paced: One inference per period.
        sustained: A long run whose purpose is to show heat.
    """

    emulated: bool
    threads: int
    cpus: tuple[int, ...]
    paced: bool
    sustained: bool


def findings(rounds: Sequence[Measurement], conditions: Conditions) -> list[Finding]:
    """Reasons to doubt the figures of one artifact, worst first.

    Args:
        rounds: Its processes in order; at least one.
        conditions: How they ran.
    """
    if conditions.emulated:
        return [
            Finding(
                "emulated",
                "times under an emulator say nothing about the real device",
                "--device adb or ssh:HOST measures on the device",
            )
        ]
    others = list(_others(rounds, conditions))
    unexplained = [] if others else [*_drift(rounds, conditions), *_spread(rounds)]
    return [
        *_throttling(rounds[0].before, rounds[-1].after, conditions),
        *_heat(rounds[0].before, rounds[-1].after, conditions),
        *others,
        *unexplained,
        *_placement(rounds, conditions),
        *_governor(rounds[0].before, conditions),
        *_lateness(rounds, conditions),
        *_few(rounds),
    ]


def _throttling(before: Machine, after: Machine, conditions: Conditions) -> Iterator[Finding]:
    """The device says itself that it slowed down."""
    limited: dict[str, list[int]] = {}
    for cpu in after.cpus:
        share = cpu.limit_khz / cpu.highest_khz if cpu.limit_khz and cpu.highest_khz else 1.0
        if share < _SLOWER_CLOCK:
            limited.setdefault(f"{share:.0%}", []).append(cpu.number)
    seen = [f"CPUs {cpu_ranges(cpus)} limited to {share}" for share, cpus in limited.items()]
    pairs = zip(before.cpus, after.cpus, strict=False)  # answers by hand may be of two devices
    hot = [new.number for old, new in pairs if (new.throttled or 0) > (old.throttled or 0)]
    if hot:
        seen.append(f"CPUs {cpu_ranges(hot)} slowed down for heat")
    seen += [f"{name} at level {state}" for name, state in after.cooling.items()]
    if (after.throttle_bits or 0) & _THROTTLED_NOW:
        seen.append(f"the firmware reports 0x{after.throttle_bits:x}")
    if seen:
        more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
        yield Finding(
            "throttled",
            f"the device throttles: {', '.join(seen[:3])}{more}",
            "the last windows of the series are the hot state"
            if conditions.sustained
            else "--cool-down 30 pauses between rounds; --sustain 10m measures the hot state",
        )


def _heat(before: Machine, after: Machine, conditions: Conditions) -> Iterator[Finding]:
    pairs = zip(before.sensors, after.sensors, strict=False)
    rises = [
        (b.celsius - a.celsius, b)
        for a, b in pairs
        if a.celsius is not None and b.celsius is not None
    ]
    rise, sensor = max(rises, key=lambda pair: pair[0], default=(0.0, None))
    if sensor is not None and rise > _HOTTER and not conditions.sustained:
        yield Finding(
            "heat",
            f"{sensor.name} rose by {rise:.0f} to {sensor.celsius:.0f} degrees Celsius",
            "--cool-down 30 pauses between rounds",
        )


def _drift(rounds: Sequence[Measurement], conditions: Conditions) -> Iterator[Finding]:
    """Times that grow or shrink as the benchmark goes on."""
    if conditions.sustained:
        return
    for change, where in ((_within(rounds), "within a process"), (_across(rounds), "by the round")):
        if abs(change) > _DRIFT:
            word, hint = (
                ("slower", "--cool-down 30 pauses between rounds; --sustain 10m shows the course")
                if change > 0
                else ("faster", "--warmup with a larger number lets clocks and caches settle")
            )
            yield Finding("drift", f"inferences became {abs(change):.0%} {word} {where}", hint)


def _within(rounds: Sequence[Measurement]) -> float:
    """Change from the first to the last third of the processes' times; 0: none that is certain."""
    from scipy import stats

    parts = [(m.times_ms / m.median_ms, len(m.times_ms) // 3) for m in rounds]
    first = np.concatenate([times[:third] for times, third in parts])
    last = np.concatenate([times[len(times) - third :] for times, third in parts])
    if len(first) < _ENOUGH or stats.mannwhitneyu(first, last).pvalue > _SIGNIFICANT:
        return 0.0
    return float(np.median(last) / np.median(first)) - 1


def _across(rounds: Sequence[Measurement]) -> float:
    """Change of the processes' medians along a line through them; 0: none that is certain."""
    from scipy import stats

    if len(rounds) < _ENOUGH:
        return 0.0
    line = stats.linregress(range(len(rounds)), np.log([m.median_ms for m in rounds]))
    certain = line.pvalue < 10 * _SIGNIFICANT
    return float(np.expm1(line.slope * (len(rounds) - 1))) if certain else 0.0


def _others(rounds: Sequence[Measurement], conditions: Conditions) -> Iterator[Finding]:
    runs = sum(m.runs for m in rounds)
    preempted = sum(m.preempted for m in rounds)
    busy = float(np.mean([m.busy for m in rounds]))
    waited = busy < _ALWAYS and not conditions.paced
    if preempted > _PREEMPTED * runs or (waited and preempted > 0):
        load, cpus = rounds[0].before.load, len(rounds[0].before.allowed)
        beside = "" if load is None else f"; load {load:g} on {cpus} processors beforehand"
        yield Finding(
            "busy",
            f"other processes interrupted the inference {preempted} times in {runs} runs{beside}",
            "end them, or --cores with cores that they leave alone",
        )


def _spread(rounds: Sequence[Measurement]) -> Iterator[Finding]:
    times = np.concatenate([m.times_ms for m in rounds])
    if len(times) < 10:
        return
    low, median, high = np.quantile(times, (0.1, 0.5, 0.9))
    spread = float((high - low) / median)
    if spread > _SPREAD:
        yield Finding(
            "spread",
            f"the middle 80 % of the times spread over {spread:.0%} of the median",
            "--cores big keeps it on equal cores; --runs and --rounds average it out",
        )


def _placement(rounds: Sequence[Measurement], conditions: Conditions) -> Iterator[Finding]:
    clusters = rounds[0].before.clusters()
    usable = len(conditions.cpus) or len(rounds[0].before.allowed)
    if usable and conditions.threads > usable:
        yield Finding(
            "oversubscribed",
            f"{conditions.threads} threads share {usable} processors",
            f"--threads {usable} or --cores all",
        )
    used = {cpu for m in rounds for cpu, runs in m.ran_on.items() if runs > 0.02 * m.runs}
    kinds = [cluster.name for cluster in clusters if used & set(cluster.cpus)]
    if len(kinds) > 1:
        yield Finding(
            "migrated",
            f"the inference moved between {' and '.join(kinds)} cores",
            f"--cores {kinds[-1]}",
        )
    pinned = set(conditions.cpus)
    spans = [cluster.name for cluster in clusters if pinned & set(cluster.cpus)]
    fast = len(clusters[-1].cpus) if clusters else 0
    if conditions.threads > 1 and len(clusters) > 1:
        if len(spans) > 1:
            mixed = f"pinned to {' and '.join(spans)} cores"
        elif not pinned and conditions.threads > fast:
            mixed = f"more than the {fast} big cores can hold"
        else:
            return
        yield Finding(
            "mixed",
            f"{conditions.threads} threads with equal shares of work are {mixed}: "
            "all wait for the slowest",
            f"--cores big --threads {fast}",
        )


def _governor(before: Machine, conditions: Conditions) -> Iterator[Finding]:
    cpus = [cpu for cpu in before.cpus if not conditions.cpus or cpu.number in conditions.cpus]
    names = sorted({cpu.governor for cpu in cpus if cpu.governor and cpu.governor not in _FIXED})
    if names:
        hint = (
            "--sustain 10m shows what clock it settles at"
            if conditions.paced
            else "--warmup 100 lets it rise, --fps 30 measures at the app's pace; as root: "
            "governor performance"
        )
        yield Finding("governor", f"the clock follows the load (governor {', '.join(names)})", hint)


def _lateness(rounds: Sequence[Measurement], conditions: Conditions) -> Iterator[Finding]:
    late, runs = sum(m.late for m in rounds), sum(m.runs for m in rounds)
    if conditions.paced and late > _LATE * runs:
        skipped = sum(m.skipped for m in rounds)
        yield Finding(
            "late",
            f"{late} of {runs} inferences took longer than their period; "
            f"{skipped} periods got none",
            "--fps with a smaller number, or --threads with a larger one",
        )


def _few(rounds: Sequence[Measurement]) -> Iterator[Finding]:
    runs = sum(m.runs for m in rounds)
    if runs < _P99_RUNS:
        yield Finding(
            "few-runs",
            f"p99 of {runs} inferences is little more than their maximum",
            f"--runs {10 * _P99_RUNS}",
        )
