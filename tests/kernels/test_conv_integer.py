"""Integer convolutions: the bits of the NumPy reference over geometries and instruction sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from integer_cases import Node, check, region_of
from single_op import host

from effc.devices.target import Target
from effc.kernels.conv import DirectConv
from effc.kernels.sparse_conv import SparseConv
from effc.kernels.template import Config, Template
from effc.passes.integer.arithmetic import add_factors, factors
from effc.passes.integer.reference import to_quads

DIRECT, SPARSE = DirectConv(), SparseConv()
LIMITS = {"int8": (-128, 127), "uint8": (0, 255)}
TO = {"int8": 3, "uint8": 2}


def targets() -> dict[str, Target]:
    """Instruction sets of this machine."""
    found = {"plain": host(256)}
    if found["plain"].arch == "x86_64":
        found = {"sse": replace(host(128), features=()), "avx2": host(256)}
        wide = host(512, "cascadelake")
        found["avx512"] = wide
        found["vnni"] = replace(wide, features=("+avx512vnni", "+avx512vl", "+avx512bw"))
    return found


TARGETS = targets()


def case(
    x_shape: tuple[int, ...],
    cout: int,
    kernel: tuple[int, ...],
    *,
    dtype: str = "uint8",
    x_zero: int = 3,
    bias: bool = True,
    requantize: bool = True,
    residual: bool = False,
    group: int = 1,
    mask: np.ndarray | None = None,
    seed: int = 0,
    **attrs: Any,
) -> tuple[list[Node], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Nodes, inputs and constants of a ConvInteger with what usually follows."""
    rng = np.random.default_rng(seed)
    low, high = LIMITS[dtype]
    x = rng.integers(low, high + 1, x_shape).astype(dtype)
    x.reshape(-1)[: x.size // 8] = rng.choice([low, high], x.size // 8)
    w = rng.integers(-128, 128, (cout, x_shape[1] // group, *kernel)).astype(np.int8)
    w.reshape(-1)[: w.size // 8] = -128
    if mask is not None:
        w *= mask
    inputs = {"x": to_quads(x, fill=77 if x_zero != 77 else 5)}
    constants = {"w": w}
    names = ["x", "w"]
    if bias:
        constants["b"] = rng.integers(-(2**20), 2**20, cout).astype(np.int32)
        names.append("b")
    attrs = {"x_zero": x_zero, "group": group, **attrs}
    nodes = [Node("ConvInteger", names, "sums" if requantize else "y", attrs)]
    if not requantize:
        return nodes, inputs, constants
    reduction = int(np.prod(w.shape[1:]))
    quads = -(-cout // 4)
    scales = rng.uniform(0.2, 1.0, (quads, *(1,) * len(kernel), 4)) / (90 * np.sqrt(reduction))
    found = factors(scales)
    constants["m"] = found.multiplier
    ends = {"zero": low + 120, "low": low + 2, "high": high - 3, "to": TO[dtype]}
    middle = "y" if not residual else "scaled"
    how = {"left": found.left, "right": found.right, **ends}
    nodes.append(Node("Requantize", ["sums", "m"], middle, how))
    if residual:
        _, sums = region_of(nodes, inputs, constants, anchored=True)
        inputs["other"] = rng.integers(low, high + 1, sums[middle].shape).astype(dtype)
        nodes.append(Node("AddRescaled", ["scaled", "other"], "y", adding(dtype, low)))
    return nodes, inputs, constants


def adding(dtype: str, low: int) -> dict[str, Any]:
    """Attributes of an AddRescaled."""
    found = add_factors(0.6, 0.7, low + 120, low + 100)
    low, high = LIMITS[dtype]
    return {**vars(found), "zero": low + 110, "low": low, "high": high, "to": TO[dtype]}


CASES: dict[str, dict[str, Any]] = {
    "1x1": dict(x_shape=(1, 20, 7, 9), cout=13, kernel=(1, 1)),
    "1x1, 49 positions, residual": dict(
        x_shape=(1, 24, 7, 7), cout=20, kernel=(1, 1), residual=True
    ),
    "1x1 stride 2": dict(x_shape=(1, 8, 9, 9), cout=9, kernel=(1, 1), strides=(2, 2)),
    "first layer": dict(
        x_shape=(1, 3, 30, 34), cout=16, kernel=(7, 7), pads=(3, 3, 3, 3), strides=(2, 2)
    ),
    "3x3 padded, residual": dict(
        x_shape=(1, 8, 9, 11), cout=12, kernel=(3, 3), pads=(1, 1, 1, 1), residual=True
    ),
    "stride 2, groups, batch": dict(
        x_shape=(2, 16, 17, 15), cout=24, kernel=(3, 3), pads=(1, 0, 2, 1), strides=(2, 2), group=2
    ),
    "dilated, uneven pads": dict(
        x_shape=(1, 5, 17, 15), cout=5, kernel=(3, 2), pads=(2, 0, 1, 3), dilations=(2, 3)
    ),
    "no epilogue": dict(x_shape=(1, 9, 5, 6), cout=6, kernel=(2, 2), requantize=False),
    "no bias": dict(x_shape=(1, 9, 5, 6), cout=6, kernel=(2, 2), bias=False, x_zero=0),
    "1-D": dict(x_shape=(1, 8, 42), cout=10, kernel=(3,), residual=True),
    "3-D": dict(
        x_shape=(1, 4, 6, 7, 5), cout=6, kernel=(3, 2, 3), pads=(1,) * 6, strides=(1, 2, 1)
    ),
    "one position": dict(x_shape=(1, 16, 1, 1), cout=40, kernel=(1, 1), residual=True),
    "three positions": dict(x_shape=(1, 16, 1, 3), cout=40, kernel=(1, 1), residual=True),
}


def run(template: Template, target: Target, most: int | None = None, **more: Any) -> list[Config]:
    """Check the first ``most`` configurations."""
    nodes, inputs, constants = case(**more)
    region, _ = region_of(nodes, inputs, constants, anchored=True)
    configs = [c for c, _ in template.candidates(region, target)][:most]
    ignore = np.s_[:, -1, ..., more["cout"] % 4 or 4 :]
    check(template, nodes, inputs, constants, target=target, configs=configs, ignore=ignore)
    return configs


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_best_candidate(name: str, target: str) -> None:
    run(DIRECT, TARGETS[target], 1, **CASES[name])
