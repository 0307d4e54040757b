"""What a device says about itself: processor, memory, system.

``remote/probe.sh`` prints the files; this module reads them. Anything may be missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from effc.devices.address import Address
from effc.devices.catalog import Cluster
from effc.devices.cores import core_name
from effc.devices.cpu import features_of, processor_name
from effc.devices.session import Session
from effc.devices.transport import Device

__all__ = ["Facts", "facts_of", "read_facts"]

_ARCHITECTURES = {"armv7l": "arm", "armv8l": "arm", "armv7": "arm", "arm64": "aarch64"}


@dataclass(frozen=True)
class Facts:
    """What a device says about itself; empty or 0 is unknown.

    Attributes:
        arch: ``aarch64``, ``arm``, ``x86_64`` ...
        os: ``android`` or ``linux``.
        model: Name of the phone or board.
        maker: Its maker, of a phone.
        soc: The chip.
        release: Android's version, or the name of a Linux distribution.
        api: Android's API level.
        abis: ABIs that Android runs.
        clusters: Kinds of cores, fastest first.
        features: LLVM features of all cores, each with its ``+`` or ``-``.
        gpu: The graphics processor.
        ram_bytes: Memory in total.
        free_bytes: Storage left where effc's files go.
        l1_bytes, l2_bytes: Data caches of one of the fastest cores.
        last_cache_bytes: The largest cache.
        cpu: The processor as it names itself, for measurements: model or core numbers.
        cpus: Numbers of its processors, slowest first.
    """

    arch: str
    os: str
    model: str = ""
    maker: str = ""
    soc: str = ""
    release: str = ""
    api: int = 0
    abis: tuple[str, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    features: tuple[str, ...] = ()
    gpu: str = ""
    ram_bytes: int = 0
    free_bytes: int = 0
    l1_bytes: int = 0
    l2_bytes: int = 0
    last_cache_bytes: int = 0
    cpu: str = ""
    cpus: tuple[int, ...] = ()

    @property
    def identity(self) -> str:
        """What measured times belong to: the processor, and the phone around it."""
        if self.os == "android":
            return f"{self.title} ({self.soc}): {self.cpu}"
        return self.cpu or f"{self.title} {self.soc} {self.arch}".strip()

    @property
    def title(self) -> str:
        """Maker and model."""
        known = self.model.lower().startswith(self.maker.lower())
        return self.model if known else f"{self.maker} {self.model}"

    def missing_features(self, features: Iterable[str]) -> list[str]:
        """Which of a target's features (``+dotprod`` ...) the processor lacks."""
        absent = {f"+{f[1:]}" for f in self.features if f[0] == "-"}
        return sorted(f[1:] for f in set(features) & absent)

    def runs(self, arch: str) -> bool:
        """Whether programs for an architecture run; 64-bit Arm may run 32-bit code."""
        if arch == "arm" and self.arch == "aarch64":
            return self.os != "android" or any(abi.startswith("armeabi") for abi in self.abis)
        return arch == self.arch


@cache
def facts_of(address: Address) -> Facts:
    """Ask a device, once in the life of this process.

    Raises:
        DeviceError: It cannot be reached.
    """
    with Device(address) as device:
        return read_facts(device.call(Session.probe))


def read_facts(text: str) -> Facts:
    """Facts from the output of ``probe.sh``."""
    parts = _parts(text)
    properties = dict(re.findall(r"^\[([^\]]+)\]: \[(.*)\]$", parts["properties"], re.MULTILINE))
    machine = parts["machine"].strip()
    arch = _ARCHITECTURES.get(machine, machine)
    clusters, cpus = _clusters(parts)
    caches = _caches(parts["caches"], cpus[-1] if cpus else 0)
    first = {key: value for _, key, value in reversed(list(_cpu_fields(parts["cpuinfo"])))}
    return Facts(
        arch=arch,
        os="android" if properties else "linux",
        model=properties.get("ro.product.model") or parts["model"].split("\n")[0].strip(),
        maker=properties.get("ro.product.manufacturer", ""),
        soc=_soc(properties) or first.get("Hardware", first.get("model name", "")),
        release=properties.get("ro.build.version.release") or _release(parts["release"]),
        api=int(properties.get("ro.build.version.sdk") or 0),
        abis=tuple(filter(None, properties.get("ro.product.cpu.abilist", "").split(","))),
        clusters=clusters,
        features=features_of(parts["cpuinfo"], arch),
        gpu=_gpu(parts["gpu"], properties),
        ram_bytes=_kilobytes(parts["memory"], r"^MemTotal:\s+(\d+)"),
        free_bytes=_kilobytes(parts["storage"], r"\s(\d+)\s+\d+%"),
        l1_bytes=caches.get(1, 0),
        l2_bytes=caches.get(2, 0),
        last_cache_bytes=max(caches.values(), default=0),
        cpus=cpus,
        cpu=processor_name(parts["cpuinfo"]),
    )


def _parts(text: str) -> dict[str, str]:
    pieces = re.split(r"^== (\w+)\n", text, flags=re.MULTILINE)
    found = dict(zip(pieces[1::2], pieces[2::2], strict=False))
    names = "machine system cpuinfo memory storage cores caches properties model release gpu"
    return {name: found.get(name, "").strip() for name in names.split()}


def _cpu_fields(cpuinfo: str) -> Iterable[tuple[int, str, str]]:
    """(processor, key, value) of ``/proc/cpuinfo``."""
    processor = 0
    for line in cpuinfo.splitlines():
        key, colon, value = (piece.strip() for piece in line.partition(":"))
        if key == "processor" and value.isdigit():
            processor = int(value)
        if colon:
            yield processor, key, value


def _clusters(parts: Mapping[str, str]) -> tuple[tuple[Cluster, ...], tuple[int, ...]]:
    """Kinds of cores, fastest first, and numbers of processors, slowest first."""
    names: dict[int, str] = {}
    numbers: dict[int, dict[str, str]] = {}
    for processor, key, value in _cpu_fields(parts["cpuinfo"]):
        numbers.setdefault(processor, {})[key] = value
    for processor, fields in numbers.items():
        if "CPU part" in fields:
            names[processor] = core_name(
                int(fields.get("CPU implementer", "0"), 0), int(fields["CPU part"], 0)
            )
        elif "model name" in fields:
            names[processor] = fields["model name"]
    khz: dict[int, int] = {}
    for line in parts["cores"].splitlines():
        word, midr, speed = [*line.split(), "-", "-"][:3]
        if midr.startswith("0x"):
            names[int(word)] = core_name(int(midr, 16) >> 24 & 0xFF, int(midr, 16) >> 4 & 0xFFF)
        khz[int(word)] = int(speed) if speed.isdigit() else 0
    kinds = Counter((khz.get(cpu, 0), name) for cpu, name in names.items())
    clusters = tuple(
        Cluster(name, count, round(speed / 1e6, 2))
        for (speed, name), count in sorted(kinds.items(), reverse=True)
    )
    return clusters, tuple(sorted({*names, *khz}, key=lambda cpu: (khz.get(cpu, 0), cpu)))


def _soc(properties: Mapping[str, str]) -> str:
    """The chip as Android 12 and newer call it, otherwise the board's platform."""
    model = properties.get("ro.soc.model", "")
    if model:
        return f"{properties.get('ro.soc.manufacturer', '')} {model}".strip()
    return properties.get("ro.board.platform") or properties.get("ro.hardware", "")


def _release(text: str) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', text, re.MULTILINE)
    return match[1] if match else ""


def _gpu(text: str, properties: Mapping[str, str]) -> str:
    """What the driver says; the name of the driver if it says nothing."""
    match = re.search(r"GLES: ([^,]*, [^,]*)", text)
    if match:
        return match[1]
    lines = [line for line in text.splitlines() if line and not line.startswith("DRIVER=")]
    if lines:
        return lines[0].strip()
    drivers = dict.fromkeys(re.findall(r"^DRIVER=(.*)$", text, re.MULTILINE))
    return properties.get("ro.hardware.egl") or ", ".join(drivers)


def _kilobytes(text: str, pattern: str) -> int:
    match = re.search(pattern, text, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _caches(text: str, cpu: int) -> dict[int, int]:
    """Data caches of a processor in bytes, by level."""
    units = {"K": 1 << 10, "M": 1 << 20}
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 and words[0] == str(cpu) and words[2] != "Instruction":
            digits, unit = words[3][:-1], words[3][-1]
            if digits.isdigit() and words[1].isdigit() and unit in units:
                found[int(words[1])] = int(digits) * units[unit]
    return found
