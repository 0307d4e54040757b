"""Warnings: none on a quiet device, the right one for each thing that spoils figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from effc.benchmark.measurement import Measurement
from effc.benchmark.reliability import Conditions, findings
from effc.devices.machine import Machine, Sensor

from .cases import machine, measurement, with_cpus

QUIET = Conditions(emulated=False, threads=1, cpus=(), paced=False, sustained=False)


def codes(rounds: list[Measurement], **conditions: Any) -> list[str]:
    return [finding.code for finding in findings(rounds, replace(QUIET, **conditions))]


def test_a_quiet_device() -> None:
    assert codes([measurement(), measurement()]) == []
    assert codes([measurement()], threads=4, cpus=(4, 5, 6, 7)) == []


@pytest.mark.parametrize(
    "after",
    [
        with_cpus(limit_khz=1_200_000),
        with_cpus(throttled=3),
        machine(cooling={"cpufreq-cpu4 (0)": 2}),
        machine(throttle_bits=0x4),
    ],
)
def test_throttling(after: Machine) -> None:
    found = findings([measurement(after=after)], QUIET)
    assert [finding.code for finding in found] == ["throttled"]
    assert "--cool-down" in found[0].hint


def test_throttled_cores_are_named() -> None:
    slow = with_cpus(limit_khz=1_200_000, throttled=2)
    cpus = (*machine().cpus[:3], *slow.cpus[3:])
    (found,) = findings([measurement(after=machine(cpus=cpus))], QUIET)
    assert "CPUs 3-7 limited to 60%, CPUs 3-7 slowed down for heat" in found.text


def test_earlier_throttling_is_no_matter() -> None:
    """Sticky bits of the firmware and counters that do not move."""
    assert codes([measurement(after=machine(throttle_bits=0x50000))]) == []
    hot = with_cpus(throttled=7)
    assert codes([measurement(before=hot, after=hot)]) == []


def test_heat() -> None:
    hot = machine(sensors=(Sensor("cpu (0)", 61.0),))
    assert codes([measurement(), measurement(after=hot)]) == ["heat"]
    assert codes([measurement(after=hot)], sustained=True) == []


@pytest.mark.parametrize(("end", "hint"), [(5.6, "--cool-down"), (4.4, "--warmup")])
def test_drift(end: float, hint: str) -> None:
    times = np.random.default_rng(0).normal(np.linspace(5, end, 300), 0.05)
    (found,) = findings([measurement(times.tolist())], QUIET)
    assert found.code == "drift"
    assert hint in found.hint
    assert codes([measurement(times.tolist())], sustained=True) == []


def test_drift_over_rounds() -> None:
    """A trend of the processes' medians, not just different ones."""
    quiet = measurement().times_ms
    rising = [measurement((quiet * 1.03**n).tolist()) for n in range(6)]
    assert codes(rising) == ["drift"]
    mixed = [measurement((quiet * factor).tolist()) for factor in (1.0, 1.06, 1.0, 1.06, 1.06, 1.0)]
    assert codes(mixed) == []


def test_other_processes() -> None:
    assert codes([measurement(preempted=40)]) == ["busy"]
    assert codes([measurement(preempted=3, busy=0.6)]) == ["busy"]
    assert codes([measurement(preempted=3)]) == []
    assert codes([measurement(preempted=3, busy=0.1)], paced=True) == []


def test_other_processes_explain_the_rest() -> None:
    times = np.linspace(4, 9, 300).tolist()
    assert codes([measurement(times)]) == ["drift", "spread"]
    assert codes([measurement(times, preempted=200)]) == ["busy"]


def test_spread() -> None:
    times = np.random.default_rng(0).uniform(4, 8, 300).tolist()
    assert codes([measurement(times)]) == ["spread"]


def test_one_outlier_is_no_spread() -> None:
    times = measurement().times_ms.copy()
    times[7] = 900.0
    assert codes([measurement(times.tolist())]) == []


def test_moving_between_clusters() -> None:
    (found,) = findings([measurement(ran_on={1: 100, 7: 100})], QUIET)
    assert (found.code, found.hint) == ("migrated", "--cores big")
    assert codes([measurement(ran_on={6: 100, 7: 100})]) == []
    assert codes([measurement(ran_on={1: 1, 7: 199})]) == []


def test_threads_and_cores() -> None:
    assert codes([measurement()], threads=9) == ["oversubscribed", "mixed"]
    assert codes([measurement()], threads=4) == []
    assert codes([measurement()], threads=5) == ["mixed"]
    assert codes([measurement()], threads=2, cpus=(3, 7)) == ["mixed"]
    assert codes([measurement()], threads=3, cpus=(6, 7)) == ["oversubscribed"]


def test_governor() -> None:
    free = with_cpus(governor="schedutil")
    assert codes([measurement(before=free)]) == ["governor"]
    little = machine(
        cpus=tuple(
            replace(c, governor="schedutil" if c.number < 4 else "performance") for c in free.cpus
        )
    )
    assert codes([measurement(before=little)], cpus=(7,)) == []
    assert codes([measurement(before=with_cpus(governor=None))]) == []


def test_late_frames() -> None:
    assert codes([measurement(late=5, skipped=9)], paced=True) == ["late"]
    assert codes([measurement(late=1)], paced=True) == []


def test_few_runs() -> None:
    (found,) = findings([measurement(measurement().times_ms[:50].tolist())], QUIET)
    assert (found.code, found.hint) == ("few-runs", "--runs 1000")


def test_an_emulator_outdoes_all_else() -> None:
    assert codes([measurement(preempted=400)], emulated=True) == ["emulated"]


def test_answers_from_two_devices() -> None:
    other = machine(cpus=machine().cpus[:2], sensors=())
    assert codes([measurement(), measurement(before=other, after=other)]) == []


def test_a_device_that_tells_nothing() -> None:
    nothing = Machine((), (), {}, (), None, None)
    assert codes([measurement(before=nothing, after=nothing)], threads=4) == []
