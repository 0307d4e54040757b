"""Compare a compiled model with ONNX Runtime on the same inputs.

The artifact runs through an ``Execute`` function (natively or in an emulator, see
``effc.execute``), the reference through ONNX Runtime on the user's own model, so that
errors of the importer show as well. What counts as equal: ``effc.metrics``.

If a result misses its limit, ONNX Runtime runs once more on inputs that differ by a
relative 2^-20. If that alone moves the reference by more, the model amplifies
rounding on these inputs; the limit is lowered by the amplification measured. Quantized models
are amplifiers by steps: if their outputs miss a limit, one element in sixteen of the inputs
is moved by a step (2^-8 of its magnitude if it is a float), and outputs may differ by as much as
the reference then does: 8-bit ones by as many steps, float ones by the same ratio of signal to
noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from effc.errors import ModelError
from effc.metrics import OutputError, accumulated_length, is_quantized
from effc.options import ProgressCallback
from effc.reference import Reference
from effc.samples import Dataset, Tensor, generate
from effc.verification import Verification

__all__ = ["Execute", "verify"]

Execute = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Runs one inference: arrays by input name to arrays by output name."""

_PERTURBATION = 2.0**-20
_MAX_AMPLIFICATION = 1e4
_MAX_STEPS = 64
_LEAST_DB = 15.0
"""A model that amplifies a step by more tells nothing about its implementation."""


class _Comparison:
    """Errors and classes, accumulated sample by sample so that memory stays bounded."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self.outputs = [Tensor.of(entry) for entry in manifest["outputs"]]
        length = accumulated_length(manifest["layers"])
        quantized = is_quantized(manifest)
        self.errors = [OutputError.start(t.name, t.dtype, length, quantized) for t in self.outputs]
        self.classes: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> None:
        for tensor, error in zip(self.outputs, self.errors, strict=True):
            reference = want.get(tensor.name)
            if reference is None or reference.shape != tensor.shape:
                raise ModelError(
                    "the reference model has other outputs than the artifact",
                    where=tensor.name,
                    expected=tensor.shape,
                    got=None if reference is None else reference.shape,
                    hint="is this the model that the artifact was compiled from?",
                )
            error.add(reference, got[tensor.name])
        first = self.outputs[0].name
        self.classes.append((_classes(want[first]), _classes(got[first])))


def verify(
    manifest: Mapping[str, Any],
    execute: Execute,
    reference: Reference,
    device: str,
    data: Dataset | None = None,
    limits: Mapping[str, int] | None = None,
    progress: ProgressCallback | None = None,
) -> Verification:
    """Run artifact and reference on the same inputs.

    Args:
        manifest: Of the artifact.
        execute: Runs the artifact.
        reference: Runs the original.
        device: Name for the record.
        data: Inputs; generated if ``None``.
        limits: See :func:`effc.samples.generate`.
        progress: Called after every sample.

    Raises:
        ModelError: The reference cannot run, or has other outputs.
    """
    import onnxruntime as ort

    if data is None:
        data = Dataset([generate([Tensor.of(e) for e in manifest["inputs"]], limits)])
    comparison = _Comparison(manifest)
    for number, sample in enumerate(data.samples):
        comparison.add(reference(sample), execute(sample))
        if progress is not None:
            progress("verify", number + 1, len(data.samples))
    against = f"onnxruntime {ort.__version__}"
    result = Verification(device, against, data.count, comparison.errors)
    if not result.ok:
        allow = _allow_steps if is_quantized(manifest) else _allow_amplification
        allow(result, comparison.outputs, reference, data.samples[0])
    if data.labels is not None:
        _score(result, data, comparison.classes)
    return result


def _allow_amplification(
    result: Verification,
    outputs: Sequence[Tensor],
    reference: Reference,
    sample: Mapping[str, np.ndarray],
) -> None:
    original = reference(sample)
    moved = reference({name: _perturb(array) for name, array in sample.items()})
    for tensor, error in zip(outputs, result.outputs, strict=True):
        if error.limit_db is None or error.mismatches or error.ok:
            continue
        change = OutputError.start(tensor.name, tensor.dtype, 1)
        change.add(original[tensor.name], moved[tensor.name])
        factor = 10.0 ** (-change.snr_db / 20.0) / _PERTURBATION
        if 1.0 < factor < _MAX_AMPLIFICATION:
            error.limit_db -= 20.0 * math.log10(factor)
            result.notes.append(
                f"{tensor.name}: the model amplifies a relative change of 2^-20 of its inputs "
                f"by {factor:.3g}; the limit was lowered accordingly"
            )


def _allow_steps(
    result: Verification,
    outputs: Sequence[Tensor],
    reference: Reference,
    sample: Mapping[str, np.ndarray],
) -> None:
    original = reference(sample)
    moved = reference({name: _step(array) for name, array in sample.items()})
    for tensor, error in zip(outputs, result.outputs, strict=True):
        if error.ok:
            continue
        want, got = original[tensor.name], moved[tensor.name]
        allowed = ""
        if error.limit_steps:
            steps = int(np.abs(want.astype(np.int64) - got).max(initial=0))
            if error.limit_steps < steps <= _MAX_STEPS:
                error.allow_steps(steps)
                allowed = f"by {steps} steps"
        elif error.limit_db is not None and not error.mismatches:
            change = OutputError.start(tensor.name, tensor.dtype, 1)
            change.add(want, got)
            if _LEAST_DB <= change.snr_db < error.limit_db:
                error.limit_db = change.snr_db
                allowed = f"to {change.snr_db:.1f} dB"
        if allowed:
            result.notes.append(
                f"{tensor.name}: a step in one of sixteen input elements moves the reference "
                f"{allowed}, which was allowed"
            )


def _step(array: np.ndarray) -> np.ndarray:
    """Every sixteenth element moved by a step of 8 bits, up and down in turn."""
    which = np.arange(array.size).reshape(array.shape)
    signs = np.where(which % 16, 0, np.where(which % 32, 1, -1))
    if array.dtype.kind == "f":
        return np.asarray(array * (1.0 + 2.0**-8 * signs)).astype(array.dtype)
    if array.dtype not in (np.int8, np.uint8):
        return array
    limits = np.iinfo(array.dtype)
    moved = np.clip(array.astype(np.int64) + signs, limits.min, limits.max)
    return np.asarray(moved.astype(array.dtype))


def _perturb(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    signs = np.where(np.arange(array.size) % 2, 1.0, -1.0).reshape(array.shape)
    return np.asarray(array * (1.0 + _PERTURBATION * signs)).astype(array.dtype)


def _score(
    result: Verification, data: Dataset, classes: Sequence[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Top-1 figures: the class is the argmax over the first output's last axes."""
    labels = data.labels
    want, got = (np.concatenate([pair[side] for pair in classes])[: data.count] for side in (0, 1))
    if labels is None or want.shape != labels.shape:
        return
    result.agreement = float((want == got).mean())
    result.accuracy = float((got == labels).mean())
    result.reference_accuracy = float((want == labels).mean())


def _classes(scores: np.ndarray) -> np.ndarray:
    """One class per sample; ``(N, 1, 1, C)`` and ``(N, C, 1, 1)`` count as ``(N, C)``."""
    count = len(scores) if scores.ndim > 1 else 1
    if not scores.size:  # a batch of none, or samples without values
        return np.zeros(count, np.int64)
    return np.asarray(scores.reshape(count, -1).argmax(axis=1))
