"""``effc bench``: latency of artifacts, compared with each other or with an older report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from effc.cli.bench_tables import say_benchmark
from effc.cli.console import Console
from effc.cli.counts import counts_command
from effc.cli.files import check_output_file, output_file
from effc.errors import UsageError
from effc.figures import human_bytes

if TYPE_CHECKING:
    from effc.artifact import Artifact
    from effc.benchmark.measurement import Plan
    from effc.benchmark.session import Result, Subject

__all__ = ["BenchFlags", "bench_command", "parse_duration", "program_command"]

_ALONE, _COMPARED, _EMULATED = (100, 1.0, 20.0), (200, 4.0, 40.0), (10, 0.5, 20.0)
_PACED = (100, 10.0, 60.0)
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
    artifact = load_artifact(artifacts[0]).of_abi(abi)
    with output_file(out, "--program") as file:
        size = carrying_program(artifact, file)
    console.result({"program": str(out), "bytes": size})
    console.say(f"{out}: {human_bytes(size)}; run it with --runs 100 --machine")


def bench_command(
    console: Console,
    artifacts: Sequence[Path],
    flags: BenchFlags,
    against: Path | None,
    report: Path | None,
    answers: Path | None,
) -> None:
    """Measure, compare, report."""
    from effc.artifact import load_artifact
    from effc.benchmark.answers import read_answers
    from effc.benchmark.comparison import load_report, ratios_against, ratios_within
    from effc.benchmark.layers import layers_side_by_side
    from effc.execute import is_counted

    opened = [load_artifact(path).of_abi(flags.abi) for path in artifacts]
    bare = [is_counted(artifact.manifest) for artifact in opened]
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
        check_output_file(report, "--report")
    if answers is not None:
        _check_answers(flags, len(opened))
        results = [read_answers(opened[0], answers)]
    else:
        results = _measure(console, opened, flags, against=old is not None)
    ratios = ratios_within(results) + (ratios_against(results, old) if old else [])
    entries = [result.describe() for result in results]
    payload = {**entries[0], "ratios": ratios}
    if len(entries) > 1:
        payload = {"artifacts": entries, "ratios": ratios}
        profiles = [entry["per_layer"] for entry in entries if "per_layer" in entry]
        payload["layers"] = layers_side_by_side(profiles) if profiles else []
    console.result(payload)
    say_benchmark(console, entries, payload)
    if report is not None:
        from effc.benchmark.report import render_bench

        try:
            with output_file(report, "--report") as file:
                file.write_text(render_bench(payload, old), "utf-8")
        except UsageError as error:
            console.fail(error)
        console.note(f"report: {report}")


def _measure(
    console: Console, artifacts: Sequence[Artifact], flags: BenchFlags, *, against: bool
) -> list[Result]:
    from effc.benchmark.session import run_rounds

    with ExitStack() as devices:
        subjects = _subjects(artifacts, flags, devices)
        compared = len(subjects) > 1 or against
        rounds, plan = make_plan(flags, compared=compared, emulated=subjects[0].device == "qemu")
        turns = f", {rounds} processes each" if rounds > 1 else ""
        turns += f", {len(subjects)} in turn" if len(subjects) > 1 else ""
        console.note(
            f"measuring {_extent_text(plan)} in all after {plan.warmup} of warm-up on "
            f"{subjects[0].device}{turns} ..."
        )
        progress = devices.enter_context(console.progress())
        return run_rounds(
            subjects,
            plan,
            rounds,
            profile=flags.profile,
            cool_down_s=flags.cool_down,
            progress=progress,
        )


def _check_answers(flags: BenchFlags, artifacts: int) -> None:
    given = [field.name for field in fields(flags) if getattr(flags, field.name) != field.default]
    wrong = [f"--{name.replace('_', '-')}" for name in given if name != "abi"]
    if wrong or artifacts > 1:
        raise UsageError(
            "answers of one artifact are reported as they are",
            where="--answers",
            got=", ".join(wrong) or f"{artifacts} artifacts",
        )


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
    usual = _COMPARED if compared else _ALONE
    paced = flags.fps is not None
    least, seconds, limit = _EMULATED if emulated else _PACED if paced else usual
    return rounds, Plan(None, seconds, least, limit, warmup, flags.fps)


def _default_rounds(flags: BenchFlags, *, compared: bool, emulated: bool) -> int:
    if flags.sustain is not None:
        return 1
    return (3 if compared else 1) if emulated else 10 if compared else 5


def _extent_text(plan: Plan) -> str:
    if plan.runs is not None:
        return f"{plan.runs} inferences"
    return f"{plan.seconds:.3g} s" + (f", {plan.least} inferences" if plan.least > 1 else "")


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
    names = _labels([artifact.path for artifact in artifacts])
    for artifact, name in zip(artifacts, names, strict=True):
        executor = devices.enter_context(open_program(artifact, flags.device, flags.variant))
        asks = flags.cores or flags.threads == "auto"
        machine = Machine.of(executor.ask(["--machine"])["before"]) if asks else None
        for cores in flags.cores or ("all",):
            cpus = () if machine is None else select_cores(machine, cores)
            usable = len(cpus) or (len(machine.allowed) if machine is not None else 0)
            counts = _thread_counts(flags.threads, int(artifact.manifest["threads"]), usable)
            for count in counts:
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


def _thread_counts(text: str | None, own: int, usable: int) -> list[int]:
    """Numbers of threads to measure.

    Args:
        text: ``--threads``: ``2``, ``1,2,4``, or ``auto`` for powers of two and all processors.
        own: Of the artifact, if there is no flag.
        usable: Processors, for ``auto``.
    """
    if text is None:
        return [own]
    if text == "auto":
        most = min(usable, 64)
        return sorted({*(1 << i for i in range(most.bit_length())), most} - {0})
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 64 for part in parts):
        raise UsageError(
            "bad number of threads",
            where="--threads",
            expected="1 to 64, 1,2,4 or auto",
            got=text,
        )
    return list(map(int, parts))
