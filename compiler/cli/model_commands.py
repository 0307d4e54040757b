"""Commands that take a model: ``compile``, ``compress``, ``tune``.

Only flags and their meaning; what commands do is in sibling modules, imported when one is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from effc.cli.compression_flags import NO_COMPRESSION, CompressionFlags, with_compression_flags
from effc.cli.console import Console
from effc.cli.flags import (
    Constants,
    Device,
    Flash,
    Json,
    Model,
    Optimize,
    Precision,
    Quiet,
    Ram,
    Shapes,
    TargetName,
    Threads,
    TuningDb,
    Verbose,
)

__all__ = ["compile_", "compress", "tune"]


@with_compression_flags
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
    stop_after: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--stop-after",
            metavar="PHASE",
            help="Make no artifact; end after import, passes, regions, kernels, storage or lower.",
        ),
    ] = None,
    dump: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--dump", metavar="DIR", help="Write what every phase makes, as files."),
    ] = None,
    compression: CompressionFlags = NO_COMPRESSION,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compile a model into an artifact."""
    from effc.cli.arguments import parse_compression, parse_options
    from effc.cli.build import compile_command

    compress_options = parse_compression(**compression, shapes=shape, constants=constant)
    options = parse_options(
        target=target,
        name=name,
        shapes=shape,
        constants=constant,
        threads=threads,
        tune=tune,
        tuning_db=tuning_db,
        verify=verify,
        precision=precision,
        calibration=compress_options.calibration if precision != "f32" else None,
        samples=compress_options.samples,
        abis=tuple(part.strip() for part in abi.split(",")) if abi else (),
        weights=weights,
        ram=ram,
        flash=flash,
        optimize=optimize,
        stop_after=stop_after,
        dump=dump,
    )
    compile_command(Console(as_json, quiet, verbose), model, output, options, compress_options)


@with_compression_flags
def compress(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SMALL.onnx", help="Model to write.")
    ],
    compression: CompressionFlags = NO_COMPRESSION,
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
    from effc.cli.arguments import parse_compression, parse_options
    from effc.cli.compress import compress_command

    timing = parse_options(target=target, threads=threads, tune=tune, tuning_db=tuning_db)
    options = parse_compression(**compression, shapes=shape, constants=constant, timing=timing)
    compress_command(Console(as_json, quiet, verbose), model, output, options)


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
    from effc.cli.arguments import parse_options
    from effc.cli.build import tune_command

    options = parse_options(
        target=target,
        shapes=shape,
        constants=constant,
        threads=threads,
        tune=mode,
        tuning_db=tuning_db,
    )
    tune_command(Console(as_json, quiet, verbose), model, device, options)
