"""What ``effc bench`` prints for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from effc.cli.console import Console
from effc.devices.machine import cpu_ranges
from effc.figures import human_bytes, human_time

__all__ = ["say_benchmark", "say_layers"]

Column = Callable[[Mapping[str, Any]], str]
"""Text of a layer in a column."""


def say_benchmark(
    console: Console, entries: Sequence[Mapping[str, Any]], payload: Mapping[str, Any]
) -> None:
    """Tables and sentences for people; warnings on stderr.

    Args:
        console: Where to.
        entries: One description of a result per artifact.
        payload: The JSON object of all.
    """
    _say_times(console, entries)
    console.say(_machine_text(entries[0]["machine"]))
    for row in payload["ratios"]:
        console.say(
            f"{row['label']} takes {row['ratio']:.4g} times as long as {row['against']} "
            f"({row['low']:.4g} to {row['high']:.4g}, {row['confidence']:.0%}): {row['verdict']}"
        )
        for note in row["notes"]:
            console.note(f"note: {note}")
    if len(entries) > 2:
        console.say(f"fastest: {min(entries, key=lambda e: e['latency_ms']['median'])['label']}")
    for entry in entries:
        where = f"{entry['label']}: " if len(entries) > 1 else ""
        _say_series(console, where, entry["series"])
        for warning in entry["warnings"]:
            console.note(f"warning: {where}{warning['text']}. Try: {warning['hint']}")
    if payload.get("layers"):
        _say_side_by_side(console, entries, payload["layers"])
        return
    for entry in entries:
        if "per_layer" in entry:
            say_layers(
                console,
                entry,
                entry["label"],
                {"ms": lambda row: f"{row['ms']:.4f}"},
                {"GMAC/s": lambda row: f"{row['gmacs']:.1f}" if row["gmacs"] else ""},
            )


def _say_times(console: Console, entries: Sequence[Mapping[str, Any]]) -> None:
    keys = ("median", "min", "p90", "p99", "mean", "std")
    first = entries[0]
    pace = "" if first["fps"] is None else f", {first['fps']:g} per second"
    console.table(
        ["ms", *keys, "runs", "threads", "cores", "load", "first", "memory"],
        [
            [
                entry["label"],
                *(f"{entry['latency_ms'][key]:.4g}" for key in keys),
                entry["runs"],
                entry["threads"],
                entry["cores"],
                human_time(entry["load_ms"] / 1e3),
                human_time(entry["first_ms"] / 1e3),
                human_bytes(entry["peak_memory_bytes"]),
            ]
            for entry in entries
        ],
        title=f"{first['device']}, code {first['variant']}{pace}",
        right=[*keys, "runs", "threads", "load", "first", "memory"],
    )


def _machine_text(machine: Mapping[str, Mapping[str, Any]]) -> str:
    """Cores, governors, clocks and the warmest sensor in a line, before and after."""
    before = machine["before"]

    def clocks(facts: Mapping[str, Any]) -> str:
        known = [mhz for mhz in facts["mhz"] if mhz is not None]
        if not known:
            return "unknown"
        low, high = min(known), max(known)
        return f"{high:g} MHz" if low == high else f"{low:g} to {high:g} MHz"

    def hottest(facts: Mapping[str, Any]) -> str:
        known = [celsius for celsius in facts["celsius"].values() if celsius is not None]
        return f"{max(known):.1f} °C" if known else "unknown"

    def course(text: Callable[[Mapping[str, Any]], str]) -> str:
        return " -> ".join(dict.fromkeys(text(machine[when]) for when in ("before", "after")))

    cores = ", ".join(f"{c['name']} {cpu_ranges(c['cpus'])}" for c in before["clusters"])
    governor = ", ".join(before["governors"])
    return (
        f"cores {cores or 'unknown'}; governor {governor or 'unknown'}; "
        f"clock {course(clocks)}; hottest sensor {course(hottest)}"
    )


def _say_series(console: Console, where: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if len(rows) < 2:
        return
    first, last = rows[0]["median_ms"], rows[-1]["median_ms"]
    worst = max(row["median_ms"] for row in rows)
    console.say(
        f"{where}median {first:.4g} ms at the beginning, {last:.4g} at the end "
        f"({last / first:.2f} times), {worst:.4g} in the slowest window of {len(rows)}"
    )


def say_layers(
    console: Console,
    entry: Mapping[str, Any],
    title: str,
    before: Mapping[str, Column],
    after: Mapping[str, Column],
) -> None:
    """Table of an entry's layers.

    Args:
        console: Where to.
        entry: With ``per_layer``.
        title: Of the table.
        before, after: Columns of figures, on both sides of each layer's share, by heading.
    """
    share: dict[str, Column] = {"share": lambda row: f"{100 * row['share']:.1f} %"}
    figures = {**before, **share, **after}
    console.table(
        ["layer", "op", "kernel", *figures, "nodes"],
        [
            [
                *(row[key] for key in ("name", "op", "kernel")),
                *(text(row) for text in figures.values()),
                ", ".join(row["nodes"])[:60],
            ]
            for row in entry["per_layer"]
        ],
        title=title,
        right=list(figures),
    )


def _say_side_by_side(
    console: Console, entries: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Groups of layers with their times in all artifacts."""
    labels = [f"{entry['label']}, ms" for entry in entries]
    others = [f"{entry['label']}, times" for entry in entries[1:]]
    console.table(
        ["layers", *labels, *others, "nodes"],
        [
            [
                " | ".join(dict.fromkeys(ops for ops in row["ops"] if ops)),
                *("" if ms is None else f"{ms:.4f}" for ms in row["ms"]),
                *("" if ratio is None else f"{ratio:.3f}" for ratio in row["ratio"][1:]),
                ", ".join(row["nodes"])[:60],
            ]
            for row in rows
        ],
        right=[*labels, *others],
    )
