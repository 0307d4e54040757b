"""Golden inputs and outputs: what an artifact needs to test itself, without the model.

``selftest.npz`` holds ``in|NAME`` and ``out|NAME``. Inputs are generated again from
their names (``effc.samples``), so they are stored only while small; of large outputs an
evenly spaced part is kept, its positions in ``at|NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effc.errors import ModelError, UsageError
from effc.metrics import OutputError, accumulated_length, is_quantized
from effc.samples import Arrays, Tensor, generate, numpy_dtype, read_npz, write_npz

if TYPE_CHECKING:
    from effc.artifact import Artifact
    from effc.reference import Reference
    from effc.verification import Verification
    from effc.verify import Execute

__all__ = ["FILE", "verify_against_golden", "write_golden"]

FILE = "selftest.npz"
_INPUT_BYTES = 1 << 20
_OUTPUT_ELEMENTS = 1 << 16


def write_golden(
    folder: Path,
    manifest: Mapping[str, Any],
    reference: Reference,
    limits: Mapping[str, int],
    inputs: Arrays | None = None,
) -> None:
    """Write ``selftest.npz`` into the folder of an artifact that passed verification.

    Args:
        folder: The artifact.
        manifest: Its manifest.
        reference: Computes the expected outputs.
        limits: See :func:`effc.samples.generate`.
        inputs: Instead of generated ones.
    """
    given = inputs is not None
    if inputs is None:
        inputs = generate([Tensor.of(entry) for entry in manifest["inputs"]], limits)
    arrays: Arrays = {}
    small = sum(array.nbytes for array in inputs.values()) <= _INPUT_BYTES
    stored = small or given or bool(limits)
    if stored:
        arrays |= {f"in|{name}": array for name, array in inputs.items()}
    outputs = reference(inputs)
    for entry in manifest["outputs"]:
        values = outputs[entry["name"]].ravel()
        if values.size > _OUTPUT_ELEMENTS:
            at = np.linspace(0, values.size - 1, _OUTPUT_ELEMENTS).astype(np.int64)
            arrays[f"at|{entry['name']}"] = at
            values = values[at]
        arrays[f"out|{entry['name']}"] = values
    with (folder / FILE).open("wb") as stream:
        write_npz(stream, arrays)


def verify_against_golden(artifact: Artifact, execute: Execute, device: str) -> Verification:
    """Run an artifact on its golden inputs.

    Args:
        artifact: What is verified.
        execute: Runs it.
        device: Name for the record.

    Raises:
        UsageError: It was compiled without verification and holds none.
        ModelError: They are not those of this artifact.
    """
    from effc.verification import Verification

    file = artifact.file(FILE)
    if file is None:
        raise UsageError(
            "the artifact holds no golden outputs",
            where=str(artifact.path),
            hint="give the model with --model, or compile it without --no-verify",
        )
    arrays = read_npz(file)
    tensors = [Tensor.of(entry) for entry in artifact.manifest["inputs"]]
    inputs = {t.name: arrays[f"in|{t.name}"] for t in tensors if f"in|{t.name}" in arrays}
    results = dict(execute(inputs or generate(tensors)))
    length = accumulated_length(artifact.manifest["layers"])
    errors = []
    for entry in artifact.manifest["outputs"]:
        name = entry["name"]
        want, got = _stored(arrays, results, Tensor.of(entry), file)
        quantized = is_quantized(artifact.manifest)
        error = OutputError.start(name, entry["dtype"], length, quantized)
        error.add(want, got)
        errors.append(error)
    _keep_limits(errors, artifact.manifest)
    return Verification(device, "golden outputs", 1, errors)


def _stored(
    arrays: Arrays, results: Arrays, tensor: Tensor, file: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The golden elements of an output and the computed ones, both flat."""
    want = arrays.get(f"out|{tensor.name}", np.empty(0, "V1"))
    got = results.get(tensor.name, np.empty(0)).ravel()
    at = arrays.get(f"at|{tensor.name}")
    fits = want.dtype == numpy_dtype(tensor.dtype) and got.size == prod(tensor.shape)
    if fits and at is not None:
        fits = at.dtype == np.int64 and at.size > 0 and 0 <= at.min() <= at.max() < got.size
        got = got[at.ravel()] if fits else got
    if not fits or want.size != got.size:
        raise ModelError(
            "the golden outputs are not those of this artifact",
            where=f"{file}: {tensor.name}",
            hint="compile the model again",
        )
    return want.ravel(), got


def _keep_limits(errors: list[OutputError], manifest: Mapping[str, Any]) -> None:
    """Use the limits of the verification at compile time, see ``effc.verify``."""
    verification = manifest["verification"] or {"outputs": []}
    recorded = {o["name"]: o["snr_limit_db"] for o in verification["outputs"]}
    for error in errors:
        error.limit_db = recorded.get(error.name, error.limit_db)
