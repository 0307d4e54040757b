"""Sessions of ONNX Runtime, the reference that models are folded, measured and verified with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime as ort

from effc.errors import ModelError

__all__ = ["first_line", "open_session", "usable_processors"]


def usable_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(
    model: str | Path | onnx.ModelProto,
    *,
    threads: int,
    optimize: bool = True,
    config: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A session that prints nothing.

    Args:
        model: Model file (external data beside it), or the model in memory.
        threads: Within an operator; operators run one after the other.
        optimize: Whether ONNX Runtime may fuse and replace operators.
        config: Entries of the session's configuration.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        return ort.InferenceSession(source, options, ["CPUExecutionProvider"])
    except Exception as error:  # its exception types are private
        raise ModelError("ONNX Runtime cannot load the model", got=first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What ONNX Runtime says, without its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
