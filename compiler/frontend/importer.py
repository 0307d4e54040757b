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
    proto = validate(proto)
    try:
        model = ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        cause = error.__cause__ or error
        raise ModelError("the model cannot be decoded", got=str(cause)[:300]) from None
    graph = model.graph
    weights = set(graph.initializers)
    fixed = bind_constants(graph.inputs, constants or {})
    runtime = [v for v in graph.inputs if v.name not in fixed and v.name not in weights]
    both = sorted(set(fixed) & set(shapes or {}))
    if both:
        raise UsageError("an input cannot have both a shape and a value", where=", ".join(both))
    bound = bind_shapes(runtime, shapes or {})
    return Elaborator(model, bound, fixed, folder).run()
