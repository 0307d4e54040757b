"""The arguments and flags that commands of ``effc`` share, as typer reads them.

Like ``app``, imported for ``effc --help``: nothing heavier than typer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = [
    "Abi",
    "ArtifactPath",
    "Block",
    "Calibration",
    "Constants",
    "Correct",
    "Device",
    "Equalize",
    "Flash",
    "GroupSize",
    "Input",
    "Json",
    "LatencyMs",
    "MaxDrop",
    "Method",
    "Model",
    "Optimize",
    "Precision",
    "Prune",
    "Quantize",
    "Quiet",
    "Ram",
    "Ranges",
    "RecipeFile",
    "Refine",
    "Regroup",
    "Rounding",
    "Samples",
    "Shapes",
    "Sparsity",
    "Speedup",
    "TargetName",
    "Threads",
    "TuningDb",
    "Variant",
    "Verbose",
    "Widen",
    "WorkFolder",
]

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="ONNX model.")]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="Folder or .effc file that compile wrote.")
]
Abi = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--abi", metavar="ABI", help="Which library of the artifact; default: the first."),
]
TargetName = Annotated[
    str, typer.Option("--target", metavar="TARGET", help="What to compile for; see effc targets.")
]
Shapes = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads annotations at run time)
    typer.Option(
        "--shape", metavar="NAME:1,3,224,224", help="Shape of an input with open dimensions."
    ),
]
Constants = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--constant",
        metavar="NAME=VALUE",
        help="Fix an input to a value (a number, or numbers with commas).",
    ),
]
Threads = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--threads", metavar="N", min=1, max=64, help="Threads of one inference."),
]
TuningDb = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--tuning-db", metavar="FILE", help="Tuning database to read and extend."),
]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--device", metavar="DEVICE", help="Where to run; see effc devices."),
]
Variant = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--variant",
        metavar="NAME",
        help="Version of the code; see effc inspect. Default: the best for the processor.",
    ),
]
Input = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--input",
        metavar="X.npz",
        help="Arrays by input name, or x (stacked samples) and y (labels).",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="f32|f16",
        help="f16: half precision, computed where the target can, stored where not.",
    ),
]
Ram = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--ram", metavar="BYTES", help="Most RAM on a microcontroller (64k); default: the board's."
    ),
]
Flash = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--flash", metavar="BYTES", help="Most flash on a microcontroller; default: the board's."
    ),
]
Optimize = Annotated[
    str,
    typer.Option(
        "--optimize",
        metavar="balanced|size|speed",
        help="What code for a microcontroller is chosen for.",
    ),
]
Prune = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--prune",
        metavar="SCHEME",
        help="Make weights zero: block-punched, unstructured, 2:4 (any n:m), pattern; "
        "or remove whole channels: channel.",
    ),
]
Sparsity = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--sparsity",
        metavar="S",
        help="Fraction of zeros, or of channels removed, in every pruned layer.",
    ),
]
Speedup = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--speedup",
        metavar="X",
        help="Instead of a sparsity: times faster than dense; levels per layer from measured time.",
    ),
]
LatencyMs = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--latency-ms", metavar="L", help="Instead of a sparsity: most milliseconds per inference."
    ),
]
Block = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--block", metavar="8x4", help="Filters x input channels that are pruned together."
    ),
]
Method = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--method", metavar="obs|magnitude", help="How zeros are chosen; with data: obs."),
]
Calibration = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--calibration", metavar="X.npz", help="Samples: x (stacked), or arrays by input name."
    ),
]
Samples = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--samples", metavar="N", help="Calibration samples to use at most (1024)."),
]
Correct = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--correct",
        metavar="refit|statistics|bias|none",
        help="What makes up for the zeros; with data: a refit to the dense model.",
    ),
]
Regroup = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--regroup", metavar="8x4", help="Turn zeros made elsewhere into blocks of this shape."
    ),
]
Quantize = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--quantize",
        metavar="MODE",
        help="int8: weights and activations; int8-weights, int4-weights: weights alone, for size.",
    ),
]
Ranges = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--ranges",
        metavar="minmax|percentile|mse|entropy",
        help="How ranges of activations are chosen.",
    ),
]
Rounding = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--rounding", metavar="obq|nearest", help="How weights are rounded."),
]
MaxDrop = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        help="Most per cent of samples whose top-1 quantization may change; "
        "operators are widened until no more is.",
    ),
]
Widen = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--widen", metavar="float|int16", help="What widened operators have."),
]
RecipeFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--recipe", metavar="R.toml", help="Settings, with exceptions per layer."),
]
WorkFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--work", metavar="DIR", help="Where an interrupted compression continues."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what every pass did.")]
GroupSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--group", metavar="N", help="Of integer weights alone: this many share a scale (int4: 32)."
    ),
]
Equalize = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--equalize/--no-equalize", help="Even out channels between two layers before quantizing."
    ),
]
Refine = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--refine/--no-refine", help="Refine ranges by what the layers make of their errors."
    ),
]
