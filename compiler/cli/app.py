"""The commands of ``effc`` and their flags; what they do is in the sibling modules.

This module is imported for ``effc --help``, so it imports nothing heavier than typer.
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
    Block,
    Calibration,
    Constants,
    Correct,
    Device,
    Equalize,
    Flash,
    GroupSize,
    Input,
    Json,
    LatencyMs,
    MaxDrop,
    Method,
    Model,
    Optimize,
    Precision,
    Prune,
    Quantize,
    Quiet,
    Ram,
    Ranges,
    RecipeFile,
    Refine,
    Regroup,
    Rounding,
    Samples,
    Shapes,
    Sparsity,
    Speedup,
    TargetName,
    Threads,
    TuningDb,
    Variant,
    Verbose,
    Widen,
    WorkFolder,
)

__all__ = ["app"]

app = typer.Typer(
    name="effc",
    help="Turn an ONNX model into a small, fast, self-contained library.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from effc import __version__

        typer.echo(f"effc {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Turn an ONNX model into a small, fast, self-contained library."""


@app.command("compile")
def compile_(
    model: Model,
    target: TargetName,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "-o", "--output", metavar="OUT", help="Folder or .effc file; default: ./NAME."
        ),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", metavar="NAME", help="C prefix; default: from the file name."),
    ] = None,
    shape: Shapes = None,
    constant: Constants = None,
    threads: Threads = None,
    tune: Annotated[
        str,
        typer.Option(
            "--tune",
            metavar="none|quick|full|N",
            help="Search kernel configurations by measuring; N measurements at most.",
        ),
    ] = "none",
    tuning_db: TuningDb = None,
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Run the result against ONNX Runtime first."),
    ] = True,
    precision: Precision = "f32",
    abi: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--abi",
            metavar="ABI,ABI",
            help="Libraries for several ABIs in one artifact (arm64-v8a,armeabi-v7a,x86_64).",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights", metavar="embedded|file", help="In the library, or in a file beside it."
        ),
    ] = "embedded",
    ram: Ram = None,
    flash: Flash = None,
    optimize: Optimize = "balanced",
    prune: Prune = None,
    sparsity: Sparsity = None,
    speedup: Speedup = None,
    latency_ms: LatencyMs = None,
    block: Block = None,
    method: Method = None,
    calibration: Calibration = None,
    samples: Samples = None,
    correct: Correct = None,
    regroup: Regroup = None,
    quantize: Quantize = None,
    ranges: Ranges = None,
    rounding: Rounding = None,
    equalize: Equalize = None,
    refine: Refine = None,
    max_drop: MaxDrop = None,
    widen: Widen = None,
    group: GroupSize = None,
    recipe: RecipeFile = None,
    work: WorkFolder = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile a model into an artifact."""
    from effc.cli.arguments import parse_compression
    from effc.cli.build import compile_command

    compression = parse_compression(
        prune=prune,
        sparsity=sparsity,
        speedup=speedup,
        latency_ms=latency_ms,
        block=block,
        method=method,
        calibration=calibration,
        samples=samples,
        correct=correct,
        regroup=regroup,
        quantize=quantize,
        ranges=ranges,
        rounding=rounding,
        equalize=equalize,
        refine=refine,
        max_drop=max_drop,
        widen=widen,
        group=group,
        recipe=recipe,
        work=work,
        shapes=shape or [],
        constants=constant or [],
    )
    compile_command(
        Console(as_json, quiet, verbose),
        model,
        output,
        target=target,
        name=name,
        shapes=shape or [],
        constants=constant or [],
        threads=threads or 1,
        tune=tune,
        tuning_db=tuning_db,
        verify=verify,
        precision=precision,
        abis=tuple(part.strip() for part in abi.split(",")) if abi else (),
        weights=weights,
        ram=ram,
        flash=flash,
        optimize=optimize,
        compression=compression,
    )


@app.command()
def compress(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SMALL.onnx", help="Model to write.")
    ],
    prune: Prune = None,
    sparsity: Sparsity = None,
    speedup: Speedup = None,
    latency_ms: LatencyMs = None,
    block: Block = None,
    method: Method = None,
    calibration: Calibration = None,
    samples: Samples = None,
    correct: Correct = None,
    regroup: Regroup = None,
    quantize: Quantize = None,
    ranges: Ranges = None,
    rounding: Rounding = None,
    equalize: Equalize = None,
    refine: Refine = None,
    max_drop: MaxDrop = None,
    widen: Widen = None,
    group: GroupSize = None,
    recipe: RecipeFile = None,
    work: WorkFolder = None,
    shape: Shapes = None,
    constant: Constants = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="What --speedup and --latency-ms are measured for.",
        ),
    ] = "host",
    threads: Threads = None,
    tune: Annotated[
        str,
        typer.Option("--tune", metavar="quick|full|N", help="How thoroughly they are measured."),
    ] = "quick",
    tuning_db: TuningDb = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compress a model; the result is plain ONNX."""
    from effc.cli.arguments import parse_compression, parse_tune
    from effc.cli.compress import compress_command
    from effc.options import CompileOptions

    options = parse_compression(
        prune=prune,
        sparsity=sparsity,
        speedup=speedup,
        latency_ms=latency_ms,
        block=block,
        method=method,
        calibration=calibration,
        samples=samples,
        correct=correct,
        regroup=regroup,
        quantize=quantize,
        ranges=ranges,
        rounding=rounding,
        equalize=equalize,
        refine=refine,
        max_drop=max_drop,
        widen=widen,
        group=group,
        recipe=recipe,
        work=work,
        shapes=shape or [],
        constants=constant or [],
        timing=CompileOptions(
            target=target, threads=threads or 1, tune=parse_tune(tune), tuning_db=tuning_db
        ),
    )
    compress_command(Console(as_json, quiet, verbose), model, output, options)


@app.command()
def tune(
    model: Model,
    target: TargetName,
    device: Device = None,
    tuning_db: TuningDb = None,
    shape: Shapes = None,
    constant: Constants = None,
    threads: Threads = None,
    mode: Annotated[
        str,
        typer.Option("--tune", metavar="quick|full|N", help="How long to search."),
    ] = "full",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure kernel configurations for a model into the tuning database."""
    from effc.cli.build import tune_command

    tune_command(
        Console(as_json, quiet, verbose),
        model,
        target=target,
        device=device,
        shapes=shape or [],
        constants=constant or [],
        threads=threads or 1,
        tune=mode,
        tuning_db=tuning_db,
    )


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def targets(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List what --target takes."""
    from effc.cli.show import targets_command

    targets_command(Console(as_json, quiet, verbose))


@app.command()
def devices(
    device: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[DEVICE]...", help="Also look at these, for example ssh:HOST."),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove the files that effc keeps on the devices.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List where artifacts can run from this machine, and what is connected."""
    from effc.cli.devices import devices_command

    devices_command(Console(as_json, quiet, verbose), device or [], clean=clean)


@app.command()
def doctor(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check this installation and say what to install."""
    from effc.cli.show import doctor_command

    doctor_command(Console(as_json, quiet, verbose))
