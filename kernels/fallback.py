"""The fallback template: one operator through TVM's importer and legalizations.

In: a region of a single operator that no template of ours takes. Out: one stage
per loop nest of the functions TVM makes of it (``effc.kernels.fallback_relax``
imports, ``effc.kernels.fallback_convert`` splits into stages). Intermediate
tensors become workspaces, constants weights.

Whether TVM can lower an operator is found by trying. Operators that it accepts but
computes differently from ONNX are in ``WRONG``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from effc.devices.target import Target
from effc.errors import EffcError, InternalError
from effc.kernels.fallback_compute import DEFINITIONS, lower_definition
from effc.kernels.fallback_convert import Lowered, bind, lower_calls
from effc.kernels.fallback_recurrent import lower_recurrent
from effc.kernels.fallback_recurrent_cell import GATES
from effc.kernels.fallback_relax import import_op
from effc.kernels.fallback_scan import SCANS
from effc.kernels.region import Op, Region
from effc.kernels.template import Config, Kernel, Template

__all__ = ["WRONG", "FallbackTemplate"]

_COST_PER_ELEMENT = 20.0  # cycles; only ranks the fallback behind everything else

_DTYPES = frozenset(
    {"bool", "bfloat16", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)

WRONG: Mapping[str, str] = {
    "Dropout": "ignores the training mode",
    "IsInf": "ignores detect_positive and detect_negative",
    "Mod": "takes another sign for floats",
    "Resize": "rounds coordinates differently",
    "SpaceToDepth": "ignores mode",
    "Upsample": "rounds coordinates differently",
}
"""Operators that TVM's importer accepts but does not compute as ONNX says: what it does."""


class FallbackTemplate(Template):
    """Any single operator that TVM can lower without its runtime."""

    name: ClassVar[str] = "relax"

    def refuse(self, region: Region, target: Target) -> str | None:
        if len(region.ops) != 1:
            return "takes single operators only"
        result = _attempt(_Problem.of(region, target))
        return result if isinstance(result, str) else None

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        size = sum(value.type.size for value in (*region.inputs, *region.outputs))
        return [({}, _COST_PER_ELEMENT * max(size, 1))]

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        result = _attempt(_Problem.of(region, target))
        if isinstance(result, str):
            raise InternalError(result, where=region.name)
        return bind(result, region)


@dataclass(frozen=True)
class _Problem:
    """An operator to lower; equal if one result serves both."""

    signature: str
    target: Target
    op: Op = field(compare=False)

    @classmethod
    def of(cls, region: Region, target: Target) -> _Problem:
        return cls(region.signature, target, region.ops[0])


@lru_cache(maxsize=1024)
def _attempt(problem: _Problem) -> Lowered | str:
    """The lowered operator, or why TVM cannot lower it."""
    op = problem.op
    for value in (*op.inputs, *op.outputs):
        if value is not None and value.dtype not in _DTYPES:
            return f"{op.op_type} on {value.dtype}"
        if value is not None and value.type.size == 0:
            return f"{op.op_type} on a tensor without elements"
    if op.op_type in WRONG:
        return f"{op.op_type}: TVM's version {WRONG[op.op_type]}"
    if op.op_type == "RoiAlign" and op.attrs.get("mode", "avg") != "avg":
        return "RoiAlign: TVM's version of mode=max is another function"
    try:
        return _lower(op, problem.target)
    except EffcError as error:
        return f"{op.op_type}: {error}"
    except Exception as error:  # TVM raises many kinds
        return f"{op.op_type}: TVM fails with {type(error).__name__} {str(error)[-120:]}"


def _lower(op: Op, target: Target) -> Lowered:
    kind = op.op_type if op.domain == "" else ""
    if kind in SCANS:
        return SCANS[kind](op)
    if kind in GATES:
        return lower_recurrent(op, target)
    if kind in DEFINITIONS:
        return lower_definition(DEFINITIONS[kind], op, target)
    calls = import_op(op, target)
    lowered = lower_calls(calls.calls, calls.temporaries, target)
    lowered.constants.update(calls.constants)
    return lowered
