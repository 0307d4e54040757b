"""Compare an artifact with its float model, layer by layer.

The artifact runs with its tensors stored as they become complete (``effc.traces``), ONNX
Runtime runs the float model with the tensors of the same names as outputs. Two figures per layer,
signal-to-noise ratios in dB over all samples:

- *output*: what the layer gives, against the float model: errors of all layers before it as well.
- *own*: against the float layer fed with what the artifact's layer was given: the error that
  this layer adds, by rounded or pruned weights and by rounding what it gives.

Layers are sorted by blame, the lowest own ratio first. A tensor takes part if passes kept track
of which one of the model's it is (``effc.passes.origin``) and has the model's shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effc.artifact import Artifact
from effc.devices.execution import Piece
from effc.errors import ModelError
from effc.execute import Tracer, open_tracer
from effc.float_model import FloatModel, open_float_model
from effc.metrics import MAX_SNR_DB
from effc.options import ProgressCallback
from effc.reference import reference_limits
from effc.samples import Arrays, Dataset, Tensor, generate, load_inputs, numpy_dtype

if TYPE_CHECKING:
    import onnx

__all__ = ["Comparison", "LayerComparison", "Noise", "compare_artifact"]


@dataclass
class Noise:
    """Sums of squares of a reference and of the difference to it."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def add(self, reference: np.ndarray, got: np.ndarray) -> None:
        """Compare one more sample. Elements that are the same infinity or NaN count as equal."""
        want, have = reference.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        same = (want == have) | (np.isnan(want) & np.isnan(have))
        want, have = want[~same], have[~same]
        equal = reference.astype(np.float64).ravel()[same]
        self.signal += float(np.square(equal[np.isfinite(equal)]).sum())
        if not want.size:
            return
        difference = want - have
        self.signal += float(np.square(want[np.isfinite(want)]).sum())
        self.noise += float(np.square(difference).sum())
        self.largest = max(self.largest, float(np.abs(difference).max()))

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio, between -300 (only noise, or not finite) and 300 (identical)."""
        if self.noise == 0.0:
            return MAX_SNR_DB
        if not self.signal or not math.isfinite(self.noise):
            return -MAX_SNR_DB
        return max(-MAX_SNR_DB, min(MAX_SNR_DB, 10.0 * math.log10(self.signal / self.noise)))


@dataclass
class LayerComparison:
    """A layer of the artifact beside the float model.

    Attributes:
        number: Position in execution order.
        name, op, kernel: Of the layer.
        nodes: ONNX nodes that it computes.
        tensors: The model's tensors that it gives.
        output: Error of what it gives.
        own: Error that it adds; ``None`` if its inputs are unknown.
        why: Why something is missing.
    """

    number: int
    name: str
    op: str
    kernel: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    output: Noise | None = None
    own: Noise | None = None
    why: str = ""

    @property
    def blame(self) -> tuple[float, float, int]:
        """Sorts the worst layer first."""
        own, output = (n.snr_db if n else math.inf for n in (self.own, self.output))
        return own, output, self.number

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "number": self.number,
            "name": self.name,
            "op": self.op,
            "kernel": self.kernel,
            "nodes": list(self.nodes),
            "tensors": list(self.tensors),
            "output_snr_db": _rounded(self.output),
            "own_snr_db": _rounded(self.own),
            "output_max_abs_error": None if self.output is None else _digits(self.output.largest),
            "own_max_abs_error": None if self.own is None else _digits(self.own.largest),
            "why": self.why or None,
        }


def _rounded(noise: Noise | None) -> float | None:
    return None if noise is None else round(noise.snr_db, 1)


def _digits(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


@dataclass
class Comparison:
    """Result of :func:`compare_artifact`.

    Attributes:
        device, variant: Where and in which version the artifact ran.
        samples: Number of samples.
        outputs: Error of each model output by name.
        layers: In execution order, views left out.
    """

    device: str
    variant: str
    samples: int
    outputs: dict[str, Noise] = field(default_factory=dict)
    layers: list[LayerComparison] = field(default_factory=list)

    @property
    def by_blame(self) -> list[LayerComparison]:
        """Layers that could be compared, the worst first."""
        known = [layer for layer in self.layers if layer.own or layer.output]
        return sorted(known, key=lambda layer: layer.blame)

    @property
    def unmatched(self) -> list[LayerComparison]:
        """Layers without a counterpart in the model."""
        return [layer for layer in self.layers if not layer.own and not layer.output]

    def describe(self) -> dict[str, Any]:
        """For JSON and the report."""
        return {
            "ok": True,
            "device": self.device,
            "variant": self.variant,
            "samples": self.samples,
            "outputs": [
                {"name": name, "snr_db": _rounded(noise), "max_abs_error": _digits(noise.largest)}
                for name, noise in self.outputs.items()
            ],
            "layers": [layer.describe() for layer in self.by_blame],
            "unmatched": [layer.describe() for layer in self.unmatched],
        }


def compare_artifact(
    model: Path | onnx.ModelProto,
    artifact: Artifact,
    *,
    inputs: Path | Mapping[str, np.ndarray] | None = None,
    device: str | None = None,
    variant: str | None = None,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Compare an artifact with its float model.

    Args:
        model: The float model: what was compiled, or what was compressed before.
        artifact: Made from it.
        inputs: ``.npz`` file as for ``effc verify``, or arrays as in one; generated inputs if
            ``None``.
        device, variant: As for :func:`effc.execute.open_executor`.
        progress: Called after every sample.

    Raises:
        EffcError: The model cannot be run, or has other inputs or outputs than the artifact.
    """
    manifest = artifact.manifest
    tensors = [Tensor.of(entry) for entry in manifest["inputs"]]
    data = (
        Dataset([generate(tensors, reference_limits(model))])
        if inputs is None
        else load_inputs(inputs, tensors)
    )
    options = manifest["options"]
    shapes = {name: tuple(shape) for name, shape in options["shapes"].items()}
    reference = open_float_model(model, shapes, options["constants"])
    with open_tracer(artifact, device, variant) as tracer:
        run = _Run(manifest, reference, tracer)
        for number, sample in enumerate(data.samples):
            run.add(sample)
            if progress is not None:
                progress("compare", number + 1, len(data.samples))
        return Comparison(tracer.device, tracer.variant, data.count, run.outputs, run.layers)


class _Run:
    """A comparison that is going on."""

    def __init__(self, manifest: Mapping[str, Any], reference: FloatModel, tracer: Tracer) -> None:
        self.reference = reference
        self.tracer = tracer
        self.values = {value["name"]: value for value in manifest["values"]}
        self.inputs = [entry["name"] for entry in manifest["inputs"]]
        self.pieces = [_piece(v) for v in manifest["values"] if v["step"] >= 0]
        self.sources = list(manifest["layers"])
        self.layers = [
            LayerComparison(
                number,
                layer["name"],
                layer["op"],
                layer["kernel"],
                tuple(layer["nodes"]),
                tuple(self._tensor(name) or name for name in layer["writes"]),
            )
            for number, layer in enumerate(self.sources)
            if layer["kernel"] != "view"
        ]
        self.outputs = {entry["name"]: Noise() for entry in manifest["outputs"]}
        missing = [name for name in self.outputs if name not in reference.outputs]
        if missing:
            raise ModelError(
                "the float model has other outputs than the artifact",
                expected=", ".join(self.outputs),
                got=", ".join(reference.outputs),
                hint="is this the model that the artifact was made from?",
            )

    def _tensor(self, name: str) -> str | None:
        """The model's tensor that one of the artifact's stands for.

        What was rounded to 8 bits is compared with the tensor before, unless the model has
        the rounded one as well.
        """
        value = self.values.get(name)
        if value is None:
            return None
        same: str | None = value["onnx"]
        real: str | None = value["real"]
        if same is not None and value["scale"] is None and self.reference.has(same):
            return same
        return real if real is not None else same

    def add(self, sample: Arrays) -> None:
        """Run one more sample on both sides and compare."""
        outputs, stored = self.tracer.trace(sample, self.pieces)
        names = [name for name in map(self._tensor, self.values) if name]
        want = self.reference.tensors([*self.outputs, *names], sample)
        got: dict[str, np.ndarray | str] = {}
        for name, value in self.values.items():
            array = self._given(value, sample) if value["step"] < 0 else stored[name]
            tensor = self._tensor(name)
            got[name] = _real(value, array, tensor, want.get(tensor or ""))
        for layer in self.layers:
            self._compare(layer, self.sources[layer.number], want, got)
        for name, noise in self.outputs.items():
            noise.add(want[name], outputs[name])

    def _given(self, value: Mapping[str, Any], sample: Arrays) -> np.ndarray:
        """An input, or a view of one."""
        _, index, offset = value["place"]
        data = np.ascontiguousarray(sample[self.inputs[index]]).reshape(-1).view(np.uint8)
        dtype = numpy_dtype(value["dtype"])
        count = int(np.prod(value["shape"], dtype=np.int64))
        part = data[offset : offset + count * dtype.itemsize]
        return part.view(dtype).reshape(value["shape"])

    def _compare(
        self,
        layer: LayerComparison,
        source: Mapping[str, Any],
        want: Arrays,
        got: Mapping[str, np.ndarray | str],
    ) -> None:
        """Add a sample's errors to a layer."""
        results = self._matched(source["writes"], got)
        if isinstance(results, str):
            layer.why = results
            return
        layer.output = layer.output or Noise()
        for name, array in results.items():
            layer.output.add(want[name], array)
        reads = [name for name in source["reads"] if name in self.values]
        given = self._matched(reads, got)
        if isinstance(given, str):
            layer.why = f"its own error is unknown: {given}"
            return
        typed = {name: array.astype(want[name].dtype) for name, array in given.items()}
        ideal = self.reference.between(typed, list(results), want)
        if isinstance(ideal, str):
            layer.why = f"its own error is unknown: {ideal}"
            return
        layer.own = layer.own or Noise()
        for name, array in results.items():
            layer.own.add(ideal[name], array)

    def _matched(self, names: Sequence[str], got: Mapping[str, np.ndarray | str]) -> Arrays | str:
        """The artifact's tensors by the names that they have in the model, or why not."""
        found: Arrays = {}
        for name in names:
            array = got.get(name, "is never stored as a whole")
            tensor = self._tensor(name)
            if isinstance(array, str) or tensor is None:
                return f"'{name}' {array}"
            found[tensor] = array
        return found


def _piece(value: Mapping[str, Any]) -> Piece:
    storage, index, offset = value["place"]
    output = index if storage == "output" else None
    return Piece(
        value["name"], value["dtype"], tuple(value["shape"]), value["step"], output, offset
    )


def _real(
    value: Mapping[str, Any], array: np.ndarray, tensor: str | None, want: np.ndarray | None
) -> np.ndarray | str:
    """The numbers that a stored tensor stands for, or why they cannot be compared.

    Args:
        value: Entry of the manifest.
        array: As stored.
        tensor, want: The model's tensor.
    """
    if tensor is None:
        return "has no counterpart in the model: a pass made it"
    if want is None:
        return f"stands for '{tensor}', which is no tensor of the model"
    if value["layout"] == "quads":
        array = np.moveaxis(array, -1, 2)
        array = array.reshape(array.shape[0], -1, *array.shape[3:])[:, : want.shape[1]]
    if array.shape != want.shape:
        return f"has another shape than '{tensor}': {list(want.shape)}"
    if value["scale"] is not None:
        array = (array.astype(np.float32) - value["zero_point"]) * np.float32(value["scale"])
    elif want.dtype.kind == "f" and array.dtype.kind in "iub":
        return f"holds integers that stand for '{tensor}' in an unknown way"
    return array
