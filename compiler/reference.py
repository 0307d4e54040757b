"""What results are compared with: a model in ONNX Runtime.

ONNX Runtime runs quantized models as they are written: its optimized products of bytes
saturate on x86 processors without VNNI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effc.errors import ModelError
from effc.passes.session import first_line, open_session
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
        # Products by 4-bit weights in float32; by default it rounds what they read to 8 bits.
        config = {"session.qdq_matmulnbits_accuracy_level": "1"}
        optimize = optimize and not _is_quantized(source)
        self.session = open_session(source, threads=1, optimize=optimize, config=config)
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
            raise ModelError("ONNX Runtime cannot run the model", got=first_line(error)) from error
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
