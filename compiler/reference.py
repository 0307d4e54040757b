"""What results are compared with: a model in ONNX Runtime.

ONNX Runtime runs quantized models as they are written: its optimized products of bytes
saturate on x86 processors without VNNI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effc.errors import ModelError, ToolError
from effc.samples import Arrays, index_limits

__all__ = ["Reference", "open_reference", "reference_limits"]


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


def _fixed(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else 1 for d in shape)


def _dtype(ort_type: str) -> np.dtype[Any]:
    name = ort_type.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
