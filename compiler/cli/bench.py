"""``effc bench``: latency of artifacts, compared with each other or with an older report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli.console import Console, human_bytes, human_time
from effc.cli.counts import counts_command
from effc.devices.machine import cpu_ranges
from effc.errors import UsageError

if TYPE_CHECKING:
    from effc.artifact import Artifact
    from effc.benchmark.measurement import Plan
    from effc.benchmark.session import Subject

__all__ = ["BenchFlags", "bench_command", "parse_duration", "program_command"]

_ALONE, _COMPARED, _EMULATED = (100, 1.0, 20.0), (200, 4.0, 40.0), (10, 0.5, 20.0)
"""Without a flag: so many inferences and seconds of each, but no more seconds than the last."""
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
    artifact = load_artifact(artifacts[0]).of_abi(abi)
    with _writing(out, "--program"):
        size = carrying_program(artifact, out)
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
    from effc.artifact import load_artifact
    from effc.benchmark.comparison import load_report, ratios_against, ratios_within
    from effc.benchmark.session import run_rounds

    opened = [load_artifact(path).of_abi(flags.abi) for path in artifacts]
    bare = [artifact.manifest["machine"]["os"] == "none" for artifact in opened]
    if any(bare):
        if not all(bare) or against is not None or report is not None:
            raise UsageError(
                "counts of a microcontroller are not compared with times",
                hint="bench artifacts for microcontrollers by themselves",
            )
        counts_command(console, opened, flags)
        return
    old = None if against is None else load_report(against)
    if report is not None:
        _check_file(report, "--report")
    with ExitStack() as devices:
        subjects = _subjects(opened, flags, devices)
        compared = len(subjects) > 1 or old is not None
        rounds, plan = make_plan(flags, compared=compared, emulated=subjects[0].device == "qemu")
        turns = f", {rounds} processes each" if rounds > 1 else ""
        turns += f", {len(subjects)} in turn" if len(subjects) > 1 else ""
        console.note(
            f"measuring {_extent_text(plan)} in all after {plan.warmup} of warm-up on "
            f"{subjects[0].device}{turns} ..."
        )
        progress = devices.enter_context(console.progress())
        results = run_rounds(
            subjects,
            plan,
            rounds,
            profile=flags.profile,
            cool_down_s=flags.cool_down,
            progress=progress,
        )
    ratios = ratios_within(results) + (ratios_against(results, old) if old else [])
    entries = [result.describe() for result in results]
    payload = {**entries[0], "ratios": ratios}
    if len(entries) > 1:
        payload = {"artifacts": entries, "ratios": ratios}
    console.result(payload)
    _say(console, entries, ratios)
    if report is not None:
        from effc.benchmark.report import render_bench

        with _writing(report, "--report"):
            report.write_text(render_bench(payload, old), "utf-8")
        console.note(f"report: {report}")


def make_plan(flags: BenchFlags, *, compared: bool, emulated: bool) -> tuple[int, Plan]:
    """Rounds, and what is measured of each subject in all of them.

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
    rounds = flags.rounds or _default_rounds(flags, compared=compared, emulated=emulated)
    warmup = flags.warmup if flags.warmup is not None else 2 if emulated else 10
    if flags.sustain is not None:
        seconds = parse_duration(flags.sustain, "--sustain")
        window = min(max(seconds / _WINDOWS, 0.25), 10.0)
        return rounds, Plan(None, seconds, 1, None, warmup, flags.fps, window)
    if flags.duration is not None:
        seconds = parse_duration(flags.duration, "--duration")
        return rounds, Plan(None, seconds, 1, None, warmup, flags.fps)
    if flags.runs is not None:
        return min(rounds, flags.runs), Plan(flags.runs, None, 1, None, warmup, flags.fps)
    least, seconds, limit = _EMULATED if emulated else _COMPARED if compared else _ALONE
    return rounds, Plan(None, seconds, least, limit, warmup, flags.fps)


def _default_rounds(flags: BenchFlags, *, compared: bool, emulated: bool) -> int:
    if flags.sustain is not None:
        return 1
    return (3 if compared else 1) if emulated else 10 if compared else 5


def _extent_text(plan: Plan) -> str:
    if plan.runs is not None:
        return f"{plan.runs} inferences"
    return f"{plan.seconds:.3g} s" + (f", {plan.least} inferences" if plan.least > 1 else "")


def _check_file(path: Path, flag: str) -> None:
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError("cannot write there", where=f"{flag} {path}", expected="a file's path")


@contextmanager
def _writing(path: Path, flag: str) -> Iterator[None]:
    """Turns failures of the file system into errors of usage."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write the file: {(error.strerror or str(error)).lower()}",
            where=f"{flag} {path}",
        ) from error


def _subjects(
    artifacts: Sequence[Artifact], flags: BenchFlags, devices: ExitStack
) -> list[Subject]:
    """Every artifact with every number of threads on all sets of cores.

    Args:
        artifacts, flags: As given.
        devices: Closes connections in the end.
    """
    from effc.benchmark.session import Subject
    from effc.devices.machine import Machine, select_cores
    from effc.execute import open_program

    subjects: list[Subject] = []
    counts = _thread_counts(flags.threads)
    names = _labels([artifact.path for artifact in artifacts])
    for artifact, name in zip(artifacts, names, strict=True):
        executor = devices.enter_context(open_program(artifact, flags.device, flags.variant))
        machine = Machine.of(executor.ask(["--machine"])["before"]) if flags.cores else None
        for cores in flags.cores or ("all",):
            cpus = () if machine is None else select_cores(machine, cores)
            for count in counts or (int(artifact.manifest["threads"]),):
                label = name
                label += f", {count} thread{'s' * (count > 1)}" if len(counts) > 1 else ""
                label += f", cores {cores}" if len(flags.cores) > 1 else ""
                subjects.append(
                    Subject(
                        label,
                        str(artifact.path),
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


def _say(
    console: Console, entries: Sequence[Mapping[str, Any]], ratios: Sequence[Mapping[str, Any]]
) -> None:
    _say_times(console, entries)
    console.say(_machine_text(entries[0]["machine"]))
    for row in ratios:
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
    for entry in entries:
        if "per_layer" in entry:
            _say_layers(console, entry)


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
        return f"{max(known):g} °C" if known else "unknown"

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


def _say_layers(console: Console, entry: Mapping[str, Any]) -> None:
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
            for row in entry["per_layer"]
        ],
        title=entry["label"],
        right=["ms", "share", "GMAC/s"],
    )
