"""The compiled program: what the code generator, the linker and the report see.

A ``Program`` is free of ONNX and TVM: symbols, pointers into four storage
classes, and a straight list of calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from effc.errors import InternalError
from effc.kernels.region import TensorType

__all__ = ["Call", "CodeVariant", "Pointer", "Port", "Program", "StorageClass"]


class StorageClass(Enum):
    """Where a pointer of a call points into."""

    INPUT = "input"  # index = position among the model's inputs
    OUTPUT = "output"  # index = position among the model's outputs
    ARENA = "arena"  # index unused, offset in bytes
    WEIGHTS = "weights"  # index unused, offset in bytes into the read-only blob
    SCRATCH = "scratch"  # the calling worker's private scratch


@dataclass(frozen=True)
class Pointer:
    """One pointer argument: a storage class, its index and a byte offset."""

    storage: StorageClass
    index: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Call:
    """One call of a stage function: ``symbol(pointers..., begin, end)``.

    Attributes:
        symbol: C symbol of the stage function.
        pointers: Arguments in the order of the function's parameters.
        extent: Number of parallel units; workers get disjoint ``[begin, end)``.
        region: Name of the region that this call belongs to.
        nodes: Names of the ONNX nodes that the region covers.
        bounds: Optional unequal split: cumulative work per unit (``extent + 1``
            entries, first 0), used to balance workers. ``None`` means equal units.
    """

    symbol: str
    pointers: tuple[Pointer, ...]
    extent: int
    region: str
    nodes: tuple[str, ...]
    bounds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Port:
    """A model input or output.

    Attributes:
        name, type: Of the tensor.
        scale, zero_point: Of a quantized one: a byte ``q`` stands for ``scale * (q - zero_point)``.
    """

    name: str
    type: TensorType
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class CodeVariant:
    """A kind of processor for which some functions have another version.

    Attributes:
        name: ``dotprod`` ...
        features: LLVM features that it needs, without signs.
        symbols: C symbol by the one in ``Call.symbol``, where it is another.
    """

    name: str
    features: tuple[str, ...]
    symbols: Mapping[str, str]


@dataclass
class Program:
    """Everything that ``run`` does, in order.

    Attributes:
        name: C identifier prefix of the model.
        inputs, outputs: Ports in the order of the ONNX graph.
        calls: Stage calls in execution order; a barrier stands between any two.
        weights: Read-only data, uint8, every tensor 64-byte aligned.
        arena_bytes: Bytes of the shared part of the arena (64-byte aligned offsets).
        arena_lower_bound_bytes: No plan for this order can be smaller.
        scratch_bytes: Private bytes per worker, added once per thread.
        variants: Further versions of the code, best first.
        weight_blocks: Offset and bytes of every tensor in ``weights``.
        weights_in_file: The library holds no weights; it is given a file's contents.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calls: tuple[Call, ...]
    weights: np.ndarray
    arena_bytes: int
    arena_lower_bound_bytes: int
    scratch_bytes: int
    metadata: dict[str, object] = field(default_factory=dict)
    variants: tuple[CodeVariant, ...] = ()
    weight_blocks: tuple[tuple[int, int], ...] = ()
    weights_in_file: bool = False

    def pointer_counts(self) -> dict[str, int]:
        """Pointers that each stage function takes, by C symbol.

        Raises:
            InternalError: One is called with different numbers of them.
        """
        counts: dict[str, int] = {}
        for call in self.calls:
            if counts.setdefault(call.symbol, len(call.pointers)) != len(call.pointers):
                raise InternalError(
                    "stage function called with different numbers of pointers", where=call.symbol
                )
        return counts

    def checked_offset(self, call: Call, pointer: Pointer) -> int:
        """The byte offset of a pointer argument.

        Raises:
            InternalError: It leaves its storage.
        """
        index, storage = pointer.index, pointer.storage
        if storage in (StorageClass.INPUT, StorageClass.OUTPUT):
            ports = self.inputs if storage is StorageClass.INPUT else self.outputs
            limit = ports[index].type.nbytes if index < len(ports) else -1
        else:
            limit = {
                StorageClass.ARENA: self.arena_bytes,
                StorageClass.WEIGHTS: self.weights.nbytes,
                StorageClass.SCRATCH: self.scratch_bytes,
            }[storage]
        if not 0 <= pointer.offset <= limit:
            raise InternalError(
                "pointer leaves its storage",
                where=f"region {call.region}",
                expected=f"an offset up to {limit}",
                got=pointer,
            )
        return pointer.offset
