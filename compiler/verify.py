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
noise. ONNX Runtime runs quantized models as they are written: its optimized products of bytes
saturate on x86 processors without VNNI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from effc.errors import ModelError, ToolError
from effc.metrics import OutputError, accumulated_length, is_quantized
from effc.options import ProgressCallback
from effc.samples import Arrays, Dataset, Tensor, generate, index_limits

__all__ = [
    "Execute",
    "Reference",
    "VariantCheck",
    "Verification",
    "open_reference",
    "reference_limits",
    "verify",
]

Execute = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Runs one inference: arrays by input name to arrays by output name."""

_PERTURBATION = 2.0**-20
_MAX_AMPLIFICATION = 1e4
_MAX_STEPS = 64
_LEAST_DB = 15.0
"""A model that amplifies a step by more tells nothing about its implementation."""


class Reference:
    """A model in ONNX Runtime.

    Args:
        source: Model file (external data beside it), or the model in memory.
        constants: Inputs that were fixed at compile time.
        optimize: Whether ONNX Runtime may fuse operators.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """

    def __init__(
        self, source: Any, constants: Mapping[str, Any] | None = None, *, optimize: bool = True
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise ToolError(
                "onnxruntime is not installed", hint="pip install onnxruntime"
            ) from error
        ort.set_default_logger_severity(4)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Products by 4-bit weights in float32; by default it rounds what they read to 8 bits.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if not optimize or _is_quantized(source):
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        model = str(source) if isinstance(source, str | Path) else source.SerializeToString()
        try:
            self.session = ort.InferenceSession(model, options, ["CPUExecutionProvider"])
        except Exception as error:  # its exception types are private
            raise ModelError(
                "ONNX Runtime cannot load the model", got=_first_line(error)
            ) from error
        self.constants = {
            i.name: np.asarray(constants[i.name]).astype(_dtype(i.type)).reshape(_fixed(i.shape))
            for i in self.session.get_inputs()
            if constants and i.name in constants
        }

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name.

        Raises:
            ModelError: ONNX Runtime fails on these inputs.
        """
        names = [output.name for output in self.session.get_outputs()]
        try:
            results = self.session.run(names, {**inputs, **self.constants})
        except Exception as error:
            raise ModelError("ONNX Runtime cannot run the model", got=_first_line(error)) from error
        return {name: np.asarray(value) for name, value in zip(names, results, strict=True)}


def _fixed(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else 1 for d in shape)


def _dtype(ort_type: str) -> np.dtype[Any]:
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@dataclass(frozen=True)
class VariantCheck:
    """Result for a further version of the code.

    Attributes:
        name: Of the variant.
        outputs: Its errors against the reference.
        identical: All outputs have the bits of the first version's.
        same_integers: The integer ones have.
    """

    name: str
    outputs: list[OutputError]
    identical: bool
    same_integers: bool

    @property
    def ok(self) -> bool:
        """Within every limit, and integers do not depend on the version."""
        return self.same_integers and all(output.ok for output in self.outputs)

    def describe(self) -> dict[str, Any]:
        """For JSON and the manifest."""
        return {
            "name": self.name,
            "ok": self.ok,
            "identical": self.identical,
            "snr_db": min(output.describe()["snr_db"] for output in self.outputs),
        }


@dataclass
class Verification:
    """Result of a comparison.

    Attributes:
        device: Where the artifact ran.
        against: ``onnxruntime VERSION`` or ``golden outputs``.
        samples: Number of samples compared.
        outputs: One record per output.
        agreement: Share of samples with the same top-1 class, if labels were given.
        accuracy, reference_accuracy: Share of right classes of the artifact and the reference.
        notes: Limits that were lowered, and why; what was left out.
        variants: Further versions of the code, see ``effc.verify_variants``.
    """

    device: str
    against: str
    samples: int
    outputs: list[OutputError]
    agreement: float | None = None
    accuracy: float | None = None
    reference_accuracy: float | None = None
    notes: list[str] = field(default_factory=list)
    variants: list[VariantCheck] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every output within its limit, in every version of the code."""
        return all(output.ok for output in self.outputs) and all(v.ok for v in self.variants)

    def describe(self) -> dict[str, Any]:
        """For JSON and the manifest."""
        result: dict[str, Any] = {
            "ok": self.ok,
            "device": self.device,
            "against": self.against,
            "samples": self.samples,
            "outputs": [output.describe() for output in self.outputs],
            "notes": list(self.notes),
            "variants": [variant.describe() for variant in self.variants],
        }
        if self.agreement is not None:
            result |= {
                "top1_agreement": self.agreement,
                "accuracy": self.accuracy,
                "reference_accuracy": self.reference_accuracy,
            }
        return result


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


def _is_quantized(source: Any) -> bool:
    """Whether a model file or a model in memory quantizes activations."""
    import onnx

    model = source
    if isinstance(source, str | Path):
        try:
            model = onnx.load(str(source), load_external_data=False)
        except Exception:  # whatever is wrong with it, ONNX Runtime says it better
            return False
    return any(node.op_type.startswith(("QLinear", "QuantizeLinear")) for node in model.graph.node)


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


def open_reference(
    source: Any,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, Any],
) -> Reference:
    """The user's model as reference, or if ONNX Runtime cannot load it, as effc imports it.

    Args:
        source: Model file, or the model in memory.
        shapes: Static shapes of the inputs.
        constants: Inputs that were fixed at compile time.

    Raises:
        ModelError: Neither can be loaded.
    """
    try:
        return Reference(source, constants)
    except ModelError:  # for example a newer IR version, or an opset long gone
        import onnx_ir as ir

        from effc.frontend import import_model

        return Reference(ir.to_proto(import_model(source, shapes=shapes, constants=constants)))


def reference_limits(source: Any) -> dict[str, int]:
    """Bounds of index inputs of a model file or a model in memory."""
    if not isinstance(source, str | Path):
        return index_limits(source)
    import onnx

    return index_limits(onnx.load(str(source), load_external_data=False))
