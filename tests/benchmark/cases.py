"""Measurements and devices made up for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from effc.benchmark.measurement import Measurement, Plan, Window
from effc.benchmark.session import Result, Subject
from effc.devices.machine import Cpu, Machine, Sensor


def machine(**changes: Any) -> Machine:
    """A quiet phone with four little and four big cores at a fixed clock."""
    cpus = tuple(
        Cpu(i, 400 if i < 4 else 1024, 2_000_000, 2_000_000, 2_000_000, "performance", 0)
        for i in range(8)
    )
    quiet = Machine(cpus, (Sensor("cpu (0)", 40.0),), {}, tuple(range(8)), 0.1, 0)
    return replace(quiet, **changes)


def with_cpus(**changes: Any) -> Machine:
    """The phone with other facts about every core."""
    return machine(cpus=tuple(replace(cpu, **changes) for cpu in machine().cpus))


def measurement(times_ms: Sequence[float] | None = None, **changes: Any) -> Measurement:
    """A process on a big core with about 1 % of noise around 5 ms."""
    if times_ms is None:
        times_ms = np.random.default_rng(0).normal(5.0, 0.05, 200).tolist()
    times = np.asarray(times_ms)
    quiet = Measurement(
        times_ms=times,
        runs=len(times),
        load_ms=1.0,
        first_ms=9.0,
        peak_bytes=5_000_000,
        preempted=0,
        busy=1.0,
        late=0,
        skipped=0,
        ran_on={7: len(times)},
        variant="base",
        windows=(),
        before=machine(),
        after=machine(),
    )
    return replace(quiet, **changes)


def windows(count: int = 8) -> tuple[Window, ...]:
    """A series that becomes slower and hotter."""
    return tuple(
        Window(
            i,
            20,
            5 + i,
            4 + i,
            4.5 + i,
            5 + i,
            6 + i,
            9 + i,
            (None,) * 4 + (2000.0 - i,) * 4,
            (40.0 + i,),
        )
        for i in range(count)
    )


LAYERS = [
    {
        "name": "k<0>",
        "op": "Conv",
        "kernel": "conv_direct",
        "nodes": ["conv&1"],
        "macs": 1000,
        "ms": 0.5,
        "share": 1.0,
        "gmacs": 2.0,
    }
]


def result(label: str = "net", rounds: Sequence[Measurement] = (), **settings: Any) -> Result:
    """An artifact's result; ``settings`` are the subject's, and ``plan``."""
    plan = settings.pop("plan", Plan(runs=200))
    manifest = {"name": "net", "target": "android", "layers": [], "steps": [], "threads": 1}
    fields = {"device": "local", "threads": 1, **settings}
    subject = Subject(label, f"out/{label}", manifest, lambda words, timeout_s: {}, **fields)
    return Result(subject, plan, list(rounds) or [measurement()])
