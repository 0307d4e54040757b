"""``effc devices``."""

from __future__ import annotations

from collections.abc import Sequence

from effc.cli.console import Console
from effc.devices.probe import Facts
from effc.figures import human_bytes

__all__ = ["devices_command"]


def devices_command(console: Console, wanted: Sequence[str], *, clean: bool) -> None:
    """Everything that --device takes, and what connected devices say about themselves."""
    from effc.inventory import clean_devices, find_devices

    found = find_devices(wanted)
    if clean:
        clean_devices(found)
    console.result({"devices": [device.describe() for device in found], "cleaned": clean})
    console.table(
        ["device", "available", "what", "target"],
        [
            [d.name, "yes" if d.available else f"no: {d.hint}", d.summary, d.target or ""]
            for d in found
        ],
    )
    for device in found:
        if device.facts is not None:
            console.say(f"{device.name}: {_text(device.facts)}")
        if device.written:
            console.say(f"{device.name}: target {device.target} was added to {device.written}")


def _text(facts: Facts) -> str:
    """Facts as a few lines."""
    system = f"Android {facts.release} (API {facts.api})" if facts.api else facts.release
    cores = ", ".join(f"{c.count} x {c.core} {c.ghz:g} GHz" for c in facts.clusters)
    features = " ".join(f[1:] for f in facts.features if f[0] == "+")
    parts = (
        ("chip", facts.soc),
        ("system", system),
        ("cores", cores or facts.arch),
        ("features", features),
        ("GPU", facts.gpu),
        ("memory", human_bytes(facts.ram_bytes) if facts.ram_bytes else ""),
        ("free storage", human_bytes(facts.free_bytes) if facts.free_bytes else ""),
    )
    return "".join(f"\n  {name}: {value}" for name, value in parts if value)
