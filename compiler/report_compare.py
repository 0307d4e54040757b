"""The report's part on a comparison with the float model: a plot over layers, and rows.

The plot has layers in execution order from left to right and decibels upwards: a line for what
layers give, a dot for what each adds. Both can be judged at a glance: where the line falls, a dot
below says whether this layer is to blame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from effc.report_plot import Frame, Scale

__all__ = ["compare_section"]

_FRAME = Frame(width=960, height=340, left=56, right=16, top=16, bottom=44)
_WORST = 5
"""Layers that are named in the plot."""
_IDENTICAL = 300.0


def compare_section(compare: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows, or ``None`` if nothing was compared.

    Args:
        compare: As ``effc.comparison.Comparison.describe`` gives it.
    """
    if compare is None:
        return None
    rows = [_row(layer) for layer in compare["layers"]]
    return {**compare, "rows": rows, "plot": _plot(compare["layers"])}


def _row(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **layer,
        "own": _text(layer["own_snr_db"]),
        "output": _text(layer["output_snr_db"]),
    }


def _text(decibels: float | None) -> str:
    if decibels is None:
        return "unknown"
    return "identical" if decibels >= _IDENTICAL else f"{decibels:.1f} dB"


def _plot(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Positions of everything in the plot; identical results lie on its upper edge."""
    ordered = sorted(layers, key=lambda layer: layer["number"])
    known = [
        value
        for layer in ordered
        for value in (layer["output_snr_db"], layer["own_snr_db"])
        if value is not None and value < _IDENTICAL
    ]
    if not known:
        return None
    room = max(max(known) - min(known), 10.0) / 6
    low, high = min(known) - room, max(known) + room
    x = _FRAME.x(0, max(len(ordered) - 1, 1), inset=8)
    y = _FRAME.y(low, high)
    place = {layer["name"]: x(position) for position, layer in enumerate(ordered)}

    def points(key: str) -> list[dict[str, Any]]:
        return [
            {
                "x": place[layer["name"]],
                "y": y(min(layer[key], high)),
                "label": f"{layer['name']} ({layer['op']}): gives {_text(layer['output_snr_db'])}, "
                f"adds {_text(layer['own_snr_db'])}",
            }
            for layer in ordered
            if layer[key] is not None
        ]

    output, own = points("output_snr_db"), points("own_snr_db")
    return {
        **_FRAME.describe(),
        "y_ticks": y.ticks(),
        "line": " ".join(f"{p['x']},{p['y']}" for p in output),
        "output": output,
        "own": own,
        "marks": _marks(layers, place, y, high),
    }


def _marks(
    layers: Sequence[Mapping[str, Any]], place: Mapping[str, float], y: Scale, high: float
) -> list[dict[str, Any]]:
    """Names of the worst layers, below their dots, where there is room beside other names."""
    marks: list[dict[str, Any]] = []
    for layer in layers:
        own = layer["own_snr_db"]
        if own is None or own >= _IDENTICAL or len(marks) == _WORST:
            continue
        at = place[layer["name"]]
        end = at > (_FRAME.left + _FRAME.width) / 2
        mark = {
            "x": at - 7 if end else at + 7,
            "y": y(min(own, high)) + 12,
            "text": layer["name"],
            "anchor": "end" if end else "start",
        }
        if all(abs(mark["y"] - m["y"]) > 14 or abs(mark["x"] - m["x"]) > 110 for m in marks):
            marks.append(mark)
    return marks
