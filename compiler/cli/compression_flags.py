"""The flags of compression, which ``effc compile`` and ``effc compress`` share.

Like ``app``, imported for ``effc --help``: nothing heavier than typer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

__all__ = ["NO_COMPRESSION", "CompressionFlags", "with_compression_flags"]

CompressionFlags = Mapping[str, Any]
"""Values of the flags, by the names of the fields of ``CompressOptions``."""

NO_COMPRESSION: CompressionFlags = {}

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
GroupSize = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--group", metavar="N", help="Of integer weights alone: this many share a scale (int4: 32)."
    ),
]
RecipeFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--recipe", metavar="R.toml", help="Settings, with exceptions per layer."),
]
WorkFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--work", metavar="DIR", help="Where an interrupted compression continues."),
]

_FLAGS = {
    "prune": Prune,
    "sparsity": Sparsity,
    "speedup": Speedup,
    "latency_ms": LatencyMs,
    "block": Block,
    "method": Method,
    "calibration": Calibration,
    "samples": Samples,
    "correct": Correct,
    "regroup": Regroup,
    "quantize": Quantize,
    "ranges": Ranges,
    "rounding": Rounding,
    "equalize": Equalize,
    "refine": Refine,
    "max_drop": MaxDrop,
    "widen": Widen,
    "group": GroupSize,
    "recipe": RecipeFile,
    "work": WorkFolder,
}


def with_compression_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of compression in place of its parameter ``compression``.

    typer reads signatures: the flags are put into the command's, and what was given is collected.
    """
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name != "compression":
            parameters.append(parameter)
            continue
        parameters += [
            inspect.Parameter(name, parameter.kind, default=None, annotation=flag)
            for name, flag in _FLAGS.items()
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        compression = {name: given.pop(name) for name in _FLAGS}
        command(**given, compression=compression)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
