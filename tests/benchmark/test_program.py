"""The benchmark program: exact times under a virtual clock, facts from synthetic sys/ trees."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from scipy import stats
from toy_model import toy_object, toy_program

from effc.benchmark.measurement import Measurement, Plan
from effc.devices.catalog import get_target
from effc.devices.execution import Process, run_program
from effc.devices.machine import Machine, select_cores
from effc.devices.qemu import qemu_command
from effc.emulate import loader_program
from effc.errors import UsageError
from effc.link import link_runner

from . import sysfs
from .conftest import Ask

MS = 1_000_000
Timed = Callable[[Sequence[int]], Ask]

# Quantiles of a log-normal distribution with a median of 5 ms, in random order.
SHARES = (np.arange(500) + 0.5) / 500
TABLE = np.random.default_rng(0).permutation(
    (stats.lognorm(0.3, scale=5.0).ppf(SHARES) * MS).astype(int)
)


@pytest.fixture(scope="module")
def ask(timed: Timed) -> Ask:
    return timed(TABLE.tolist())


def measure(ask: Ask, plan: Plan) -> Measurement:
    return Measurement.of(ask(*plan.arguments()))


def test_times_are_those_of_the_model(ask: Ask) -> None:
    """The warm-up takes the first entries of the table; the first inference is told apart."""
    found = measure(ask, Plan(runs=500, warmup=20))
    expected = np.roll(TABLE, -20) / MS
    np.testing.assert_array_equal(found.times_ms, expected)
    assert found.first_ms == TABLE[0] / MS
    assert found.load_ms == 0.0
    assert (found.runs, found.late, found.skipped) == (500, 0, 0)
    assert found.median_ms == pytest.approx(5.0, rel=1e-3)
    assert sum(found.ran_on.values()) == 500


def test_without_warm_up_the_first_inference_counts(ask: Ask) -> None:
    found = measure(ask, Plan(runs=3, warmup=0))
    assert found.first_ms == found.times_ms[0] == TABLE[0] / MS
    assert found.peak_bytes > 0


def test_durations(ask: Ask) -> None:
    """Inferences begin while there is time, are enough, and end at the limit."""
    ends = np.cumsum(TABLE)
    timed = measure(ask, Plan(seconds=0.1, warmup=0))
    assert timed.runs == int(np.searchsorted(ends, 100 * MS)) + 1
    assert measure(ask, Plan(seconds=0.1, least=60, warmup=0)).runs == 60
    limited = measure(ask, Plan(seconds=0.1, least=60, limit_s=0.2, warmup=0))
    assert limited.runs == int(np.searchsorted(ends, 200 * MS)) + 1
    assert measure(ask, Plan(runs=4, seconds=10.0, warmup=0)).runs == 4
    assert measure(ask, Plan(seconds=0.1, least=60, limit_s=0.001, warmup=0)).runs == 1


def test_paced_runs_leave_periods_out(timed: Timed) -> None:
    """One inference per 10 ms; the third takes 25 ms, so the periods at 30 and 40 ms get none."""
    found = timed([2 * MS, 3 * MS, 25 * MS, 4 * MS])(
        "--machine", "--runs", 5, "--period-us", 10_000
    )
    assert [start // MS for start in found["starts_ns"]] == [0, 10, 20, 50, 60]
    assert [took // MS for took in found["times_ns"]] == [2, 3, 25, 4, 2]
    assert (found["late"], found["skipped"]) == (1, 2)


def test_the_warm_up_is_paced_too(timed: Timed) -> None:
    """Behind two periods of warm-up the third begins; the first inference is not among the runs."""
    ask = timed([7 * MS, 2 * MS, 3 * MS])
    found = ask("--runs", 2, "--warmup", 2, "--period-us", 10_000)
    assert found["times_ns"] == [3 * MS, 7 * MS]
    assert [start // MS for start in found["starts_ns"]] == [0, 10]
    assert found["first_ns"] == 7 * MS


def test_windows(ask: Ask) -> None:
    """Rows of the series cover all inferences, each with exact quantiles of its own."""
    found = measure(ask, Plan(runs=400, warmup=0, window_s=0.1))
    assert sum(w.runs for w in found.windows) == 400
    begin = 0
    for window in found.windows:
        times = np.sort(TABLE[begin : begin + window.runs]) / MS
        last = len(times) - 1
        assert window.min_ms == times[0]
        assert window.p10_ms == times[last * 100 // 1000]
        assert window.median_ms == times[last * 500 // 1000]
        assert window.p90_ms == times[last * 900 // 1000]
        assert window.max_ms == times[-1]
        assert window.mean_ms == pytest.approx(times.mean(), abs=1e-5)
        assert window.start_s == pytest.approx(TABLE[:begin].sum() / 1e9)
        begin += window.runs
        assert begin == 400 or times.sum() >= 100


def test_a_sample_of_very_many_times(timed: Timed) -> None:
    """Beyond 65536 times a uniform sample is kept: quantiles within sampling error."""
    table = np.random.default_rng(1).permutation(np.arange(1, 1001)).tolist()
    found = Measurement.of(timed(table)("--machine", "--runs", 300_000))
    assert found.runs == 300_000
    assert len(found.times_ms) == 65_536
    assert stats.kstest(found.times_ms * 1e6, stats.randint(1, 1001).cdf).pvalue > 1e-3


def test_profile_gives_medians_of_steps(timed: Timed) -> None:
    answer = timed([7, 7, 9, 100, 8])("--runs", 5, "--profile")
    assert answer["steps_ns"] == [8]


def test_steps_are_only_profiled_when_asked(ask: Ask) -> None:
    assert "steps_ns" not in ask("--runs", 1)
    assert "before" not in ask("--runs", 1)


def facts(ask: Ask, root: Path) -> Machine:
    return Machine.of(ask("--machine", "--root", root)["before"])


def test_a_phone(ask: Ask, tmp_path: Path) -> None:
    machine = facts(ask, sysfs.phone(tmp_path))
    assert [(c.name, c.cpus) for c in machine.clusters()] == [
        ("little", (0, 1, 2, 3)),
        ("mid", (4, 5, 6)),
        ("big", (7,)),
    ]
    assert machine.cpus[7].highest_khz == 2_900_000
    assert machine.cpus[0].governor == "schedutil"
    assert [(s.name, s.celsius) for s in machine.sensors] == [
        ("cpu-little (0)", 41.5),
        ('skin "top" (2)', -2.0),
    ]
    assert machine.cooling == {}
    assert machine.load == 0.25
    hottest = machine.hottest()
    assert hottest is not None
    assert hottest.name == "cpu-little (0)"


def test_a_board_without_capacities(ask: Ask, tmp_path: Path) -> None:
    """Clusters follow from clocks; boosted cores of a cluster stay in it; firmware bits."""
    sysfs.phone(tmp_path, clusters=[(2, 0, 1_500_000), (1, 0, 2_300_000), (1, 0, 2_400_000)])
    for cpu in range(4):
        (tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity").unlink()
    sysfs.write(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"})
    machine = facts(ask, tmp_path)
    assert [(c.name, c.cpus) for c in machine.clusters()] == [("little", (0, 1)), ("big", (2, 3))]
    assert machine.throttle_bits == 0x50005


def test_nothing_is_known(ask: Ask, tmp_path: Path) -> None:
    machine = facts(ask, tmp_path)
    assert machine.cpus == machine.sensors == ()
    assert machine.load is machine.throttle_bits is machine.hottest() is None
    assert machine.describe()["mhz"] == []


def test_sensors_during_a_run(ask: Ask, tmp_path: Path) -> None:
    sysfs.phone(tmp_path)
    answer = ask("--machine", "--root", tmp_path, "--runs", 60, "--window-ms", 100)
    window = Measurement.of(answer).windows[0]
    assert window.mhz == (900.0,) * 4 + (1200.0,) * 3 + (1450.0,)
    assert window.celsius == (41.5, -2.0)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("all", ()),
        ("big", (7,)),
        ("little", (0, 1, 2, 3)),
        ("mid+big", (4, 5, 6, 7)),
        ("1-3,6", (1, 2, 3, 6)),
        ("0x81", (0, 7)),
        ("5", (5,)),
    ],
)
def test_cores_by_name(ask: Ask, tmp_path: Path, text: str, cpus: tuple[int, ...]) -> None:
    machine = usable(facts(ask, sysfs.phone(tmp_path)), range(8))
    assert select_cores(machine, text) == cpus


def usable(machine: Machine, allowed: Sequence[int]) -> Machine:
    from dataclasses import replace

    return replace(machine, allowed=tuple(allowed))


@pytest.mark.parametrize("text", ["huge", "big+huge", "", "3-", "0x", "-1", "a", "1;rm", "0x0"])
def test_wrong_cores(ask: Ask, tmp_path: Path, text: str) -> None:
    machine = usable(facts(ask, sysfs.phone(tmp_path)), range(8))
    with pytest.raises(UsageError, match="cores"):
        select_cores(machine, text)


def test_cores_that_are_not_allowed(ask: Ask, tmp_path: Path) -> None:
    machine = usable(facts(ask, sysfs.phone(tmp_path)), range(4))
    with pytest.raises(UsageError, match="does not let") as caught:
        select_cores(machine, "mid")
    assert caught.value.got == "4-6"
    assert caught.value.expected == "0-3"


def test_one_kind_of_cores(ask: Ask, tmp_path: Path) -> None:
    machine = facts(ask, sysfs.phone(tmp_path, clusters=[(4, 1024, 2_000_000)]))
    assert [(c.name, c.cpus) for c in machine.clusters()] == [("all", (0, 1, 2, 3))]
    with pytest.raises(UsageError, match="one kind of cores"):
        select_cores(machine, "big")


@pytest.mark.parametrize("name", ["android", "android-armv7", "android-x86_64"])
def test_on_other_processors(name: str, tmp_path: Path) -> None:
    """Real clocks and sleeps of emulated processors: runs keep their periods, windows add up."""
    target = get_target(name)
    emulator = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "x86_64": "qemu-x86_64"}[target.arch]
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed")
    stages = toy_object(target, tmp_path)
    built = link_runner(toy_program(), [stages], target, tmp_path / "runner")
    plan = Plan(runs=12, warmup=1, fps=50.0, window_s=0.1)
    place = Process([*qemu_command(target), str(built)])
    answer = run_program(place, plan.arguments())
    found = Measurement.of(answer)
    starts = np.asarray(answer["starts_ns"]) / (20 * MS)
    assert found.runs == len(starts) == 12
    assert len(set(np.floor(starts))) == 12
    assert int(np.floor(starts[-1])) == 11 + found.skipped
    assert sum(window.runs for window in found.windows) == 12
    assert found.first_ms > 0 < found.load_ms
    assert sum(found.ran_on.values()) == 12
    assert found.peak_bytes > 100_000


@pytest.mark.parametrize("name", ["android", "android-x86_64"])
def test_large_pages(name: str) -> None:
    """Android 15 may have pages of 16 kB: the program's segments must fit them."""
    with loader_program(get_target(name)).open("rb") as stream:
        segments = [s for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_LOAD"]
        assert all(s["p_align"] >= 16384 for s in segments)
        assert all(s["p_vaddr"] % 16384 == s["p_offset"] % 16384 for s in segments)
