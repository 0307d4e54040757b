"""Golden inputs and outputs: what an artifact needs to test itself, without the model.

``selftest.npz`` holds ``in|NAME`` and ``out|NAME``. Inputs are generated again from
their names (``effc.samples``), so they are stored only while small; of large outputs an
evenly spaced part is kept, its positions in ``at|NAME``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effc.errors import UsageError
from effc.metrics import OutputError, accumulated_length, is_quantized
from effc.samples import Arrays, Tensor, generate, read_npz

if TYPE_CHECKING:
    from effc.artifact import Artifact
    from effc.execute import Executor
    from effc.verify import Reference, Verification

__all__ = ["FILE", "verify_against_golden", "write_golden"]

FILE = "selftest.npz"
_INPUT_BYTES = 1 << 20
_OUTPUT_ELEMENTS = 1 << 16
_DATE = (1980, 1, 1, 0, 0, 0)


def write_golden(
    folder: Path,
    manifest: Mapping[str, Any],
    reference: Reference,
    limits: Mapping[str, int],
) -> None:
    """Write ``selftest.npz`` into the folder of an artifact that passed verification.

    Args:
        folder: The artifact.
        manifest: Its manifest.
        reference: Computes the expected outputs.
        limits: See :func:`effc.samples.generate`.
    """
    inputs = generate([Tensor.of(entry) for entry in manifest["inputs"]], limits)
    arrays: Arrays = {}
    stored = sum(array.nbytes for array in inputs.values()) <= _INPUT_BYTES or bool(limits)
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
    _write_npz(folder / FILE, arrays)


def _write_npz(path: Path, arrays: Arrays) -> None:
    """Like ``numpy.savez_compressed``, with fixed dates: equal arrays give equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def verify_against_golden(artifact: Artifact, executor: Executor) -> Verification:
    """Run an artifact on its golden inputs.

    Raises:
        UsageError: It was compiled without verification and holds none.
    """
    from effc.verify import Verification

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
    results = executor.run(inputs or generate(tensors))
    length = accumulated_length(artifact.manifest["layers"])
    errors = []
    for entry in artifact.manifest["outputs"]:
        name = entry["name"]
        got = results[name].ravel()
        if f"at|{name}" in arrays:
            got = got[arrays[f"at|{name}"]]
        quantized = is_quantized(artifact.manifest)
        error = OutputError.start(name, entry["dtype"], length, quantized)
        error.add(arrays[f"out|{name}"], got)
        errors.append(error)
    _keep_limits(errors, artifact.manifest)
    return Verification(executor.device, "golden outputs", 1, errors)


def _keep_limits(errors: list[OutputError], manifest: Mapping[str, Any]) -> None:
    """Use the limits of the verification at compile time, see ``effc.verify``."""
    recorded = {o["name"]: o["snr_limit_db"] for o in manifest["verification"]["outputs"]}
    for error in errors:
        error.limit_db = recorded.get(error.name, error.limit_db)
