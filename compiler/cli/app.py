"""The commands of ``effc``, in the order in which ``effc --help`` lists them.

This module is imported for ``effc --help``, so it imports nothing heavier than typer.
"""

from __future__ import annotations

from typing import Annotated

import typer

from effc.cli.artifact_commands import bench, compare, explain, export, inspect, run, verify
from effc.cli.machine_commands import devices, doctor, targets
from effc.cli.model_commands import compile_, compress, tune

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


app.command("compile")(compile_)
for command in (
    compress,
    tune,
    run,
    verify,
    bench,
    compare,
    export,
    inspect,
    explain,
    targets,
    devices,
    doctor,
):
    app.command()(command)
