"""``report.html``: what was done to a model, on one self-contained page.

Rendered from the manifest alone, so it holds nothing that the manifest does not, and
is as deterministic. No scripts, no requests to anywhere; pictures are inline SVG.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from effc.figures import human_bytes
from effc.inspection import plan_quality
from effc.report_compare import compare_section
from effc.report_levels import levels_section
from effc.report_page import render_page

__all__ = ["render_report"]

_PLAN_WIDTH = 960
_PLAN_HEIGHT = 320


def render_report(manifest: Mapping[str, Any], compare: Mapping[str, Any] | None = None) -> str:
    """The page as HTML.

    Args:
        manifest: As ``build_manifest`` makes it, verification included.
        compare: Result of ``effc compare``, if there is one to show.
    """
    return render_page(
        "report.html.j2",
        m=manifest,
        sizes=_sizes(manifest),
        layers=_layer_rows(manifest),
        timed=any(layer["seconds"] for layer in manifest["layers"]),
        kernels=_kernel_rows(manifest),
        plan=_plan_picture(manifest),
        levels=levels_section(manifest["levels"]),
        compare=compare_section(compare),
    )


def _sizes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parts of the library; kernels are the code without the runtime."""
    library = manifest["library_bytes"]
    weights = manifest["weights_bytes"]
    runtime = manifest["runtime_bytes"]
    kernels = max(manifest["code_bytes"] - runtime, 0)
    parts = [
        ("weights", weights, "#4c78a8"),
        ("kernels", kernels, "#f58518"),
        ("runtime", runtime, "#54a24b"),
        ("tables, padding", max(library - weights - runtime - kernels, 0), "#bab0ac"),
    ]
    return [
        {"name": name, "bytes": size, "share": size / max(library, 1), "color": color}
        for name, size, color in parts
    ]


def _layer_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Layers with bars: measured time where the tuner knows it, otherwise MACs."""
    layers = manifest["layers"]
    most_macs = max((layer["macs"] for layer in layers), default=0) or 1
    seconds = sum(layer["seconds"] or 0.0 for layer in layers)
    longest = max((layer["seconds"] or 0.0 for layer in layers), default=0.0) or 1.0
    return [
        {
            **layer,
            "number": number,
            "macs_bar": layer["macs"] / most_macs,
            "time_bar": (layer["seconds"] or 0.0) / longest,
            "time_share": (layer["seconds"] or 0.0) / seconds if seconds else 0.0,
        }
        for number, layer in enumerate(layers)
    ]


def _kernel_rows(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Layers and MACs per kernel family, most MACs first."""
    total = max(manifest["macs"], 1)
    found: dict[str, dict[str, Any]] = {}
    for layer in manifest["layers"]:
        row = found.setdefault(layer["kernel"], {"kernel": layer["kernel"], "layers": 0, "macs": 0})
        row["layers"] += 1
        row["macs"] += layer["macs"]
    for row in found.values():
        row["share"] = row["macs"] / total
        row["color"] = _color(row["kernel"])
    return sorted(found.values(), key=lambda row: (-row["macs"], row["kernel"]))


def _color(text: str) -> str:
    """A light colour that depends on the text only."""
    hue = int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big") / 65536
    red, green, blue = colorsys.hls_to_rgb(hue, 0.68, 0.55)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def _plan_picture(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rectangles of the memory plan: steps from left to right, offsets from bottom to top."""
    blocks: Sequence[Mapping[str, Any]] = manifest["memory_plan"]
    arena = manifest["arena_bytes"]
    if not blocks or not arena:
        return None
    steps = max(block["last"] for block in blocks) + 1
    shapes = []
    for block in blocks:
        x = _PLAN_WIDTH * block["first"] / steps
        width = _PLAN_WIDTH * (block["last"] - block["first"] + 1) / steps
        height = _PLAN_HEIGHT * block["bytes"] / arena
        y = _PLAN_HEIGHT * (1 - block["offset"] / arena) - height
        shapes.append(
            {
                "x": f"{x:.2f}",
                "y": f"{y:.2f}",
                "width": f"{max(width, 0.5):.2f}",
                "height": f"{max(height, 0.5):.2f}",
                "color": _color(block["name"]),
                "label": f"{block['name']}: {human_bytes(block['bytes'])} at offset "
                f"{block['offset']}, steps {block['first']} to {block['last']}",
            }
        )
    bound = manifest["arena_lower_bound_bytes"]
    return {
        "width": _PLAN_WIDTH,
        "height": _PLAN_HEIGHT,
        "shapes": shapes,
        "steps": steps,
        "bound_y": f"{_PLAN_HEIGHT * (1 - bound / arena):.2f}",
        "quality": plan_quality(manifest) if manifest["memory_peak"] else "",
    }
