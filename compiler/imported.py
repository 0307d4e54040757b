"""The first phase: from an ONNX model to one that regions are made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from effc.compiled import PassRecord
from effc.devices.catalog import get_target
from effc.errors import UnsupportedError
from effc.link import WEIGHTS_LIMIT
from effc.options import CompileOptions

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["Imported", "import_and_simplify"]


@dataclass(frozen=True)
class Imported:
    """A model after import and simplification.

    Attributes:
        model: What regions are made of.
        reference: The imported model before any pass, for ONNX Runtime.
        sha256: Digest of the reference model, weights included.
        passes: What every pass did.
        opset: Opset of the imported model.
    """

    model: ir.Model
    reference: onnx.ModelProto
    sha256: str
    passes: tuple[PassRecord, ...]
    opset: int


def import_and_simplify(source: str | Path | onnx.ModelProto, options: CompileOptions) -> Imported:
    """Import a model with the shapes and constants of ``options``, and simplify it.

    Quantized operators become integer ones for the target first, before their weights are
    folded to floats.

    Raises:
        ModelError: The model is invalid.
        UnsupportedError: Its weights do not fit one library.
        UsageError: Unknown target, or shapes that do not fit the model.
    """
    import onnx_ir as ir

    from effc.frontend import OPSET, import_model
    from effc.kernels.columns import is_narrow
    from effc.passes.integer.integerize import integerize
    from effc.passes.registry import simplify

    imported = import_model(
        source,
        shapes=options.shapes,
        constants={name: np.asarray(value) for name, value in options.constants.items()},
    )
    stored = [v.const_value for v in imported.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in stored if tensor is not None)
    if weights > WEIGHTS_LIMIT:
        raise UnsupportedError(
            "the weights do not fit one library",
            expected=f"at most {WEIGHTS_LIMIT} bytes",
            got=f"{weights} bytes",
        )
    reference = ir.to_proto(imported)
    digest = hashlib.sha256(reference.SerializeToString(deterministic=True)).hexdigest()
    target = get_target(options.target)
    model, rewritten = integerize(imported, target.activation_dtype, plain=is_narrow(target))
    model, reports = simplify(model)
    records = tuple(
        PassRecord(r.name, tuple(r.applied), tuple(f"{where}: {why}" for where, why in r.refused))
        for r in (*rewritten, *reports)
    )
    return Imported(model, reference, digest, records, OPSET)
