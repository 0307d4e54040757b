"""Commands about this machine and what it knows: ``targets``, ``devices``, ``doctor``.

Only flags and their meaning; what commands do is in sibling modules, imported when one is called.
"""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from effc.cli.console import Console
from effc.cli.flags import Json, Quiet, Verbose

__all__ = ["devices", "doctor", "targets"]


def targets(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List what --target takes."""
    from effc.cli.show import targets_command

    targets_command(Console(as_json, quiet, verbose))


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


def doctor(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Check this installation and say what to install."""
    from effc.cli.show import doctor_command

    doctor_command(Console(as_json, quiet, verbose))
