"""Stage functions to the TIR that is printed: the first half of ``effc.lower``, without LLVM.

Fewer passes than for LLVM: a C compiler merges stack slots, unrolls and eliminates common
subexpressions itself, and what these leave is hard to read.
"""

from __future__ import annotations

import tvm
from tvm import tirx

from effc.errors import InternalError

__all__ = ["lower_for_c"]

_TARGET = {"kind": "c"}


def lower_for_c(symbol: str, func: tirx.PrimFunc, extent: int) -> tirx.PrimFunc:
    """Flat buffers, narrow indices, no intrinsics but those that the printer knows.

    Args:
        symbol: Name of the function.
        func: Stage function ``(pointers..., begin, end)``.
        extent: Its units. One call computes them all, as there is one thread, so ``begin`` and
            ``end`` become constants and disappear from the parameters.

    Raises:
        InternalError: TVM refuses the function.
    """
    target = tvm.target.Target(_TARGET)
    transform = tirx.transform
    passes = tvm.transform.Sequential(
        [
            transform.BindTarget(target.with_host(target)),
            transform.FlattenBuffer(),
            transform.BF16ComputeLegalize(),
            transform.NarrowDataType(32),
            transform.StmtSimplify(),
            transform.RemoveNoOp(),
            transform.BF16StorageLegalize(),
            transform.LowerIntrin(),
        ]
    )
    begin, end = func.params[-2:]
    whole = func.specialize({begin: tirx.const(0, "int32"), end: tirx.const(extent, "int32")})
    module = tvm.IRModule({symbol: whole.with_attr("global_symbol", symbol)})
    try:
        with tvm.transform.PassContext(opt_level=3), target:
            return passes(module)[symbol]
    except Exception as error:
        raise InternalError(
            "lowering to C failed", where=symbol, got=str(error).strip().splitlines()[-1:]
        ) from error
