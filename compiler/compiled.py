"""What ``effc.pipeline`` hands to the artifact, the report and the verification.

Plain records: no onnx-ir, no TVM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.devices.target import Target
from effc.layers import LayerRecord
from effc.options import CompileOptions
from effc.program import Program

if TYPE_CHECKING:
    import onnx

    from effc.link import LinkReport
    from effc.traces import StoredValue

__all__ = ["Block", "CompiledModel", "PassRecord"]


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: where it applied, why it refused elsewhere, and how it was set."""

    name: str
    applied: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A rectangle of the memory plan: a tensor's bytes over the calls that need it.

    Attributes:
        name: Tensor name.
        offset, size: Bytes in the arena.
        first, last: Indices of the first and last call that use it (inclusive).
    """

    name: str
    offset: int
    size: int
    first: int
    last: int


@dataclass
class CompiledModel:
    """A compiled model that is not yet on disk.

    Attributes:
        program: Calls, ports, weights, arena.
        target: What it was compiled for.
        options: As given.
        layers: One record per region in execution order.
        passes: What every pass did.
        blocks: The memory plan.
        phase_seconds: Wall time per phase (shown, never written into the artifact).
        headers: Text by file name: ``NAME.h`` and ``effc.h``.
        link_library: Writes the shared library at a path and returns the checks' sizes.
        link_runner: Writes a static test executable for ``target.runner_target``.
        reference: The imported model (shapes and constants bound, nothing simplified), for
            ONNX Runtime.
        source_sha256: Digest of the imported model, weights included.
        tuning: What the tuner did (mode, database digest, measured candidates).
        opset: Opset of the source model.
        values: Where every stored tensor is, for traces.
        levels: How sparsities were chosen from measured times; empty if they were not.
    """

    program: Program
    target: Target
    options: CompileOptions
    layers: tuple[LayerRecord, ...]
    headers: dict[str, str]
    link_library: Callable[[Path], LinkReport]
    link_runner: Callable[[Path], object]
    reference: onnx.ModelProto
    passes: tuple[PassRecord, ...] = ()
    blocks: tuple[Block, ...] = ()
    phase_seconds: dict[str, float] = field(default_factory=dict)
    source_sha256: str = ""
    tuning: dict[str, Any] = field(default_factory=dict)
    opset: int = 0
    levels: dict[str, Any] = field(default_factory=dict)
    values: tuple[StoredValue, ...] = ()
