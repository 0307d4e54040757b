"""ResizeLinear against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
from integer_cases import Node, check

from effc.kernels.resize_quads import QuadResize
from effc.passes.integer.arithmetic import factors


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("sizes", "outs"), [((5,), (9,)), ((4, 3), (8, 7)), ((6, 5), (1, 3))])
def test_linear(dtype: str, sizes: tuple[int, ...], outs: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    low = np.iinfo(dtype).min
    x = generator.integers(low, low + 256, (2, 3, *sizes, 4)).astype(dtype)
    constants = {}
    for i, (size, out) in enumerate(zip(sizes, outs, strict=True)):
        constants[f"i{i}"] = generator.integers(0, size, out).astype(np.int32)
        constants[f"w{i}"] = generator.integers(0, 2049, out).astype(np.int32)
    back = factors(2.0 ** (-11 * len(sizes)))
    bounds = {
        "left": back.left,
        "right": back.right,
        "zero": low + 9,
        "low": low,
        "high": low + 255,
    }
    nodes = [
        Node("ResizeLinear", ["x", *constants], "r", {"x_zero": low + 9}),
        Node("Requantize", ["r", "m"], attrs={**bounds, "to": 3 if dtype == "int8" else 2}),
    ]
    check(QuadResize(), nodes, {"x": x}, {**constants, "m": back.multiplier})
