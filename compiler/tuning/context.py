"""What a measured time depends on besides the layer: target, device, threads, toolchain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import metadata, resources

from effc.devices.target import BASE, Target
from effc.tuning.testbed import AnyTestbed

__all__ = ["Context", "toolchain"]


class Context:
    """Identifies measurements that may be compared.

    Args:
        target: What the code was compiled for.
        threads: Threads that share a layer.
        cold: Whether the model's weights are too many to stay in a cache.
        testbed: What measures.

    Attributes:
        target: The target, ranked for a version of code that the testbed can measure.
        details: What ``digest`` stands for.
    """

    def __init__(self, target: Target, threads: int, cold: bool, testbed: AnyTestbed) -> None:
        self.target = _measured_on(target, testbed)
        self.threads = threads
        self.cold = cold
        self.testbed = testbed
        self.details: dict[str, object] = {
            "target": target.tvm(),
            "vector": [target.vector_bits, target.vector_registers],
            "caches": [target.l1_bytes, target.l2_bytes],
            "threads": threads,
            "cold": cold,
            "device": testbed.name,
            "toolchain": toolchain(),
        }
        if target.bare:
            self.details |= {"optimize": target.optimize, "clock": target.clock_mhz}
        if target.variants:
            self.details["version"] = self.target.common
        text = json.dumps(self.details, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def resembles(self, details: Mapping[str, object]) -> bool:
        """Whether another context's details differ only in what measured, and how it is built."""
        own = ("device", "cold", "version")
        both = (self.details, details)
        mine, other = ({k: v for k, v in d.items() if k not in own} for d in both)
        return mine == other


def _measured_on(target: Target, testbed: AnyTestbed) -> Target:
    """The target ranked for a version of code that a testbed can measure.

    That is the common one if its processor runs it, otherwise the best that it runs.
    """
    versions = {variant.name: variant.features for variant in target.variants}
    for name in (target.common, *versions):
        if not testbed.missing_features(versions.get(name, ())):
            return replace(target, common=name)
    return replace(target, common=BASE)


@cache
def toolchain() -> dict[str, str]:
    """Versions of what turns a configuration into code, kernel sources included."""
    digest = hashlib.sha256()
    sources = (("effc.kernels", ".py"), ("effc", "lower.py"), ("effc.bare", ".py"))
    for package, pattern in sources:
        files = sorted(resources.files(package).iterdir(), key=lambda f: f.name)
        for file in files:
            if file.name.endswith(pattern):
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return {"tvm": metadata.version("apache-tvm"), "kernels": digest.hexdigest()[:16]}
