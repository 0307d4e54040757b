"""What the report, ``inspect`` and ``explain`` know about each region of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from effc.devices.target import BASE
from effc.kernels.arithmetic import float_terms
from effc.kernels.region import DOMAIN, Op, Region
from effc.kernels.sparsity import LEAST_ZEROS
from effc.kernels.template import Choice
from effc.passes.half.use_half_precision import PRODUCTS

__all__ = ["LayerRecord", "macs_of", "record"]

MAX_ALTERNATIVES = 8
"""Configurations of a layer kept for ``effc explain``."""


@dataclass(frozen=True)
class LayerRecord:
    """One region as the user sees it.

    Attributes:
        name: Region name.
        op: ONNX operator of the anchor, or ``Elementwise`` for a chain.
        nodes: Names of the ONNX nodes covered.
        kernel: Template name, or ``view`` when no code runs.
        config: Knob values of the chosen configuration.
        macs: Multiply-accumulate operations of the dense layer.
        sparsity: Fraction of zero weights, 0 when the layer has none.
        pattern: How zeros are arranged (``effc.kernels.sparsity``), ``dense`` with hardly any.
        units: Per unit size (``8x4``), the fraction of weights in units with any non-zero: what a
            sparse kernel of that unit size has to compute. Empty for dense weights.
        inputs, outputs: Shapes.
        reads, writes: Names of the tensors of these shapes.
        choice: Chosen template and configuration with predicted cost and measured time;
            ``None`` for a view.
        considered, measured: Number of configurations there were to choose from, and of
            those with a measured time.
        alternatives: The best of the others: measured ones by time, then by prediction.
        rivals: The best of each other kernel family.
        refused: Kernel families that could not compute it, and why.
        variants: Variants of the target for which the code differs, best first.
        key: ``Region.key``, what a measured time of the layer is kept under.
        precision: ``f16`` where float16 is computed with, ``f16 weights`` where weights are stored
            so, otherwise empty.
        terms: Products that are added up in float16, 0 if none are.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    kernel: str
    config: dict[str, int | str | bool]
    macs: int
    sparsity: float
    pattern: str
    units: dict[str, float]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    choice: Choice | None = None
    considered: int = 0
    measured: int = 0
    alternatives: tuple[Choice, ...] = ()
    rivals: tuple[Choice, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    variants: tuple[str, ...] = ()
    key: str = ""
    precision: str = ""
    terms: int = 0


_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Operator -> operand that holds the weights."""


def macs_of(op: Op) -> int:
    """Multiply-accumulates of one operator; 0 for operators without products of tensors."""
    output = op.outputs[0].shape
    if op.op_type in _CONVOLUTIONS:
        weight = op.inputs[_CONVOLUTIONS[op.op_type]]
        positions = output[2:-1] if op.domain == DOMAIN else output[2:]  # ours lie in quads
        return output[0] * prod(positions) * weight.type.size if weight is not None else 0
    if op.op_type == "ConvTranspose":
        data, weight = op.inputs[0], op.inputs[1]
        if data is None or weight is None:
            return 0
        return prod(data.shape) * prod(weight.shape[1:])
    if op.op_type in {"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"}:
        left = op.inputs[0]
        if left is None:
            return 0
        transposed = op.op_type == "Gemm" and bool(op.attrs.get("transA", 0))
        depth = left.shape[-2 if transposed else -1] if left.shape else 1
        return prod(output) * depth
    return 0


def record(
    region: Region,
    choice: Choice | None,
    others: Sequence[Choice] = (),
    refused: Mapping[str, str] | None = None,
    versions: Sequence[str] = (),
) -> LayerRecord:
    """Describe a region.

    Args:
        region: The region.
        choice: What computes it; ``None`` for a view.
        others: All configurations that were not chosen, the most interesting first.
        refused: Why kernel families refused it, by name.
        versions: Versions of its code, the one for every processor first.
    """
    constants = [v.const for v in region.constants if v.const is not None]
    weights = [c for c in constants if c.ndim > 1 and c.dtype != np.int32]  # no multipliers
    total = sum(w.size for w in weights)
    zeros = sum(int((w == 0).sum()) for w in weights)
    structure = region.anchor.zeros if region.anchor is not None else None
    rivals: dict[str, Choice] = {}
    for other in others:
        if choice is not None and other.template is not choice.template:
            rivals.setdefault(other.template.name, other)
    return LayerRecord(
        name=region.name,
        op=region.anchor.op_type if region.anchor is not None else "Elementwise",
        nodes=tuple(op.name for op in region.ops),
        kernel=choice.template.name if choice is not None else "view",
        config=dict(choice.config) if choice is not None else {},
        macs=sum(macs_of(op) for op in region.ops),
        sparsity=zeros / total if total else 0.0,
        pattern=structure.pattern if structure is not None else _unknown_pattern(zeros, total),
        units={f"{r}x{d}": share for (r, d), share in structure.units} if structure else {},
        inputs=tuple(v.shape for v in region.inputs),
        outputs=tuple(v.shape for v in region.outputs),
        reads=tuple(v.name for v in region.inputs),
        writes=tuple(v.name for v in region.outputs),
        choice=choice,
        considered=len(others) + (choice is not None),
        measured=sum(c is not None and c.seconds is not None for c in (choice, *others)),
        alternatives=tuple(others[:MAX_ALTERNATIVES]),
        rivals=tuple(rivals.values()),
        refused=tuple(sorted((refused or {}).items())),
        variants=tuple(reversed([v for v in dict.fromkeys(versions) if v != BASE])),
        key=region.key,
        precision=_precision(region),
        terms=_terms(region),
    )


def _precision(region: Region) -> str:
    ops = region.ops if region.anchor is None else (region.anchor,)
    if any(v.dtype == "float16" for op in ops for v in op.outputs):
        return "f16"
    return "f16 weights" if any(v.dtype == "float16" for v in region.constants) else ""


def _terms(region: Region) -> int:
    anchor = region.anchor
    if anchor is None or anchor.op_type not in PRODUCTS or anchor.outputs[0].dtype != "float16":
        return 0
    depth = macs_of(anchor) // max(anchor.outputs[0].type.size, 1)
    return min(depth, float_terms(anchor))


def _unknown_pattern(zeros: int, total: int) -> str:
    """Of weights that no sparse kernel takes."""
    return "unstructured" if zeros > LEAST_ZEROS * total else "dense"
