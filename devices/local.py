"""This machine as a device: runs a runner natively."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from effc.devices.execution import Execution, TensorSpec, execute

__all__ = ["run_local"]


def run_local(
    runner: Path,
    samples: Sequence[Mapping[str, npt.ArrayLike]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    **options: Any,
) -> Execution:
    """Run a runner natively; see ``effc.devices.execution.execute`` for the arguments."""
    return execute([str(runner.resolve())], samples, inputs, outputs, **options)
