"""Regions: what a kernel template is asked to compute.

A region is one anchor operator (convolution, matmul, softmax, ...) with the
element-wise operators fused behind it (its epilogue), or a chain of
element-wise operators without an anchor. It is described with ONNX operator
names and attributes, static shapes and NumPy dtypes, and nothing of onnx-ir.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from effc.kernels.sparsity import Structure, structure

__all__ = ["DOMAIN", "Op", "Region", "TensorType", "Value"]

DOMAIN = "effc"
"""Domain of the integer operators (docs/QUANTIZATION.md)."""


@dataclass(frozen=True)
class TensorType:
    """Static shape and NumPy dtype name (``float32``, ``int64``, ``bool``, ...)."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense row-major tensor."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(eq=False)
class Value:
    """A tensor of the graph.

    Attributes:
        name: Unique in the graph.
        type: Shape and element type.
        const: Its value when known at compile time.
        origin: The model's tensor that it is equal to, if known (``effc.passes.origin``).
    """

    name: str
    type: TensorType
    const: np.ndarray | None = None
    origin: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def baked(self) -> bool:
        """Whether a template may write this constant's value into code.

        Baked values are part of the region's signature; all others must be
        passed as weights, so that equal signatures can share one function.
        """
        if self.const is None:
            return False
        if np.issubdtype(self.const.dtype, np.floating):
            return self.const.size <= 1
        return self.const.size <= 64


@dataclass(eq=False)
class Op:
    """One ONNX operator at opset ``effc.frontend.OPSET``, default attributes left out."""

    op_type: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    @cached_property
    def zeros(self) -> Structure | None:
        """Structure of the zeros in the weights, see ``sparsity``."""
        return structure(self)

    @cached_property
    def narrow(self) -> bool:
        """Whether no constant 8-bit weight is -128: two products with bytes then fit 16 bits."""
        if self.domain != DOMAIN or self.op_type not in ("ConvInteger", "MatMulInteger"):
            return False
        weight = self.inputs[1]
        if weight is None or weight.const is None or weight.dtype != "int8":
            return False
        return int(weight.const.min(initial=0)) > -128


@dataclass(eq=False)
class Region:
    """Operators computed by one kernel.

    Attributes:
        name: Unique in the model, a valid C identifier.
        ops: In execution order.
        anchor: The operator whose template computes the region; ``None`` for a
            pure element-wise chain. The anchor comes first in ``ops``; the
            others are element-wise and form the epilogue.
        inputs: Runtime tensors read, without duplicates.
        outputs: Runtime tensors written. Values between ``ops`` that are not
            listed here are never stored.
    """

    name: str
    ops: tuple[Op, ...]
    anchor: Op | None
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def epilogue(self) -> tuple[Op, ...]:
        """Element-wise operators behind the anchor."""
        return self.ops[1:] if self.anchor is not None else self.ops

    @property
    def constants(self) -> tuple[Value, ...]:
        """Constant operands in order of first use, without duplicates."""
        found: dict[int, Value] = {}
        for op in self.ops:
            for value in op.inputs:
                if value is not None and value.const is not None:
                    found.setdefault(id(value), value)
        return tuple(found.values())

    @cached_property
    def signature(self) -> str:
        """Text that two regions share if and only if one function can serve both.

        Holds operators, attributes, shapes, dtypes, wiring, baked constants, how sparse weights are
        and whether they are narrow; no names and no weight values.
        """
        ids: dict[int, str] = {}

        def ref(value: Value | None) -> str:
            if value is None:
                return "-"
            if id(value) not in ids:
                ids[id(value)] = f"v{len(ids)}"
                kind = "x"
                if value.const is not None:
                    kind = "c"
                    if value.baked:
                        digest = hashlib.sha256(np.ascontiguousarray(value.const).tobytes())
                        kind = f"b{digest.hexdigest()[:16]}"
                shape = "x".join(map(str, value.shape))
                return f"{ids[id(value)]}:{kind}:{value.dtype}[{shape}]"
            return ids[id(value)]

        lines = []
        for op in self.ops:
            attrs = ",".join(f"{k}={op.attrs[k]!r}" for k in sorted(op.attrs))
            ins = ",".join(ref(v) for v in op.inputs)
            outs = ",".join(ref(v) for v in op.outputs)
            zeros = f" zeros[{op.zeros.text}]" if op.zeros is not None else ""
            narrow = " narrow" if op.narrow else ""
            lines.append(f"{op.domain}:{op.op_type}({ins})->({outs}){{{attrs}}}{zeros}{narrow}")
        lines.append("in=" + ",".join(ref(v) for v in self.inputs))
        lines.append("out=" + ",".join(ref(v) for v in self.outputs))
        return "\n".join(lines)

    @property
    def key(self) -> str:
        """Short stable hash of the signature."""
        return hashlib.sha256(self.signature.encode()).hexdigest()[:20]
