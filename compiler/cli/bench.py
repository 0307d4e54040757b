"""``effc bench``: latency of artifacts, compared with each other or with an older report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli.console import Console, human_bytes, human_time
from effc.errors import UsageError

if TYPE_CHECKING:
    from effc.benchmark.measurement import Plan
    from effc.benchmark.session import Result, Subject

__all__ = ["BenchFlags", "bench_command", "parse_duration", "program_command"]

_RUNS, _EMULATED_RUNS = 100, 10
_SECONDS, _LIMIT_S = 0.5, 20.0
"""Without a flag: so many inferences and so long, but no longer than the limit."""
_ROUNDS = 10
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
_WINDOWS = 120
"""Rows of a time series."""


@dataclass(frozen=True)
class BenchFlags:
    """Flags as they were given; see ``effc bench --help``."""

    device: str | None = None
    runs: int | None = None
    duration: str | None = None
    warmup: int | None = None
    threads: str | None = None
    cores: tuple[str, ...] = ()
    variant: str | None = None
    abi: str | None = None
    fps: float | None = None
    sustain: str | None = None
    rounds: int | None = None
    cool_down: float = 0.0
    profile: bool = False


def parse_duration(text: str, flag: str) -> float:
    """``10m``, ``90s``, ``500ms`` or ``90`` in seconds.

    Raises:
        UsageError: It is something else, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if seconds <= 0:
        raise UsageError(
            "cannot read a duration", where=flag, expected="10m, 90s or 500ms", got=text
        )
    return seconds


def program_command(
    console: Console, artifacts: Sequence[Path], out: Path, abi: str | None
) -> None:
    """Write the benchmark program of an artifact."""
    from effc.artifact import load_artifact
    from effc.benchmark.carry import carrying_program

    if len(artifacts) != 1:
        raise UsageError("one program carries one artifact", where="--program", got=len(artifacts))
    _check_file(out, "--program")
    size = carrying_program(load_artifact(artifacts[0]).of_abi(abi), out)
    console.result({"program": str(out), "bytes": size})
    console.say(f"{out}: {human_bytes(size)}; run it with --runs 100 --machine")


def bench_command(
    console: Console,
    artifacts: Sequence[Path],
    flags: BenchFlags,
    against: Path | None,
    report: Path | None,
) -> None:
    """Measure, compare, report."""
    from effc.benchmark.comparison import load_report, ratios_against, ratios_within
    from effc.benchmark.session import run_rounds

    old = None if against is None else load_report(against)
    if report is not None:
        _check_file(report, "--report")
    subjects = _subjects(artifacts, flags)
    compared = len(subjects) > 1 or old is not None
    rounds, plan = make_plan(flags, compared=compared, emulated=subjects[0].device == "qemu")
    turns = f", {rounds} times, {len(subjects)} in turn" if rounds > 1 else ""
    console.note(
        f"measuring {_extent_text(plan)} after {plan.warmup} on {subjects[0].device}{turns} ..."
    )
    with console.progress() as progress:
        results = run_rounds(
            subjects,
            plan,
            rounds,
            profile=flags.profile,
            cool_down_s=flags.cool_down,
            progress=progress,
        )
    ratios = ratios_within(results) + (ratios_against(results, old) if old else [])
    payload = _payload(results, ratios)
    if report is not None:
        from effc.benchmark.report import render_bench

        report.write_text(render_bench(payload, old), "utf-8")
        console.note(f"report: {report}")
    console.result(payload)
    _say(console, results, ratios)


def make_plan(flags: BenchFlags, *, compared: bool, emulated: bool) -> tuple[int, Plan]:
    """Rounds, and what each process does; totals of flags are shared by the rounds.

    Raises:
        UsageError: Flags contradict each other.
    """
    from effc.benchmark.measurement import Plan

    given = {"--runs": flags.runs, "--duration": flags.duration, "--sustain": flags.sustain}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError("these flags exclude each other", where=", ".join(names))
    if flags.fps is not None and not (math.isfinite(flags.fps) and 0 < flags.fps <= 1e5):
        raise UsageError("bad pace", where="--fps", expected="a number above 0", got=flags.fps)
    rounds = flags.rounds or (_ROUNDS if compared and flags.sustain is None else 1)
    warmup = flags.warmup if flags.warmup is not None else 2 if emulated else 10
    if flags.sustain is not None:
        seconds = parse_duration(flags.sustain, "--sustain")
        window = min(max(seconds / _WINDOWS, 0.25), 10.0)
        return rounds, Plan(None, seconds, 1, None, warmup, flags.fps, window)
    if flags.duration is not None:
        seconds = parse_duration(flags.duration, "--duration") / rounds
        return rounds, Plan(None, seconds, 1, None, warmup, flags.fps)
    if flags.runs is not None:
        return rounds, Plan(-(-flags.runs // rounds), None, 1, None, warmup, flags.fps)
    least = -(-(_EMULATED_RUNS if emulated else _RUNS) // rounds)
    return rounds, Plan(None, _SECONDS, least, _LIMIT_S / rounds, warmup, flags.fps)


def _extent_text(plan: Plan) -> str:
    if plan.runs is not None:
        return f"{plan.runs} inferences"
    return f"{plan.seconds:.3g} s" + (f", {plan.least} inferences" if plan.least > 1 else "")


def _check_file(path: Path, flag: str) -> None:
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError("cannot write there", where=f"{flag} {path}", expected="a file's path")


def _subjects(artifacts: Sequence[Path], flags: BenchFlags) -> list[Subject]:
    """Every artifact with every number of threads on all sets of cores."""
    from effc.artifact import load_artifact
    from effc.benchmark.session import Subject
    from effc.devices.machine import Machine, select_cores
    from effc.execute import open_program

    subjects: list[Subject] = []
    counts = _thread_counts(flags.threads)
    names = _labels(artifacts)
    for path, name in zip(artifacts, names, strict=True):
        artifact = load_artifact(path).of_abi(flags.abi)
        executor = open_program(artifact, flags.device, flags.variant)
        machine = Machine.of(executor.ask(["--machine"])["before"]) if flags.cores else None
        for cores in flags.cores or ("all",):
            cpus = () if machine is None else select_cores(machine, cores)
            for count in counts or (int(artifact.manifest["threads"]),):
                label = name
                label += f", {count} thread{'s' * (count > 1)}" if len(counts) > 1 else ""
                label += f", {cores}" if len(flags.cores) > 1 else ""
                subjects.append(
                    Subject(
                        label,
                        str(path),
                        artifact.manifest,
                        executor.ask,
                        executor.device,
                        count,
                        cores,
                        cpus,
                        flags.variant,
                    )
                )
    return subjects


def _labels(artifacts: Sequence[Path]) -> list[str]:
    """Last parts of the paths; whole paths where these are equal, numbered if those are too."""
    paths = [path.absolute() for path in artifacts]
    names = [path.stem if path.suffix == ".effc" else path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in artifacts]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    ]


def _thread_counts(text: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 64 for part in parts):
        raise UsageError(
            "bad number of threads", where="--threads", expected="1 to 64, or 1,2,4", got=text
        )
    return tuple(map(int, parts))


def _payload(results: Sequence[Result], ratios: list[dict[str, Any]]) -> dict[str, Any]:
    """The contract's object for one artifact; a list of them for several."""
    if len(results) == 1:
        return {**results[0].describe(), "ratios": ratios}
    return {"artifacts": [result.describe() for result in results], "ratios": ratios}


def _say(console: Console, results: Sequence[Result], ratios: Sequence[dict[str, Any]]) -> None:
    rows = []
    for result in results:
        entry = result.describe()
        times = entry["latency_ms"]
        rows.append(
            [
                entry["label"],
                *(f"{times[key]:.4g}" for key in ("median", "min", "p90", "p99", "mean")),
                f"{times['std']:.2g}",
                entry["runs"],
                human_time(entry["load_ms"] / 1e3),
                human_time(entry["first_ms"] / 1e3),
                human_bytes(entry["peak_memory_bytes"]),
            ]
        )
    first = results[0].describe()
    pace = "" if first["fps"] is None else f", {first['fps']:g} per second"
    console.table(
        ["ms", "median", "min", "p90", "p99", "mean", "std", "runs", "load", "first", "memory"],
        rows,
        title=f"{first['device']}, {first['threads']} thread(s), code {first['variant']}, "
        f"cores {first['cores']}{pace}",
        right=["median", "min", "p90", "p99", "mean", "std", "runs", "load", "first", "memory"],
    )
    for row in ratios:
        console.say(
            f"{row['label']} takes {row['ratio']:.4g} times as long as {row['against']} "
            f"({row['low']:.4g} to {row['high']:.4g}, {row['confidence']:.0%}): {row['verdict']}"
        )
        for note in row["notes"]:
            console.note(f"note: {note}")
    for result in results:
        where = f"{result.subject.label}: " if len(results) > 1 else ""
        _say_series(console, where, result)
        for finding in result.findings():
            console.note(f"warning: {where}{finding.text}. Try: {finding.hint}")
    for result in results:
        if result.layers:
            _say_layers(console, result)


def _say_series(console: Console, where: str, result: Result) -> None:
    rows = [w for m in result.rounds for w in m.windows]
    if len(rows) < 2:
        return
    first, last = rows[0].median_ms, rows[-1].median_ms
    worst = max(row.median_ms for row in rows)
    console.say(
        f"{where}median {first:.4g} ms at the beginning, {last:.4g} at the end "
        f"({last / first:.2f} times), {worst:.4g} in the slowest window of {len(rows)}"
    )


def _say_layers(console: Console, result: Result) -> None:
    console.table(
        ["layer", "op", "kernel", "ms", "share", "GMAC/s", "nodes"],
        [
            [
                row["name"],
                row["op"],
                row["kernel"],
                f"{row['ms']:.4f}",
                f"{100 * row['share']:.1f} %",
                f"{row['gmacs']:.1f}" if row["gmacs"] else "",
                ", ".join(row["nodes"])[:60],
            ]
            for row in result.layers
        ],
        title=result.subject.label,
        right=["ms", "share", "GMAC/s"],
    )
