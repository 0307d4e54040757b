"""Verify a library in every version of its code that a device can run.

Each version is compared with the reference like the first one, and with the first one itself:
integer outputs must be the same bits, float outputs say whether they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from effc.devices.target import BASE
from effc.execute import Executor, open_library, variant_names, variant_refusal
from effc.samples import Arrays
from effc.verification import VariantCheck, Verification
from effc.verify import Execute

__all__ = ["verify_library"]


def verify_library(
    library: Path,
    manifest: Mapping[str, Any],
    device: str | None,
    threads: int | None,
    variant: str | None,
    check: Callable[[Executor, Execute], Verification],
) -> Verification:
    """Verify a library.

    Args:
        library, manifest: What to verify.
        device, threads: As for :func:`effc.execute.open_library`.
        variant: The only version to verify; all that the device runs if ``None``.
        check: Verifies an opened library through the given function, which runs it.

    Returns:
        The result for the first version, with those of the others in ``variants``.

    Raises:
        EffcError: As ``check`` and ``open_library``.
    """
    wanted = [variant] if variant else [BASE, *reversed(variant_names(manifest)[:-1])]
    results: list[tuple[Verification, _Recorder]] = []
    skipped: list[str] = []
    for name in wanted:
        refusal = variant_refusal(manifest, device, name)
        if refusal is not None and variant is None and name != BASE:
            skipped.append(f"variant {name} was not verified: {refusal}")
            continue
        with open_library(library, manifest, device, threads, name) as executor:
            recorder = _Recorder(executor)
            results.append((check(executor, recorder.run), recorder))
            recorder.name = name
    first, base = results[0]
    for result, recorder in results[1:]:
        first.variants.append(
            VariantCheck(
                recorder.name,
                result.outputs,
                identical=recorder.all.digest() == base.all.digest(),
                same_integers=recorder.integers.digest() == base.integers.digest(),
            )
        )
        first.notes += [f"variant {recorder.name}: {note}" for note in result.notes]
    first.notes += skipped
    return first


class _Recorder:
    """Runs an executor and remembers a digest of what came out."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.name = BASE
        self.all = hashlib.sha256()
        self.integers = hashlib.sha256()

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        outputs = self.executor.run(inputs)
        for array in outputs.values():
            self.all.update(array.tobytes())
            if array.dtype.kind in "biu":
                self.integers.update(array.tobytes())
        return outputs
