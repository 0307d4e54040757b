"""The page of a benchmark: figures, doubts, and plots as positions for the template.

Rendered from the JSON object alone. Colours go by subject, in the order of the session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effc.devices.machine import cpu_ranges
from effc.figures import human_time
from effc.report_page import render_page
from effc.report_plot import Scale

__all__ = ["render_bench"]

_WIDTH = 960
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 14, 44
_COLORS = 6
_BINS = 80
_SHARED = 8.0
"""Distributions lie on one axis if no median is further from another."""
_ROW = 74
"""Height of one distribution."""
_INNER_TOP = 22


def render_bench(payload: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> str:
    """The page as HTML.

    Args:
        payload: What ``effc bench --json`` prints.
        old: The report that it was compared with; drawn beside.
    """
    entries = list(payload.get("artifacts", [payload]))
    against = {row["against"] for row in payload["ratios"]}
    renamed = [
        {**entry, "label": f"{entry['label']} (report)"}
        for entry in (old.get("artifacts", [old]) if old else [])
    ]
    earlier = [entry for entry in renamed if entry["label"] in against]
    series = [entry for entry in entries if len(entry["series"]) > 1]
    return render_page(
        "bench.html.j2",
        entries=[
            {**entry, "color": i % _COLORS, "layer_bars": _layer_bars(entry)}
            for i, entry in enumerate(entries)
        ],
        title=" and ".join(entry["label"] for entry in entries[:3])
        + (f" and {len(entries) - 3} more" if len(entries) > 3 else ""),
        ratios=payload["ratios"],
        forest=_forest(payload["ratios"], entries),
        distributions=_distributions([*entries, *earlier]),
        courses=[_course(entry, entries.index(entry)) for entry in entries if not entry["series"]],
        rounds=_rounds(entries),
        series=[_series(entry, entries.index(entry)) for entry in series],
        groups=_groups(payload.get("layers", [])),
        machine=[_machine_rows(entry) for entry in entries[:1]],
    )


def _frame(height: float, bottom: float = _BOTTOM, top: float = _TOP) -> dict[str, Any]:
    return {
        "width": _WIDTH,
        "height": height,
        "left": _LEFT,
        "right": _WIDTH - _RIGHT,
        "top": top,
        "bottom": height - bottom,
        "x_ticks": [],
        "y_ticks": [],
        "x_label": "",
        "y_label": "",
    }


def _x_scale(low: float, high: float) -> Scale:
    return Scale(low, high, _LEFT + 4, _WIDTH - _RIGHT - 4)


def _distributions(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Histograms, one below the other, on one axis where their times are alike."""
    medians = [entry["latency_ms"]["median"] for entry in entries]
    if max(medians) <= _SHARED * min(medians):
        return [_histograms(list(enumerate(entries)))]
    return [_histograms([(i, entry)]) for i, entry in enumerate(entries)]


def _histograms(numbered: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    low, high = _window([entry for _, entry in numbered])
    edges = np.linspace(low, high, _BINS + 1)
    height = _TOP + _ROW * len(numbered) + _BOTTOM
    x = _x_scale(low, high)
    unit, factor = _unit(high)
    width = round(max(x(float(edges[1])) - x(low) - 0.6, 0.6), 2)
    rows = []
    for row, (color, entry) in enumerate(numbered):
        times = np.asarray(entry["times_ms"])
        counts, _ = np.histogram(times, edges)
        base = _TOP + _ROW * (row + 1)
        y = Scale(0.0, float(counts.max(initial=1)), base, base - _ROW + _INNER_TOP)
        outside = float(np.mean((times > high) | (times < low)))
        values = entry["latency_ms"]
        rows.append(
            {
                "color": color % _COLORS,
                "label": entry["label"],
                "base": base,
                "top": base - _ROW + _INNER_TOP,
                "text": "median {} · p90 {} · p99 {}".format(
                    *(human_time(values[key] / 1e3) for key in ("median", "p90", "p99"))
                )
                + (f" · {outside:.1%} off the plot" if outside else ""),
                "median": x(min(values["median"], high)),
                "tails": [x(values[key]) for key in ("p90", "p99") if values[key] <= high],
                "bars": [
                    {
                        "x": x(float(edges[i])),
                        "width": width,
                        "y": y(float(count)),
                        "height": round(base - y(float(count)), 2),
                        "label": f"{count} between {edges[i] * factor:.4g} and "
                        f"{edges[i + 1] * factor:.4g} {unit}",
                    }
                    for i, count in enumerate(counts)
                    if count
                ],
            }
        )
    return {
        **_frame(height),
        "x_ticks": _ticks(x, factor),
        "x_label": f"time of one inference, {unit}",
        "rows": rows,
    }


def _window(entries: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Times worth drawing: from the shortest to a little beyond the 99th percentiles.

    Single times far out (another process ran) would squeeze all others into one column.
    """
    low = min(float(np.min(entry["times_ms"])) for entry in entries)
    high = low
    for entry in entries:
        least, p90, p99 = np.quantile(entry["times_ms"], (0.0, 0.9, 0.99))
        high = max(high, float(min(p99, p90 + 2 * (p90 - least))))
    room = max((high - low) * 0.04, 0.005 * high)
    return max(low - room, 0.0), high + room


def _unit(high_ms: float) -> tuple[str, float]:
    """A unit in which a number of milliseconds is not tiny, and how many make a millisecond."""
    return ("ms", 1.0) if high_ms >= 0.5 else ("µs", 1e3)


def _ticks(scale: Scale, factor: float) -> list[dict[str, Any]]:
    """Round numbers of another unit on a scale of milliseconds."""
    shown = Scale(scale.low * factor, scale.high * factor, scale.start, scale.end)
    return shown.ticks()


def _course(entry: Mapping[str, Any], color: int) -> dict[str, Any]:
    """Single times in the order of the inferences."""
    times = entry["times_ms"]
    low, high = _window([entry])
    x = _x_scale(0, max(len(times) - 1, 1))
    frame = _frame(200)
    y = Scale(low, high, frame["bottom"], frame["top"])
    unit, factor = _unit(high)
    return {
        **frame,
        "color": color % _COLORS,
        "label": entry["label"],
        "y_ticks": _ticks(y, factor),
        "y_label": unit,
        "x_label": "inferences in order"
        + (f" ({len(times)} of {entry['runs']})" if entry["runs"] > len(times) else ""),
        "dots": [{"x": x(i), "y": y(min(max(ms, low), high))} for i, ms in enumerate(times)],
        "radius": 1.4 if len(times) > 300 else 2.4,
    }


def _rounds(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Medians of processes, relative to the subject's own: drift hits all, noise hits one."""
    count = len(entries[0]["rounds_ms"])
    if count < 3:
        return None
    relative = [
        np.asarray(entry["rounds_ms"]) / float(np.median(entry["rounds_ms"])) for entry in entries
    ]
    low, high = min(float(r.min()) for r in relative), max(float(r.max()) for r in relative)
    room = max((high - low) * 0.1, 0.005)
    frame = _frame(220)
    x, y = _x_scale(1, count), Scale(low - room, high + room, frame["bottom"], frame["top"])
    lines = []
    for i, (entry, values) in enumerate(zip(entries, relative, strict=True)):
        points = [
            {"x": x(n + 1), "y": y(float(v)), "label": f"{entry['label']}: {ms:.4g} ms"}
            for n, (v, ms) in enumerate(zip(values, entry["rounds_ms"], strict=True))
        ]
        lines.append({"color": i % _COLORS, "points": points, "line": _line(points)})
    ticks = [tick for tick in x.ticks() if float(tick["text"]).is_integer()]
    return {
        **frame,
        "lines": lines,
        "x_ticks": ticks,
        "y_ticks": y.ticks(),
        "x_label": "round",
        "y_label": "of its median",
    }


def _forest(
    ratios: Sequence[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Ratios with their intervals beside the line of no difference."""
    if not ratios:
        return None
    labels = [entry["label"] for entry in entries]
    low = min(1.0, *(row["low"] for row in ratios))
    high = max(1.0, *(row["high"] for row in ratios))
    room = max((high - low) * 0.08, 0.01)
    height = _TOP + 40 * len(ratios) + _BOTTOM
    x = _x_scale(max(low - room, 0.0), high + room)
    rows = [
        {
            **row,
            "color": labels.index(row["label"]) % _COLORS,
            "at": x(row["ratio"]),
            "from": x(row["low"]),
            "to": x(row["high"]),
            "y": _TOP + 40 * i + 27,
        }
        for i, row in enumerate(ratios)
    ]
    return {
        **_frame(height),
        "rows": rows,
        "one": x(1.0),
        "x_ticks": x.ticks(),
        "x_label": "times as long (left of 1: faster)",
    }


def _series(entry: Mapping[str, Any], color: int) -> dict[str, Any]:
    """Latency over time, and clocks and temperatures below it."""
    rows = _joined(entry["series"])
    ends = [row["at"] for row in rows]
    x = _x_scale(0.0, max(ends))
    highest = float(np.quantile([row["p90_ms"] for row in rows], 0.98))
    top = 1.1 * max(highest, entry["latency_ms"]["median"])
    frame = _frame(280)
    y = Scale(0.0, top, frame["bottom"], frame["top"])
    unit, factor = _unit(top)

    def points(key: str) -> list[dict[str, Any]]:
        return [
            {
                "x": x(row["at"]),
                "y": y(min(row[key], top)),
                "label": f"{row['at']:.1f} s: median {row['median_ms']:.4g} ms, {row['runs']} runs",
            }
            for row in rows
        ]

    middle = points("median_ms")
    below = [
        _sensors(rows, x, "mhz", "MHz", _clusters(entry)),
        _sensors(rows, x, "celsius", "°C", _hottest(entry, rows)),
    ]
    return {
        **frame,
        "color": color % _COLORS,
        "label": entry["label"],
        "line": _line(middle),
        "points": middle,
        "band": _line([*points("p10_ms"), *reversed(points("p90_ms"))]),
        "x_ticks": x.ticks(),
        "y_ticks": _ticks(y, factor),
        "x_label": "seconds",
        "y_label": unit,
        "below": [plot for plot in below if plot],
    }


def _joined(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of all rounds behind each other, with their times as ``at``."""
    joined: list[dict[str, Any]] = []
    begin, number = 0.0, 0
    for row in rows:
        if row["round"] != number and joined:
            begin, number = joined[-1]["at"], row["round"]
        joined.append({**row, "at": begin + row["start_s"]})
    return joined


def _clusters(entry: Mapping[str, Any]) -> dict[str, list[int]]:
    clusters = entry["machine"]["before"]["clusters"]
    return {f"{c['name']} cores": list(c["cpus"]) for c in clusters}


def _hottest(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The three zones that became warmest."""
    names = list(entry["machine"]["before"]["celsius"])
    peak = {
        i: max((row["celsius"][i] or 0.0 for row in rows if i < len(row["celsius"])), default=0.0)
        for i in range(len(names))
    }
    return {names[i]: [i] for i in sorted(peak, key=lambda i: -peak[i])[:3]}


def _sensors(
    rows: Sequence[Mapping[str, Any]],
    x: Scale,
    key: str,
    unit: str,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, Any] | None:
    """Highest value of each group over time; ``None`` if the device tells nothing."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, members in groups.items():
        for row in rows:
            known = [row[key][i] for i in members if i < len(row[key]) and row[key][i] is not None]
            if known:
                lines.setdefault(name, []).append((row["at"], max(known)))
    if not lines:
        return None
    values = [value for line in lines.values() for _, value in line]
    room = max((max(values) - min(values)) * 0.15, 1.0)
    frame = _frame(150)
    y = Scale(max(min(values) - room, 0.0), max(values) + room, frame["bottom"], frame["top"])
    drawn = []
    for i, (name, line) in enumerate(lines.items()):
        points = [{"x": x(at), "y": y(value)} for at, value in line]
        drawn.append({"name": name, "color": i % _COLORS, "line": _line(points)})
    return {
        **frame,
        "lines": drawn,
        "x_ticks": x.ticks(),
        "y_ticks": y.ticks(),
        "x_label": "seconds",
        "y_label": unit,
    }


def _layer_bars(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = entry.get("per_layer", [])
    longest = max((row["ms"] for row in rows), default=0.0) or 1.0
    return [{**row, "bar": row["ms"] / longest} for row in rows]


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Layers side by side, with bars on one scale."""
    longest = max((ms for row in rows for ms in row["ms"] if ms), default=1.0)
    return [
        {
            **row,
            "cells": [
                {"ms": ms, "bar": ms / longest, "kernels": kernels, "ratio": ratio}
                for ms, kernels, ratio in zip(row["ms"], row["kernels"], row["ratio"], strict=True)
                if ms is not None
            ],
            "colors": [i % _COLORS for i, ms in enumerate(row["ms"]) if ms is not None],
        }
        for row in rows
    ]


def _machine_rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Facts before and after, where there are any."""
    before, after = (entry["machine"][when] for when in ("before", "after"))

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            known = {name: v for name, v in value.items() if v is not None}
            return ", ".join(f"{name} {round(v, 1):g}" for name, v in known.items())
        if isinstance(value, list):
            return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value if v)
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    names = {
        "governors": "governor",
        "mhz": "clock, MHz",
        "limit_mhz": "allowed clock, MHz",
        "highest_mhz": "highest clock, MHz",
        "celsius": "temperature, °C",
        "cooling": "cooling in action",
        "load": "load",
    }
    rows = [
        {"name": name, "before": text(before[key]), "after": text(after[key])}
        for key, name in names.items()
    ]
    cores = ", ".join(f"{c['name']} {cpu_ranges(c['cpus'])}" for c in before["clusters"])
    rows.insert(0, {"name": "cores", "before": cores, "after": ""})
    return [row for row in rows if row["before"] or row["after"]]


def _line(points: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(f"{p['x']},{p['y']}" for p in points)
