"""The benchmark's page: well-formed, complete, escaped, with every plot that the data allow."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from effc.benchmark.comparison import ratios_against, ratios_within
from effc.benchmark.measurement import Plan
from effc.benchmark.report import render_bench
from effc.benchmark.session import Result

from .cases import LAYERS, measurement, result, windows


def parsed(page: str) -> ET.Element:
    """The page without its doctype: templates write well-formed XML but for two void tags."""
    text = page.split("<!doctype html>", 1)[1]
    for tag in ("meta",):
        text = text.replace(f"<{tag} ", f"<{tag}_ ").replace("<br>", "<br/>")
    lines = [line[:-1] + "/>" if line.startswith("<meta_ ") else line for line in text.split("\n")]
    return ET.fromstring("\n".join(lines).replace("&nbsp;", " "))


def page(results: list[Result], ratios: list[dict[str, Any]], old: Any = None) -> ET.Element:
    entries = [r.describe() for r in results]
    payload = (
        {"artifacts": entries, "ratios": ratios}
        if len(entries) > 1
        else {**entries[0], "ratios": ratios}
    )
    text = render_bench(payload, old)
    assert "<script" not in text
    assert "http" not in text
    return parsed(text)


def headings(tree: ET.Element) -> list[str]:
    return ["".join(h.itertext()) for h in tree.iter("h2")]


def inside(tree: ET.Element, name: str) -> list[ET.Element]:
    """Pictures with this label."""
    return [svg for svg in tree.iter("svg") if svg.get("aria-label") == name]


def test_one_artifact() -> None:
    net = result('<a> & "b"', [measurement(preempted=200)])
    net.layers = LAYERS
    tree = page([net], [])
    assert headings(tree) == [
        "Reasons to doubt these figures", "Figures", "Distribution", "One after the other",
        "Layers", "The device",
    ]  # fmt: skip
    text = "".join(tree.itertext())
    assert '<a> & "b"' in text
    assert "k<0>" in text
    assert "conv&1" in text
    (picture,) = inside(tree, "times in order")
    assert len([c for c in picture.iter("circle")]) == 200


def test_everything_lies_inside_the_plot() -> None:
    """Also where one inference took a thousand times longer."""
    times = measurement().times_ms.copy()
    times[3] = 5000.0
    tree = page([result("a", [measurement(times.tolist())])], [])
    for svg in inside(tree, "times in order") + inside(tree, "distribution of times"):
        _, _, width, height = map(float, (svg.get("viewBox") or "").split())
        for shape in svg.iter():
            for key, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                assert 0 <= float(shape.get(key, 0)) <= limit
    text = "".join(tree.itertext())
    assert "0.5% off the plot" in text


def test_several_artifacts() -> None:
    rounds = [measurement((measurement().times_ms * f).tolist()) for f in (1.0, 1.02, 0.98)]
    slower = [measurement((m.times_ms * 1.5).tolist()) for m in rounds]
    results = [result("a", rounds), result("b", slower)]
    tree = page(results, ratios_within(results))
    assert "Compared" in headings(tree)
    assert "Rounds" in headings(tree)
    assert "b / a: 1.5 (1.5 to 1.5), slower" in "".join(tree.itertext())
    (picture,) = inside(tree, "distribution of times")
    assert len({g.get("class") for g in picture.iter("g")}) == 2
    (dots,) = inside(tree, "medians of rounds")
    assert len(list(dots.iter("circle"))) == 6


def test_very_different_times_get_their_own_axes() -> None:
    slow = result("b", [measurement((measurement().times_ms * 100).tolist())])
    assert len(inside(page([result("a"), slow], []), "distribution of times")) == 2


def test_against_a_report() -> None:
    old = result("a").describe()
    ratios = ratios_against([result("a")], old)
    tree = page([result("a")], ratios, old)
    assert "a / a (report)" in "".join(tree.itertext())
    (picture,) = inside(tree, "distribution of times")
    assert len(list(picture.iter("g"))) == 2


@pytest.mark.parametrize("sensors", [True, False])
def test_series(sensors: bool) -> None:
    rows = windows()
    if not sensors:
        rows = tuple(replace(row, mhz=(), celsius=()) for row in rows)
    plan = Plan(seconds=8.0, window_s=1.0)
    net = result("a", [measurement(windows=rows)], plan=plan)
    tree = page([net], [])
    assert "Over time" in headings(tree)
    assert "One after the other" not in headings(tree)
    assert len(inside(tree, "latency over time")) == 1
    assert len(inside(tree, "MHz over time")) == sensors
    assert len(inside(tree, "°C over time")) == sensors
    text = "".join(tree.itertext())
    assert ("neither clocks nor temperatures" in text) != sensors
