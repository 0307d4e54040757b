"""``effc export``."""

from __future__ import annotations

from pathlib import Path

from effc.cli.console import Console
from effc.figures import human_bytes

__all__ = ["export_command"]


def export_command(
    console: Console, artifact: Path, format: str, output: Path, *, version: str, group: str
) -> None:
    """Pack an artifact and say how an app takes the package in."""
    from effc.packages.formats import export

    done = export(artifact, format, output, version=version, group=group)
    sizes = {file: (output / file).stat().st_size for file in done.files}
    console.result(
        {
            "ok": True,
            "format": format,
            "output": str(output),
            "files": [{"path": file, "bytes": size} for file, size in sizes.items()],
            "bytes": sum(sizes.values()),
            "usage": done.usage,
        }
    )
    console.say(f"{output}: {len(sizes)} file(s), {human_bytes(sum(sizes.values()))}")
    console.say(done.usage)
