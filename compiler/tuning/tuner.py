"""Choose a template and a configuration for every distinct layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels import registry
from effc.kernels.region import Region
from effc.kernels.template import Choice

__all__ = ["tune"]

Progress = Callable[[int, int, str], None]


def tune(
    regions: Sequence[Region],
    target: Target,
    mode: str | int,
    database: Path | None,
    threads: int,
    progress: Progress | None = None,
) -> tuple[dict[str, Choice], dict[str, object]]:
    """Choose how each distinct layer is computed.

    Args:
        regions: Layers of the model.
        target: What to compile for.
        mode: ``none``.
        database: Tuning database.
        threads: Threads to optimise for.
        progress: Called with layers done, layers in total, and a text.

    Returns:
        One choice per ``Region.key``, and what was done (for the manifest).
    """
    chosen: dict[str, Choice] = {}
    for region in regions:
        if region.key in chosen:
            continue
        options = registry.choices(region, target)
        if not options:
            raise UnsupportedError("no kernel computes this layer", where=region.name)
        chosen[region.key] = options[0]
    return chosen, {"mode": mode}
