"""``effc bench`` of artifacts for microcontrollers: instructions counted on an emulated board.

A count is exact and the same every time, so there is one inference, no warm-up and no statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from effc.cli.bench_tables import say_layers
from effc.cli.console import Console
from effc.errors import UsageError

if TYPE_CHECKING:
    from effc.artifact import Artifact
    from effc.cli.bench import BenchFlags

__all__ = ["counts_command"]


def counts_command(console: Console, artifacts: Sequence[Artifact], flags: BenchFlags) -> None:
    """Count what one inference of each artifact takes, and with ``--profile`` each layer.

    Raises:
        UsageError: A flag only makes sense where time passes.
    """
    timed = {"--fps": flags.fps, "--sustain": flags.sustain, "--threads": flags.threads}
    wrong = [flag for flag, value in timed.items() if value is not None]
    if wrong:
        raise UsageError("instructions are counted, no time passes", where=", ".join(wrong))
    entries = [_count(artifact, flags) for artifact in artifacts]
    console.result(entries[0] if len(entries) == 1 else {"artifacts": entries})
    for entry in entries:
        _say(console, entry)


def _count(artifact: Artifact, flags: BenchFlags) -> dict[str, Any]:
    from effc.devices.catalog import get_target
    from effc.execute import open_board

    manifest = artifact.manifest
    with open_board(artifact, flags.device) as board:
        count, stack = board.count()
        layers = board.profile(1, 0) if flags.profile else ()
        device = board.device
    clock = get_target(manifest["target"]).clock_mhz
    ms = count / clock / 1e3
    entry: dict[str, Any] = {
        "label": artifact.path.stem,
        "simulated": True,
        "instructions": count,
        "cycles": count,
        "instructions_per_mac": count / manifest["macs"] if manifest["macs"] else None,
        "clock_mhz": clock,
        "latency_ms": {
            **dict.fromkeys(("median", "min", "p90", "p99", "mean"), ms),
            "std": 0.0,
        },
        "runs": 1,
        "warmup": 0,
        "threads": 1,
        "device": device,
        "emulated": True,
        "stack_bytes": stack,
    }
    if flags.profile:
        known = {layer["name"]: layer for layer in manifest["layers"]}
        rows = [(layer, known.get(layer.name, {}), layer.instructions or 0) for layer in layers]
        entry["per_layer"] = [
            {
                "name": layer.name,
                "op": about.get("op", "copy"),
                "kernel": about.get("kernel", ""),
                "nodes": list(layer.nodes),
                "macs": about.get("macs", 0),
                "instructions": instructions,
                "ms": layer.ms,
                "share": instructions / max(count, 1),
            }
            for layer, about, instructions in rows
        ]
    return entry


def _say(console: Console, entry: Mapping[str, Any]) -> None:
    per_mac = entry["instructions_per_mac"]
    console.say(
        f"{entry['label']}: {entry['instructions']:,} instructions"
        + (f", {per_mac:.3f} per MAC" if per_mac else "")
        + f"; {entry['latency_ms']['median']:.4g} ms at {entry['clock_mhz']} MHz if each takes one "
        f"cycle; stack {entry['stack_bytes']} bytes ({entry['device']})"
    )
    if "per_layer" in entry:
        say_layers(
            console,
            entry,
            "",
            {"instructions": lambda row: f"{row['instructions']:,}"},
            {
                "per MAC": lambda row: (
                    f"{row['instructions'] / row['macs']:.2f}" if row["macs"] else ""
                )
            },
        )
