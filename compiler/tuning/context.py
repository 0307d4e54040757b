"""What a measured time depends on besides the layer: target, device, threads, toolchain."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from functools import cache
from importlib import metadata, resources
from pathlib import Path

from effc.devices.cpu import processor_name
from effc.devices.host import missing_features
from effc.devices.target import BASE, Target

__all__ = ["Context", "device_name", "measured_here", "toolchain"]


class Context:
    """Identifies measurements that may be compared.

    Args:
        target: What the code was compiled for.
        threads: Threads that share a layer.
        cold: Whether the model's weights are too many to stay in a cache.
        device: Name of the machine that measures.
    """

    def __init__(self, target: Target, threads: int, cold: bool, device: str) -> None:
        self.threads = threads
        self.cold = cold
        self.details: dict[str, object] = {
            "target": target.tvm(),
            "vector": [target.vector_bits, target.vector_registers],
            "caches": [target.l1_bytes, target.l2_bytes],
            "threads": threads,
            "cold": cold,
            "device": device,
            "toolchain": toolchain(),
        }
        if target.variants:
            self.details["version"] = measured_here(target).common
        text = json.dumps(self.details, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]


def measured_here(target: Target) -> Target:
    """The target ranked for a version of code that this machine can measure.

    That is the common one if the processor runs it, otherwise the best that it runs.
    """
    versions = {variant.name: variant.features for variant in target.variants}
    for name in (target.common, *versions):
        if not missing_features(versions.get(name, ())):
            return replace(target, common=name)
    return replace(target, common=BASE)


def device_name() -> str:
    """CPU model of this machine."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return processor_name(cpuinfo)


@cache
def toolchain() -> dict[str, str]:
    """Versions of what turns a configuration into code, kernel sources included."""
    digest = hashlib.sha256()
    for package, pattern in (("effc.kernels", ".py"), ("effc", "lower.py")):
        files = sorted(resources.files(package).iterdir(), key=lambda f: f.name)
        for file in files:
            if file.name.endswith(pattern):
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return {"tvm": metadata.version("apache-tvm"), "kernels": digest.hexdigest()[:16]}
