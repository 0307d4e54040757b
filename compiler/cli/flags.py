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
    "Constants",
    "Device",
    "Flash",
    "Input",
    "Json",
    "Model",
    "Optimize",
    "Precision",
    "Quiet",
    "Ram",
    "Shapes",
    "TargetName",
    "Threads",
    "TuningDb",
    "Variant",
    "Verbose",
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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what every pass did.")]
