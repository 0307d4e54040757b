"""Regions of integer operators, judged by their NumPy reference.

As ``single_op``, but nodes with ``domain`` "effc" are computed by
``effc.passes.integer.reference`` and the others by ONNX Runtime; results must be equal bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from single_op import Arrays, compiled, host, run_kernel, sharings

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.kernels.template import Config, Template
from effc.passes.evaluate import evaluate
from effc.passes.integer.reference import execute

__all__ = ["Node", "check", "region_of", "targets"]


@dataclass
class Node:
    """One node by tensor names; of domain ``effc`` unless said otherwise."""

    op: str
    inputs: Sequence[str]
    output: str = "y"
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = DOMAIN


def targets() -> list[Target]:
    """This machine with several vector widths and instruction sets."""
    made = [host(256)]
    if made[0].arch == "x86_64":
        made += [host(512, "cascadelake"), host(128)]
        made += [target for target in [get_target("host")] if target.has("avx512vbmi")]
    return made


def region_of(
    nodes: Sequence[Node], inputs: Arrays, constants: Arrays, *, anchored: bool
) -> tuple[Region, dict[str, np.ndarray]]:
    """The region, and what the reference says that it computes."""
    arrays: dict[str, np.ndarray] = {**inputs, **constants}
    for node in nodes:
        operands = [arrays[name] if name else None for name in node.inputs]
        if node.domain == DOMAIN:
            arrays[node.output] = execute(node.op, operands, node.attrs)
            continue
        attributes = ir.convenience.convert_attributes(node.attrs)
        out = ir.Value(name=node.output)
        single = ir.Node(
            "", node.op, [ir.Value(name=n) for n in node.inputs], attributes, outputs=[out]
        )
        results = evaluate(single, operands)
        assert results is not None
        arrays[node.output] = results[0]
    table = {
        name: Value(name, TensorType(tuple(a.shape), str(a.dtype)), constants.get(name))
        for name, a in arrays.items()
    }
    ops = tuple(
        Op(
            n.op,
            tuple(table[name] if name else None for name in n.inputs),
            (table[n.output],),
            n.attrs,
            domain=n.domain,
        )
        for n in nodes
    )
    result = nodes[-1].output
    region = Region(
        "r",
        ops,
        ops[0] if anchored else None,
        tuple(table[name] for name in inputs),
        (table[result],),
    )
    return region, {result: arrays[result]}


def check(
    template: Template,
    nodes: Sequence[Node],
    inputs: Arrays,
    constants: Arrays | None = None,
    *,
    anchored: bool = True,
    target: Target | None = None,
    configs: Sequence[Config] | None = None,
    ignore: Any = None,
) -> None:
    """Every configuration of a template gives the reference's bits.

    Args:
        ignore: Index of elements of the result that may hold anything.
    """
    target = target or host()
    region, expected = region_of(nodes, inputs, constants or {}, anchored=anchored)
    assert template.refuse(region, target) is None, template.refuse(region, target)
    for config in configs or [c for c, _ in template.candidates(region, target)]:
        kernel = template.build(region, target, config)
        code = compiled(kernel, target)
        for pair in (None, *sharings(kernel, inputs)):
            parts = (1, 3) if pair is None else (2,)
            got = run_kernel(kernel, region, inputs, target, parts=parts, inplace=pair, code=code)
            for name, want in expected.items():
                have = got[name]
                assert have.dtype == want.dtype
                if ignore is not None:
                    have, want = have.copy(), want.copy()
                    have[ignore] = want[ignore] = 0
                np.testing.assert_array_equal(have, want, err_msg=f"{config} {pair}")
