"""``effc compress``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from effc.cli.console import Console
from effc.cli.files import check_output_file, output_file
from effc.compression.options import CompressOptions
from effc.errors import UsageError
from effc.figures import human_bytes

if TYPE_CHECKING:
    from effc.compression.workflow import LayerResult

__all__ = ["compress_command"]


def compress_command(console: Console, model: Path, output: Path, options: CompressOptions) -> None:
    """Compress a model and say what became of each layer."""
    options.require_active()
    if not model.is_file():
        raise UsageError("no such file", where=str(model), expected="an ONNX model")
    check_output_file(output, "-o")
    if output.exists() and output.samefile(model):
        raise UsageError(
            "the result would replace the model", where=f"-o {output}", expected="another file"
        )

    from effc.compression.workflow import compress_model

    with console.progress() as progress:
        done = compress_model(model, options, progress)
    with output_file(output, "-o") as file:
        file.write_bytes(done.model.SerializeToString())
    weights = sum(layer.weights for layer in done.layers)
    zeros = sum(round(layer.sparsity * layer.weights) for layer in done.layers)
    console.result(
        {
            "ok": True,
            "output": str(output),
            "sparsity": zeros / max(weights, 1),
            "layers": [asdict(layer) for layer in done.layers],
            "passes": [asdict(record) for record in done.passes],
            "notes": list(done.notes),
            "levels": None if done.levels is None else done.levels.record,
        }
    )
    _show_layers(console, done.layers)
    share = f", {zeros / weights:.1%} of {weights} weights are zero" if zeros else ""
    console.say(f"{output}: {human_bytes(output.stat().st_size)}{share}")
    for note in done.notes:
        console.note(note)
    if console.verbose:
        for record in done.passes:
            for text in (*record.applied, *(f"refused at {why}" for why in record.refused)):
                console.note(f"{record.name}: {text}")


def _show_layers(console: Console, layers: Sequence[LayerResult]) -> None:
    """A table of what became of each layer, with the columns that say something."""
    columns = {
        "layer": [layer.name for layer in layers],
        "op": [layer.op for layer in layers],
        "precision": [layer.precision for layer in layers],
        "zeros": [f"{layer.sparsity:.1%}" if layer.sparsity else "" for layer in layers],
        "channels": [layer.channels for layer in layers],
        "scheme": [layer.scheme for layer in layers],
        "block": [layer.block for layer in layers],
        "method": [layer.method for layer in layers],
        "loss": ["" if layer.loss is None else f"{layer.loss:.2e}" for layer in layers],
        "not pruned because": [layer.why for layer in layers],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    rows = list(zip(*shown.values(), strict=True))
    console.table(list(shown), rows, right=["zeros", "channels", "loss"])
