"""Regions in half precision for tests, and how exact their results must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from conv_cases import reference
from emulated import Case, arm64, run_emulated

from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Config, Template

__all__ = ["FULLFP16", "check_half", "halved", "within"]

FULLFP16 = arm64("cortex-a76", "+dotprod", "+fullfp16")
ULP = 2.0**-11


def halved(region: Region, *, weights_only: bool = False, terms: int = 64) -> Region:
    """The float32 region with float16 tensors, or only with float16 weights; the bias stays."""
    anchor = region.anchor
    made: dict[int, Value] = {}

    def convert(value: Value | None, index: int, op: Op) -> Value | None:
        if value is None or value.dtype != "float32":
            return value
        product = op is anchor and op.op_type in ("Conv", "Gemm", "MatMul")
        kept = product and index > 1 and value.const is not None
        if kept or (weights_only and not (product and value.const is not None)):
            return value
        if id(value) not in made:
            const = None if value.const is None else value.const.astype(np.float16)
            made[id(value)] = Value(value.name, TensorType(value.shape, "float16"), const)
        return made[id(value)]

    ops = []
    for op in region.ops:
        inputs = tuple(convert(v, i, op) for i, v in enumerate(op.inputs))
        outputs = op.outputs
        if not weights_only:
            outputs = tuple(convert(v, -1, op) for v in op.outputs)  # type: ignore[misc]
        attrs = {**op.attrs, "terms": terms} if op is anchor and not weights_only else op.attrs
        ops.append(Op(op.op_type, inputs, outputs, attrs, op.name, op.domain))
    return replace(
        region,
        ops=tuple(ops),
        anchor=ops[0] if anchor is not None else None,
        inputs=tuple(made.get(id(v), v) for v in region.inputs),
        outputs=tuple(made.get(id(v), v) for v in region.outputs),
    )


def within(got: np.ndarray, exact: np.ndarray, bound: np.ndarray, steps: int) -> None:
    """Assert an error of at most ``steps`` roundings of the sums' terms, and one of the result."""
    assert got.dtype == np.float16
    error = np.abs(got.astype(np.float64) - exact)
    assert (error <= ULP * (steps * bound + 2 * np.abs(exact)) + 2.0**-23).all()
    noise = float(np.square(error).sum()) / float(np.square(exact).sum())
    assert noise < 10**-4.5  # far below the bound: errors are random


def check_half(
    cases: list[tuple[Template, Region, Config]], inputs: list[dict[str, np.ndarray]]
) -> None:
    """Convolutions and the like under QEMU against float64 sums of the same operands."""
    built = [
        Case(template.build(region, FULLFP16, config), region, feeds)
        for (template, region, config), feeds in zip(cases, inputs, strict=True)
    ]
    found = run_emulated(built, FULLFP16)
    for (_, region, _), feeds, got in zip(cases, inputs, found, strict=True):
        exact, bound = reference(region, feeds)
        assert region.anchor is not None
        within(got, exact, bound, int(region.anchor.attrs["terms"]) + 4)
