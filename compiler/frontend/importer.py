"""``import_model``: load, validate, bind, elaborate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from effc.errors import ModelError, UsageError
from effc.frontend.bind import bind_constants, bind_shapes
from effc.frontend.elaborate import Elaborator
from effc.frontend.load import load_proto
from effc.frontend.validate import validate

__all__ = ["import_model"]


def import_model(
    source: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> ir.Model:
    """Import an ONNX model as a flat graph with static shapes at ``OPSET``.

    Args:
        source: A file, or a model in memory (which is not changed; its weights are shared).
        shapes: Shape of each input with dynamic dimensions.
        constants: Inputs to fix to a value; they become initializers.

    Returns:
        A model as docs/ARCHITECTURE.md describes it under "The graph".

    Raises:
        UsageError: Unreadable file; wrong or missing shapes or constants.
        ModelError: The model is damaged or contradicts itself.
        UnsupportedError: It uses what effc cannot compile; all such nodes at once.
    """
    proto, folder = load_proto(source)
    try:
        return _import(proto, folder, shapes or {}, constants or {})
    except _MALFORMED as error:
        # Fields of the wrong kind, text that is no text, numbers out of all bounds: what the
        # checks above let through surfaces here. The cause stays attached.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ModelError(
            "the model cannot be interpreted",
            where=str(source) if folder else None,
            got=f"{type(cause).__name__}: {str(cause)[:300]}",
            hint="if ONNX Runtime runs this model, please report it",
        ) from error


_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    ir.serde.SerdeError,
)


def _import(
    proto: onnx.ModelProto,
    folder: Path | None,
    shapes: Mapping[str, tuple[int, ...]],
    constants: Mapping[str, np.ndarray[Any, Any]],
) -> ir.Model:
    model = ir.serde.deserialize_model(validate(proto))
    graph = model.graph
    weights = set(graph.initializers)
    fixed = bind_constants(graph.inputs, constants)
    runtime = [v for v in graph.inputs if v.name not in fixed and v.name not in weights]
    both = sorted(set(fixed) & set(shapes))
    if both:
        raise UsageError("an input cannot have both a shape and a value", where=", ".join(both))
    return Elaborator(model, bind_shapes(runtime, shapes), fixed, folder).run()
