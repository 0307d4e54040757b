"""What a device says about its processors, clocks and temperatures, and groups of its cores.

The facts come from the benchmark program (``runtimes/runner/machine.c``), which reads them on the
device. Any of them may be missing: phones hide files, virtual machines have few.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effc.errors import UsageError

__all__ = ["Cluster", "Cpu", "Machine", "Sensor", "cpu_ranges", "select_cores"]

_ALIKE = 0.9
"""Cores whose speeds differ by less belong together: single cores of a cluster may be boosted."""
_MASK_CPUS = 64
_LIST = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", re.ASCII)


@dataclass(frozen=True)
class Cpu:
    """One processor; what is not known is ``None``.

    Attributes:
        number: As the operating system counts.
        capacity: Relative computing power, 1024 for the fastest of the device.
        highest_khz, limit_khz, khz: Clock: what the hardware can, what is allowed now, what it is.
        governor: Who chooses the clock.
        throttled: How often the hardware slowed down for heat since it started (x86).
    """

    number: int
    capacity: int | None
    highest_khz: int | None
    limit_khz: int | None
    khz: int | None
    governor: str | None
    throttled: int | None


@dataclass(frozen=True)
class Sensor:
    """A thermal zone."""

    name: str
    celsius: float | None


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind: ``little``, ``mid``, ``big``, or ``all`` if there is one kind only."""

    name: str
    cpus: tuple[int, ...]
    highest_khz: int | None


@dataclass(frozen=True)
class Machine:
    """A device at one moment.

    Attributes:
        cpus: Its processors.
        sensors: Thermal zones.
        cooling: Cooling devices in action: names with their states above 0.
        allowed: Processors that the benchmark may use.
        load: Processes that ran or waited, mean over a minute.
        throttle_bits: What the firmware of a Raspberry Pi reports (0: all is well).
    """

    cpus: tuple[Cpu, ...]
    sensors: tuple[Sensor, ...]
    cooling: Mapping[str, int]
    allowed: tuple[int, ...]
    load: float | None
    throttle_bits: int | None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Machine:
        """From what the benchmark program prints as ``before`` and ``after``."""
        return cls(
            cpus=tuple(_cpu(entry) for entry in facts["cpus"]),
            sensors=tuple(_sensor(zone) for zone in facts["zones"]),
            cooling={
                f"{device['type'] or 'cooling device'} ({device['device']})": device["state"]
                for device in facts["cooling"]
                if device["state"] > 0
            },
            allowed=tuple(facts["allowed"]),
            load=float(facts["load"].split()[0]) if facts["load"] else None,
            throttle_bits=int(facts["raspberry_pi"], 16) if facts["raspberry_pi"] else None,
        )

    def clusters(self) -> tuple[Cluster, ...]:
        """Kinds of cores, slowest first."""
        groups: list[list[Cpu]] = []
        for cpu in sorted(self.cpus, key=lambda cpu: (_speed(cpu), cpu.number)):
            if groups and _speed(cpu) * _ALIKE <= _speed(groups[-1][0]):
                groups[-1].append(cpu)
            else:
                groups.append([cpu])
        if len(groups) < 2:
            return tuple(_cluster("all", group) for group in groups)
        names = ["little", *("mid" for _ in groups[2:]), "big"]
        if len(groups) > 3:  # several kinds in the middle are told apart by number
            names[1:-1] = [f"mid{i}" for i in range(1, len(groups) - 1)]
        return tuple(_cluster(name, group) for name, group in zip(names, groups, strict=True))

    def hottest(self) -> Sensor | None:
        """The warmest zone."""
        known = [sensor for sensor in self.sensors if sensor.celsius is not None]
        return max(known, key=lambda sensor: sensor.celsius or 0.0, default=None)

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "clusters": [
                {"name": cluster.name, "cpus": list(cluster.cpus)} for cluster in self.clusters()
            ],
            "governors": sorted({cpu.governor for cpu in self.cpus if cpu.governor}),
            "mhz": [_mhz(cpu.khz) for cpu in self.cpus],
            "limit_mhz": [_mhz(cpu.limit_khz) for cpu in self.cpus],
            "highest_mhz": [_mhz(cpu.highest_khz) for cpu in self.cpus],
            "celsius": {sensor.name: sensor.celsius for sensor in self.sensors},
            "cooling": dict(self.cooling),
            "load": self.load,
        }


def _cpu(entry: Mapping[str, Any]) -> Cpu:
    return Cpu(
        number=entry["cpu"],
        capacity=entry["capacity"],
        highest_khz=entry["highest_khz"],
        limit_khz=entry["limit_khz"],
        khz=entry["khz"],
        governor=entry["governor"],
        throttled=entry["throttled"],
    )


def _sensor(zone: Mapping[str, Any]) -> Sensor:
    """Zones of one type are told apart by number; a few drivers give whole degrees."""
    value = zone["milli_c"]
    celsius = None if value is None else value / 1000 if abs(value) >= 1000 else float(value)
    return Sensor(f"{zone['type'] or 'zone'} ({zone['zone']})", celsius)


def _speed(cpu: Cpu) -> float:
    return float(cpu.capacity or cpu.highest_khz or 0)


def _cluster(name: str, cpus: list[Cpu]) -> Cluster:
    known = [cpu.highest_khz for cpu in cpus if cpu.highest_khz]
    return Cluster(name, tuple(sorted(cpu.number for cpu in cpus)), max(known, default=None))


def _mhz(khz: int | None) -> float | None:
    return None if khz is None else khz / 1000


def select_cores(machine: Machine, text: str) -> tuple[int, ...]:
    """Processors by name or number; none for ``all``, which pins nothing.

    Args:
        machine: Whose.
        text: ``all``, names of clusters (``big``, ``little+mid``), numbers (``0-3,7``) or a
            mask (``0xf0``).

    Raises:
        UsageError: There are no such cores, or the benchmark may not use them.
    """
    clusters = {cluster.name: cluster.cpus for cluster in machine.clusters()}
    if text == "all":
        return ()
    try:
        chosen = _numbers(text, clusters)
    except (KeyError, ValueError):
        known = ", ".join(f"{n} ({cpu_ranges(cpus)})" for n, cpus in clusters.items() if n != "all")
        raise UsageError(
            "no such cores",
            where=f"--cores {text}",
            expected=f"all, {known}{', ' if known else ''}numbers (0-3,7) or a mask (0xf0)",
            hint="" if known else "the device tells of one kind of cores only",
        ) from None
    usable = set(machine.allowed) if machine.allowed else {cpu.number for cpu in machine.cpus}
    missing = sorted(set(chosen) - {cpu for cpu in usable if cpu < _MASK_CPUS})
    if missing or not chosen:
        raise UsageError(
            "the device does not let the benchmark use these cores",
            where=f"--cores {text}",
            expected=cpu_ranges(tuple(sorted(usable))),
            got=cpu_ranges(tuple(missing)) or "none",
        )
    return tuple(sorted(chosen))


def _numbers(text: str, clusters: Mapping[str, tuple[int, ...]]) -> set[int]:
    """Raises KeyError or ValueError where nothing is meant."""
    if text.startswith("0x"):
        mask = int(text, 16)
        return {bit for bit in range(mask.bit_length()) if mask >> bit & 1}
    if _LIST.fullmatch(text):
        ends = [part.partition("-") for part in text.split(",")]
        return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}
    return {cpu for name in text.split("+") for cpu in clusters[name]}


def cpu_ranges(cpus: Sequence[int]) -> str:
    """``0-3,7`` from ascending numbers."""
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][-1] == cpu - 1:
            parts[-1].append(cpu)
        else:
            parts.append([cpu])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
