"""Commands that take an artifact: ``run``, ``verify``, ``bench``, ``compare``, ``export`` ...

Only flags and their meaning; what commands do is in sibling modules, imported when one is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from effc.cli import bench_flags as flags
from effc.cli.console import Console
from effc.cli.flags import (
    Abi,
    ArtifactPath,
    Device,
    Input,
    Json,
    Model,
    Quiet,
    Shapes,
    Threads,
    Variant,
    Verbose,
)

__all__ = ["bench", "compare", "explain", "export", "inspect", "run", "verify"]


def run(
    artifact: ArtifactPath,
    input: Annotated[
        Path, typer.Option("--input", metavar="X.npz", help="Arrays by input name, or x.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="Y.npz", help="Arrays by output name.")
    ],
    device: Device = None,
    threads: Threads = None,
    variant: Variant = None,
    abi: Abi = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run an artifact on inputs from a file."""
    from effc.cli.execute import run_command

    console = Console(as_json, quiet, verbose)
    run_command(console, artifact, input, output, device, threads, variant, abi)


def verify(
    artifact: ArtifactPath,
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--model",
            metavar="MODEL.onnx",
            help="What it was compiled from; without it the stored golden outputs are used.",
        ),
    ] = None,
    input: Input = None,
    device: Device = None,
    threads: Threads = None,
    variant: Variant = None,
    abi: Abi = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare an artifact with ONNX Runtime on the same inputs."""
    from effc.cli.execute import verify_command

    console = Console(as_json, quiet, verbose)
    verify_command(console, artifact, model, input, device, threads, variant, abi)


def bench(
    artifacts: flags.Artifacts,
    device: Device = None,
    runs: flags.Runs = None,
    duration: flags.Duration = None,
    warmup: flags.Warmup = None,
    threads: flags.ThreadCounts = None,
    cores: flags.Cores = None,
    variant: Variant = None,
    abi: Abi = None,
    fps: flags.Fps = None,
    sustain: flags.Sustain = None,
    rounds: flags.Rounds = None,
    cool_down: flags.CoolDown = 0.0,
    profile: flags.Profile = False,
    against: flags.Against = None,
    report: flags.ReportFile = None,
    program: flags.ProgramFile = None,
    answers: flags.Answers = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure the latency of artifacts, alternately if there are several."""
    from effc.cli.bench import BenchFlags, bench_command, program_command

    console = Console(as_json, quiet, verbose)
    if program is not None:
        program_command(console, artifacts, program, abi)
        return
    given = BenchFlags(
        device=device,
        runs=runs,
        duration=duration,
        warmup=warmup,
        threads=threads,
        cores=tuple(cores or ()),
        variant=variant,
        abi=abi,
        fps=fps,
        sustain=sustain,
        rounds=rounds,
        cool_down=cool_down,
        profile=profile,
    )
    bench_command(console, artifacts, given, against, report, answers)


def compare(
    model: Model,
    artifact: ArtifactPath,
    input: Input = None,
    device: Device = None,
    variant: Variant = None,
    report: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--report", metavar="FILE.html", help="Write the artifact's report with the result."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare an artifact with its float model layer by layer."""
    from effc.cli.compare import compare_command

    compare_command(
        Console(as_json, quiet, verbose), model, artifact, input, device, variant, report
    )


def export(
    artifact: ArtifactPath,
    format: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="FORMAT",
            help="Kind of package: cmake, zip, wheel, aar, maven, xcframework, arduino, zephyr, "
            "cmsis-pack, monitor.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write into.")
    ],
    package_version: Annotated[
        str, typer.Option("--package-version", metavar="X.Y.Z", help="Version of the package.")
    ] = "1.0.0",
    group: Annotated[
        str, typer.Option("--group", metavar="GROUP", help="Maven group and Java package.")
    ] = "effc.models",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Pack an artifact for the build system of an app."""
    from effc.cli.export import export_command

    console = Console(as_json, quiet, verbose)
    export_command(console, artifact, format, output, version=package_version, group=group)


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="MODEL.onnx|ARTIFACT", help="A model or an artifact.")
    ],
    shape: Shapes = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show operators, sizes, kernels and memory of a model or an artifact."""
    from effc.cli.show import inspect_command

    inspect_command(Console(as_json, quiet, verbose), path, shape or [])


def explain(
    artifact: ArtifactPath,
    layer: Annotated[
        str, typer.Argument(metavar="LAYER", help="Layer or ONNX node name; see effc inspect.")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say why a layer got its kernel, and what else was considered."""
    from effc.cli.show import explain_command

    explain_command(Console(as_json, quiet, verbose), artifact, layer)
