"""Conversion of single operators from any supported opset to ``OPSET``.

An adapter gets the operator's operands with static shapes and, where constant,
values; so it can write the newer (or older) form exactly. Operators without an
adapter mean the same at every opset from 7 on, apart from element types;
``tests/frontend/test_adapters.py`` checks this table against ONNX's history.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from effc.frontend import adapters_new as new
from effc.frontend import adapters_old as old
from effc.frontend.adapter_tools import Adapter, Operands
from effc.frontend.adapters_contrib import CONTRIB
from effc.passes.graph import OPSET, Writer

__all__ = ["ADAPTERS", "adapt"]


def adapt(
    writer: Writer, node: ir.Node, inputs: Operands, version: int
) -> Sequence[ir.Value | None] | None:
    """Convert one node, or return None if its form at ``OPSET`` is the same.

    Args:
        writer: Receives the new nodes.
        node: A node of any domain.
        inputs: Its operands in the new graph.
        version: The opset it is written in.

    Raises:
        UnsupportedError: It cannot be said at ``OPSET``.
    """
    if node.domain == "com.microsoft" and node.op_type in CONTRIB:
        return CONTRIB[node.op_type](writer, node, inputs)
    if node.domain:
        return None
    for first, last, adapter in ADAPTERS.get(node.op_type, ()):
        if first <= version <= last:
            return adapter(writer, node, inputs)
    return new.without_new_attributes(writer, node, inputs) if version > OPSET else None


_AXES = old.attribute_to_input("axes", 1)

ADAPTERS: dict[str, tuple[tuple[int, int, Adapter], ...]] = {
    "BatchNormalization": ((7, 13, old.batch_normalization),),
    "Clip": ((7, 10, old.clip),),
    "Compress": ((9, 99, old.compress),),
    "CumProd": ((26, 99, new.cumulative_product),),
    "DFT": ((17, 19, old.dft),),
    "DequantizeLinear": ((21, 99, new.dequantize),),
    "Dropout": ((7, 99, old.dropout),),
    "GRU": ((14, 99, new.recurrent),),
    "GridSample": ((16, 19, old.grid_sample),),
    "GroupNormalization": ((21, 99, new.group_normalization),),
    "Hardmax": ((7, 12, old.flattened),),
    "LSTM": ((14, 99, new.recurrent),),
    "LogSoftmax": ((7, 12, old.flattened),),
    "Pad": ((7, 10, old.pad),),
    "QuantizeLinear": ((21, 99, new.quantize),),
    "RNN": ((14, 99, new.recurrent),),
    "Range": ((7, 99, new.range_of_scalars),),
    "ReduceSum": ((7, 12, _AXES),),
    "Resize": ((10, 10, old.resize_10), (11, 17, old.resize_11)),
    "Scatter": ((9, 10, old.scatter),),
    "Slice": ((7, 9, old.slice_by_attributes),),
    "Softmax": ((7, 12, old.flattened),),
    "SpaceToDepth": ((28, 99, new.space_to_depth),),
    "Split": ((7, 17, old.split),),
    "Squeeze": ((7, 12, _AXES),),
    "TopK": ((7, 9, old.topk),),
    "Unsqueeze": ((7, 12, _AXES),),
    "Upsample": ((7, 9, old.upsample),),
    **{
        name: ((7, 17, _AXES),)
        for name in (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        )
    },
}
"""Operator -> (first opset, last opset, adapter)."""
