"""Rounds, comparisons with reports, and what reports must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from effc.benchmark.comparison import load_report, ratios_against, ratios_within
from effc.benchmark.measurement import Measurement, Plan
from effc.benchmark.session import Result, Subject, run_rounds
from effc.errors import DeviceError, EffcError, ModelError, UsageError

from .cases import machine, measurement, result
from .conftest import Ask

Timed = Callable[[Sequence[int]], Ask]
MANIFEST = {
    "name": "timed",
    "target": "host",
    "steps": ["wait"],
    "layers": [
        {"name": "wait", "op": "Conv", "kernel": "k", "macs": 6000, "nodes": ["onnx/a", "onnx/b"]}
    ],
}


def subject(ask: Ask, label: str, log: list[tuple[str, list[str]]]) -> Subject:
    def program(words: Sequence[str], timeout_s: float) -> Mapping[str, Any]:
        log.append((label, list(words)))
        return ask(*words)

    return Subject(label, label, MANIFEST, program, "local", 2, "0", (0,), "base")


def test_rounds_alternate(timed: Timed) -> None:
    """A program twice as slow is found to be so, exactly; every setting reaches it."""
    log: list[tuple[str, list[str]]] = []
    fast, slow = timed([1000, 2000, 3000]), timed([2000, 4000, 6000])
    subjects = [subject(fast, "a", log), subject(slow, "b", log)]
    results = run_rounds(subjects, Plan(runs=36, warmup=3), 4, profile=True)
    assert [label for label, _ in log] == [*"abbabaab", *"ab"]
    assert all("--variant base" in " ".join(words) for _, words in log)
    assert all(words[words.index("--cpus") + 1] == "1" for _, words in log)
    assert all(words[words.index("--threads") + 1] == "2" for _, words in log)
    (ratio,) = ratios_within(results)
    assert [ratio[key] for key in ("ratio", "low", "high")] == pytest.approx([2.0] * 3)
    assert (ratio["label"], ratio["against"], ratio["verdict"]) == ("b", "a", "slower")
    values = results[1].describe()
    assert values["latency_ms"]["median"] == 0.004
    assert values["latency_ms"]["min"] == 0.002
    assert values["latency_ms"]["mean"] == 0.004
    assert values["runs"] == 36
    assert values["rounds_ms"] == [0.004] * 4
    (layer,) = results[1].layers
    assert layer["nodes"] == ["onnx/a", "onnx/b"]
    assert layer["ms"] == 0.004
    assert layer["gmacs"] == pytest.approx(1.5)


def test_a_single_round_has_no_ratio() -> None:
    assert ratios_within([result("a"), result("b")]) == []


def shifted(factor: float, rounds: int) -> Result:
    one = measurement()
    noise = [1.0, 1.01, 0.99, 1.005, 0.995, 1.002, 0.998, 1.003][:rounds]
    return result("net", [measurement((one.times_ms * factor * n).tolist()) for n in noise])


def saved(folder: Path, payload: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / "report.json"
    file.write_text(json.dumps(payload))
    return load_report(file)


def test_against_a_report(tmp_path: Path) -> None:
    old = saved(tmp_path, shifted(1.0, 8).describe())
    (ratio,) = ratios_against([shifted(1.1, 8)], old)
    assert ratio["verdict"] == "slower"
    assert ratio["low"] < 1.1 < ratio["high"]
    assert ratio["notes"] == []
    (same,) = ratios_against([shifted(1.0, 8)], old)
    assert same["verdict"] == "no difference shown"


def test_against_a_report_under_other_conditions(tmp_path: Path) -> None:
    old = saved(tmp_path, {"artifacts": [result("else").describe(), result("net").describe()]})
    other = result("net", [measurement(before=machine(cpus=()))], threads=4, device="qemu")
    (ratio,) = ratios_against([other], old)
    assert ratio["against"] == "net (report)"
    text = " ".join(ratio["notes"])
    for part in (
        "threads was 1, is 4",
        "device was local, is qemu",
        "governors differ",
        "--rounds",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", ModelError),
        ("[]", ModelError),
        ("{}", ModelError),
        ('{"artifacts": []}', ModelError),
        ('{"artifacts": 3}', ModelError),
        ('{"label": "a", "machine": {"before": {}}, "rounds_ms": [0]}', ModelError),
        (None, UsageError),
    ],
)
def test_other_files(tmp_path: Path, text: str | None, error: type[EffcError]) -> None:
    file = tmp_path / "report.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error):
        load_report(file)


@pytest.mark.parametrize("change", [{"times_ns": []}, {"before": {}}, {"times_ns": ["x"]}, None])
def test_nonsense_from_the_device(timed: Timed, change: dict[str, Any] | None) -> None:
    answer = timed([5])("--machine", "--runs", 2)
    if change is None:
        del answer["ran_on"]
    with pytest.raises(DeviceError, match="unknown answer"):
        Measurement.of({**answer, **(change or {})})
