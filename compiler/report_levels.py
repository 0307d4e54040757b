"""The report's part on levels from measured time: plots and rows as plain numbers and strings.

Two pictures: the front (latency against predicted error, with uniform levels and the chosen
point), and per layer the dense time beside the chosen one with a small curve of time over levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from effc.report_plot import Frame, Scale

__all__ = ["levels_section"]

_FRAME = Frame(width=960, height=380, left=64, right=24, top=18, bottom=48)
_SPARK_WIDTH, _SPARK_HEIGHT = 110, 26


def levels_section(levels: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows, or None if sparsities were not chosen from times.

    Args:
        levels: ``levels`` of the manifest.
    """
    if not levels:
        return None
    return {
        "goal": _goal_text(levels["goal"]),
        "achieved": levels.get("achieved"),
        "plot": _front(levels),
        "rows": [_row(row, levels["layers"]) for row in levels["layers"]],
        "errors": levels["errors"],
        "round": levels["rounds"][-1],
        "dense_ms": levels["dense_ms"],
        "rest_ms": levels["rest_ms"],
        "fastest_ms": levels["fastest_ms"],
        "speedup": levels["dense_ms"] / levels["probe_ms"],
        "probe_ms": levels["probe_ms"],
    }


def _goal_text(goal: Mapping[str, float]) -> str:
    if "speedup" in goal:
        return f"{goal['speedup']:g} times faster than dense"
    return f"at most {goal['latency_ms']:g} ms"


def _front(levels: Mapping[str, Any]) -> dict[str, Any]:
    """Positions of everything in the plot of latency against error."""
    front, uniform, chosen = levels["front"], levels["uniform"], levels["chosen"]
    goal = levels["rounds"][-1]["goal_ms"]
    points = [*front, *uniform, chosen]
    x = _FRAME.x(0.0, max(goal, *(p["ms"] for p in points)) * 1.03)
    y = _FRAME.y(0.0, max(p["error"] for p in points) * 1.05)

    def place(point: Mapping[str, float]) -> dict[str, float]:
        return {"x": x(point["ms"]), "y": y(point["error"])}

    return {
        **_FRAME.describe(),
        "x_ticks": x.ticks(),
        "y_ticks": y.ticks(),
        "line": " ".join(f"{x(p['ms'])},{y(p['error'])}" for p in front),
        "front": [{**place(p), "label": _label(p)} for p in front],
        "uniform": [
            {**place(p), "label": f"all layers at {p['sparsity']:.0%}: {_label(p)}", "text": text}
            for p, text in zip(uniform, _marks(uniform, x), strict=True)
        ],
        "chosen": {**place(chosen), "label": f"chosen: {_label(chosen)}"},
        "goal": x(goal),
    }


def _marks(uniform: Sequence[Mapping[str, float]], x: Scale) -> list[str]:
    """Sparsities to write beside uniform points; only where there is room."""
    marks = []
    last = math.inf
    for point in uniform:
        at = x(point["ms"])
        room = last - at >= 30
        marks.append(f"{point['sparsity']:.0%}" if room else "")
        last = at if room else last
    return marks


def _label(point: Mapping[str, float]) -> str:
    return f"{point['ms']:.4g} ms, error {point['error']:.3g}"


def _row(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A layer with its bars: dense and chosen time as shares of the slowest dense layer."""
    longest = max(other["dense_seconds"] for other in rows)
    return {
        **row,
        "dense_bar": row["dense_seconds"] / longest,
        "bar": row["seconds"] / longest,
        "ratio": row["dense_seconds"] / row["seconds"],
        "spark": _spark(row),
    }


def _spark(row: Mapping[str, Any]) -> dict[str, Any]:
    """Time over levels, from dense on the left to the sparsest on the right."""
    timed = [level for level in row["levels"] if level["seconds"] is not None]
    top = max([row["dense_seconds"], *(level["seconds"] for level in timed)])
    x = Scale(0.0, 1.0, 3, _SPARK_WIDTH - 3)
    y = Scale(0.0, top, _SPARK_HEIGHT - 3, 3)
    points = [(x(level["sparsity"]), y(level["seconds"])) for level in timed]
    return {
        "width": _SPARK_WIDTH,
        "height": _SPARK_HEIGHT,
        "line": " ".join(f"{at},{up}" for at, up in points),
        "x": x(row["sparsity"]),
        "y": y(row["seconds"]),
        "label": "; ".join(f"{v['sparsity']:.0%}: {v['seconds'] * 1e6:.4g} µs" for v in timed),
    }
