"""Import of ONNX models: ``import_model`` gives the static graph all passes work on."""

from __future__ import annotations

from effc.frontend.importer import import_model
from effc.passes.infer import OPSET

__all__ = ["OPSET", "import_model"]
