"""effc: an on-device deployment compiler.

    artifact = effc.compile("model.onnx", target="android")
    runner = effc.load(artifact)
    outputs = runner.run({"x": array})

Attributes are loaded on first use, so ``import effc`` costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from effc.errors import (
    DeviceError,
    EffcError,
    InternalError,
    ModelError,
    QualityError,
    ToolError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from effc.api import compare, compile, compress, load
    from effc.artifact import Artifact
    from effc.comparison import Comparison
    from effc.packages.formats import export
    from effc.runtimes.loader import BenchStats, Runner

__version__ = "0.1.0"

# ONNX Runtime reports its use over the network from 1.32 on, unless told not to before it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Artifact",
    "BenchStats",
    "Comparison",
    "DeviceError",
    "EffcError",
    "InternalError",
    "ModelError",
    "QualityError",
    "Runner",
    "ToolError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "compare",
    "compile",
    "compress",
    "export",
    "load",
]

_LAZY = {
    "compare": "effc.api",
    "compile": "effc.api",
    "compress": "effc.api",
    "export": "effc.packages.formats",
    "load": "effc.api",
    "Artifact": "effc.artifact",
    "Comparison": "effc.comparison",
    "Runner": "effc.runtimes.loader",
    "BenchStats": "effc.runtimes.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'effc' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
