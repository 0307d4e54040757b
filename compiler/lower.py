"""Stage functions (TIR on raw pointers) to relocatable object code.

TVM's own pipeline ends in ``MakePackedAPI``, which wraps every function into a
packed calling convention with argument checks; a device needs none of that.
Here the flat functions of ``effc.kernels.builder`` run through the remaining
lowering passes and straight into TVM's LLVM code generator, which emits plain
C functions ``void symbol(pointer..., int32_t begin, int32_t end)``. Buffers
allocated inside a function are on the stack: keep them small (registers, mostly)
and put anything larger into ``scratch`` or a workspace. ``LowerTVMBuiltin`` is left out on
purpose: it would turn stack buffers into calls of TVM's allocator.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import tvm
from tvm import tirx

from effc.bare.toolchain import assemble_ir
from effc.devices.target import Target
from effc.errors import InternalError

__all__ = ["lower", "lower_all", "lower_to_module"]

_PR_SET_PDEATHSIG = 1
_FUNCTIONS_PER_OBJECT = 6
"""Fixed, so that the objects do not depend on the number of processors."""


def _passes(target: tvm.target.Target) -> tvm.transform.Sequential:
    transform = tirx.transform
    return tvm.transform.Sequential(
        [
            transform.BindTarget(target.with_host(target)),
            transform.FlattenBuffer(),
            transform.BF16ComputeLegalize(),
            transform.NarrowDataType(32),
            transform.VectorizeLoop(),
            transform.StorageRewrite(),
            transform.UnrollLoop(),
            transform.StmtSimplify(),
            transform.RemoveNoOp(),
            transform.CommonSubexprElim(),
            transform.BF16StorageLegalize(),
            transform.LowerIntrin(),
        ]
    )


def lower_to_module(functions: Mapping[str, tirx.PrimFunc], target: Target) -> Any:
    """Lower stage functions to a TVM LLVM module.

    Args:
        functions: PrimFunc by C symbol.
        target: What to generate code for.

    Raises:
        InternalError: TVM or LLVM refuses a function; names the symbols.
    """
    tvm_target = tvm.target.Target(target.tvm())
    module = tvm.IRModule(
        {symbol: func.with_attr("global_symbol", symbol) for symbol, func in functions.items()}
    )
    try:
        with tvm.transform.PassContext(opt_level=3), tvm_target:
            module = _passes(tvm_target)(module)
            return tvm.get_global_func("target.build.llvm")(module, tvm_target)
    except Exception as error:
        raise InternalError(
            "code generation failed",
            where=", ".join(sorted(functions)[:4]),
            got=str(error).strip().splitlines()[-1] if str(error).strip() else repr(error),
        ) from error


def lower(functions: Mapping[str, tirx.PrimFunc], target: Target) -> bytes:
    """Lower stage functions to one relocatable object file.

    Args:
        functions: PrimFunc by C symbol; at least one.
        target: What to generate code for.

    Returns:
        The object file (ELF or Mach-O, as the target's triple says).

    Raises:
        InternalError: TVM or LLVM refuses a function.
    """
    built = lower_to_module(functions, target)
    if target.bare:
        return assemble_ir(built.inspect_source("ll"), target)
    # TVM writes files only; one in memory needs no space and no clean-up after a kill.
    with open(os.memfd_create("effc-object"), "rb") as file:
        built.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
        return file.read()


def lower_all(functions: Mapping[str, tirx.PrimFunc], target: Target) -> list[bytes]:
    """Lower many stage functions to several object files, on all processors.

    Forked children inherit the functions; only object code comes back.

    Args:
        functions: PrimFunc by C symbol.
        target: What to generate code for.

    Returns:
        Object files that together define every symbol once.

    Raises:
        InternalError: TVM or LLVM refuses a function, or a child process died.
    """
    symbols = list(functions)
    # Round robin: neighbours are of like size, so every object gets a share of the large ones.
    count = -(-len(symbols) // _FUNCTIONS_PER_OBJECT)
    parts = [{s: functions[s] for s in symbols[i::count]} for i in range(count)]
    workers = min(count, len(os.sched_getaffinity(0)))
    if workers <= 1:
        return [lower(part, target) for part in parts]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_inherit, initargs=(parts, target, os.getpid())
    ) as pool:
        try:
            return list(pool.map(_lower_inherited, range(count)))
        except BrokenProcessPool as error:
            raise InternalError("the code generator died", where=target.name) from error


_inherited: tuple[list[dict[str, tirx.PrimFunc]], Target]


def _inherit(parts: list[dict[str, tirx.PrimFunc]], target: Target, parent: int) -> None:
    """Runs in a forked child: arguments arrive through memory, without pickling.

    A pool's idle processes would wait for ever for a parent that was killed.
    """
    global _inherited
    _inherited = (parts, target)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def _lower_inherited(index: int) -> bytes:
    parts, target = _inherited
    return lower(parts[index], target)
