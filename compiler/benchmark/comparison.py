"""Ratios between the subjects of a session, and between a session and a stored report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effc.benchmark.session import Result
from effc.benchmark.statistics import paired_ratio, unpaired_ratio
from effc.errors import ModelError, UsageError

__all__ = ["load_report", "ratios_against", "ratios_within"]

_COMPARABLE = ("device", "threads", "cores", "mode", "fps", "variant")
_FEW_ROUNDS = 3


def ratios_within(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each subject against the first, from medians that were measured next to each other."""
    first = results[0]
    if len(first.rounds) < 2:
        return []
    return [
        {
            "label": other.subject.label,
            "against": first.subject.label,
            **paired_ratio(other.medians_ms, first.medians_ms).describe(),
            "notes": [],
        }
        for other in results[1:]
    ]


def ratios_against(results: Sequence[Result], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each subject against the one of its label in an older report, or the first there.

    Raises:
        UsageError: Fewer than two inferences on either side.
    """
    old = report.get("artifacts", [report])
    by_label = {entry["label"]: entry for entry in old}
    return [_against(result, by_label.get(result.subject.label, old[0])) for result in results]


def _against(result: Result, old: Mapping[str, Any]) -> dict[str, Any]:
    new = result.describe()
    notes = [
        f"{key} was {old.get(key)}, is {new[key]}"
        for key in _COMPARABLE
        if old.get(key) != new[key]
    ]
    for key in ("governors", "highest_mhz"):
        was, now = (entry["machine"]["before"].get(key) for entry in (old, new))
        if was != now:
            notes.append(f"{key} differ: another device, or other settings")
    if min(len(entry["rounds_ms"]) for entry in (old, new)) < _FEW_ROUNDS:
        notes.append(
            "one side is a single process, so the interval lacks what differs between processes: "
            "--rounds 10 on both sides"
        )
    return {
        "label": result.subject.label,
        "against": f"{old['label']} (report)",
        **unpaired_ratio(_observations(new), _observations(old)).describe(),
        "notes": notes,
    }


def _observations(entry: Mapping[str, Any]) -> Sequence[float]:
    """Medians of processes; of blocks of inferences where there are too few processes."""
    enough = len(entry["rounds_ms"]) >= _FEW_ROUNDS
    return list(entry["rounds_ms"] if enough else entry["blocks_ms"])


def load_report(path: Path) -> dict[str, Any]:
    """What ``effc bench --json`` printed earlier.

    Raises:
        UsageError: There is no such file.
        ModelError: It is something else.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError("cannot read the report", where=f"--against {path}", got=error) from error
    except (ValueError, RecursionError) as error:
        raise ModelError("the report is no valid JSON", where=str(path), got=error) from error
    entries = report.get("artifacts", [report]) if isinstance(report, dict) else [None]
    if not isinstance(entries, list) or not entries or not all(map(_is_entry, entries)):
        raise ModelError(
            "not a benchmark's report",
            where=str(path),
            expected="what effc bench --json prints",
        )
    return dict(report)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("label"), str)
        and isinstance(entry.get("machine"), dict)
        and isinstance(entry["machine"].get("before"), dict)
        and all(_are_times(entry.get(key)) for key in ("rounds_ms", "blocks_ms", "times_ms"))
    )


def _are_times(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(isinstance(ms, int | float) and ms > 0 for ms in values)
    )
