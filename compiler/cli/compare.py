"""``effc compare``."""

from __future__ import annotations

from pathlib import Path

from effc.cli.console import Console
from effc.cli.files import check_output_file, output_file
from effc.errors import UsageError

__all__ = ["compare_command"]


def compare_command(
    console: Console,
    model: Path,
    path: Path,
    source: Path | None,
    device: str | None,
    variant: str | None,
    report: Path | None,
) -> None:
    """Compare an artifact with its float model layer by layer, the worst layer first."""
    from effc.artifact import load_artifact
    from effc.comparison import compare_artifact

    if not model.is_file():
        raise UsageError("no such file", where=str(model), expected="an ONNX model")
    if report is not None:
        check_output_file(report, "--report")
    artifact = load_artifact(path)
    with console.progress() as progress:
        result = compare_artifact(
            model, artifact, inputs=source, device=device, variant=variant, progress=progress
        )
    facts = result.describe()
    if report is not None:
        from effc.report import render_report

        with output_file(report, "--report") as file:
            file.write_text(render_report(artifact.manifest, facts), encoding="utf-8")
        facts["report"] = str(report)
    console.result(facts)
    console.table(
        ["layer", "op", "kernel", "own SNR dB", "output SNR dB", "max error", "tensor"],
        [
            [
                layer["name"],
                layer["op"],
                layer["kernel"],
                _decibels(layer["own_snr_db"]),
                _decibels(layer["output_snr_db"]),
                "" if layer["output_max_abs_error"] is None else layer["output_max_abs_error"],
                ", ".join(layer["tensors"])[:60],
            ]
            for layer in facts["layers"]
        ],
        title=f"{result.samples} sample(s) on {result.device}, code {result.variant}; "
        "the layer that adds most error first",
        right=["own SNR dB", "output SNR dB", "max error"],
    )
    for output in facts["outputs"]:
        console.say(f"output {output['name']}: SNR {_decibels(output['snr_db'])} dB")
    for layer in (*facts["layers"], *facts["unmatched"]):
        if layer["why"]:
            console.note(f"{layer['name']}: {layer['why']}")
    if report is not None:
        console.say(f"report {report}")


def _decibels(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "identical" if value >= 300 else f"{value:.1f}"
