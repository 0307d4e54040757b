"""Arguments and flags of ``effc bench``, as typer reads them; imported for ``effc --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = [
    "Against",
    "Answers",
    "Artifacts",
    "CoolDown",
    "Cores",
    "Duration",
    "Fps",
    "Profile",
    "ProgramFile",
    "ReportFile",
    "Rounds",
    "Runs",
    "Sustain",
    "ThreadCounts",
    "Warmup",
]

Artifacts = Annotated[
    list[Path],
    typer.Argument(
        metavar="ARTIFACT...", help="Folders or .effc files; several are measured alternately."
    ),
]
Runs = Annotated[
    Optional[int],  # noqa: UP045 (typer reads annotations at run time)
    typer.Option(
        "--runs",
        metavar="N",
        min=1,
        help="Measured inferences of each artifact; default: 100 and a second, at most 20 s.",
    ),
]
Duration = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--duration", metavar="10s", help="Measure so long instead."),
]
Warmup = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--warmup", metavar="N", min=0, help="Inferences before measuring."),
]
ThreadCounts = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--threads",
        metavar="N[,N]|auto",
        help="Threads of one inference; several are compared. auto: powers of two and all.",
    ),
]
Cores = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--cores",
        metavar="CORES",
        help="Where it may run: all, big, little, mid, big+mid, 4-7 or 0xf0; "
        "given several times: compared.",
    ),
]
Fps = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--fps", metavar="F", help="Paced like an app: F inferences per second; default: a burst."
    ),
]
Sustain = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--sustain", metavar="10m", help="Run so long, with a time series of latency and heat."
    ),
]
Rounds = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--rounds",
        metavar="N",
        min=1,
        help="Processes that share the inferences; default: 5, 10 where something is compared.",
    ),
]
CoolDown = Annotated[
    float,
    typer.Option("--cool-down", metavar="SECONDS", min=0.0, help="Pause before each process."),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Also the time per layer, with its ONNX nodes.")
]
Against = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--against", metavar="REPORT.json", help="Compare with what bench --json printed earlier."
    ),
]
ReportFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--report", metavar="FILE.html", help="Write a page with plots."),
]
Answers = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--answers",
        metavar="FILE",
        help="Measure nothing; report what that program printed, one line per process.",
    ),
]
ProgramFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--program",
        metavar="FILE",
        help="Measure nothing; write the benchmark program with the model in it.",
    ),
]
