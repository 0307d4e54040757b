"""The epilogue under views, strides and refusals, by a template that just copies."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from single_op import Node, assert_close, host, library, make_region, run_kernel

from effc.devices.target import Target
from effc.kernels.builder import loop, stage_func, unravel, vload, vstore
from effc.kernels.epilogue import Epilogue
from effc.kernels.region import Region
from effc.kernels.template import Kernel, Stage
from effc.lower import lower_to_module

_SHAPE = (2, 3, 4, 8)
_VIEW = (2, 3, 32)


def _x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).standard_normal(shape) * 4).astype(np.float32)


def _kernel(
    region: Region, view: tuple[int, ...], axis: int, lanes: int
) -> tuple[Kernel, Epilogue]:
    """Copies the anchor's input (a Relu) and applies the epilogue along group ``axis``."""
    result = region.ops[0].outputs[0]
    epilogue = Epilogue(region, result, view)
    assert epilogue.refusal is None, epilogue.refusal
    steps = [prod(view[i + 1 :]) for i in range(len(view))]

    def body(x: Any, y: Any, *rest: Any) -> None:
        *extra, begin, end = rest
        with loop(begin, end) as unit:
            coords = unravel(unit, [e // lanes if i == axis else e for i, e in enumerate(view)])
            coords[axis] = coords[axis] * lanes
            offset = sum(c * s for c, s in zip(coords, steps, strict=True))
            value = vload(x, offset, lanes, steps[axis])
            done = epilogue.apply(value, coords, extra, axis=axis, lanes=lanes)
            assert steps[axis] == 1 or lanes == 1
            vstore(y, offset, done, lanes)

    size = result.type.size
    params = [("x", "float32", size), ("y", epilogue.out_dtype, size), *epilogue.params]
    args = (region.inputs[0].name, region.outputs[0].name, *epilogue.args)
    stage = Stage(stage_func(params, body), args, size // lanes)
    return Kernel((stage,), weights=epilogue.weights, inplace=epilogue.inplace), epilogue


def _run(nodes: list[Node], inputs: Any, constants: Any, axis: int = 2, lanes: int = 8) -> Epilogue:
    inputs = {"x": np.abs(_x(*_SHAPE)), **inputs}
    chain = [Node("Relu", ["x"], ["r"]), *nodes]
    region, expected = make_region(chain, inputs, constants, ["y"], anchored=True)
    kernel, epilogue = _kernel(region, _VIEW, axis, lanes)
    assert_close([(run_kernel(kernel, region, inputs, host()), expected)], 40.0)
    return epilogue


def test_residual_bias_and_scalar() -> None:
    nodes = [Node("Add", ["r", "b"], ["t"]), Node("Add", ["t", "z"], ["u"]),
             Node("Mul", ["u", "k"])]  # fmt: skip
    constants = {"b": _x(3, 1, 1, seed=1), "k": np.array(0.5, np.float32)}
    epilogue = _run(nodes, {"z": _x(*_SHAPE, seed=2)}, constants)
    assert epilogue.args == ("w:e0", "z")
    assert epilogue.inplace == (("z", "y"),)


def test_scalar_lanes_and_condition() -> None:
    nodes = [Node("Greater", ["r", "z"], ["c"]), Node("Where", ["c", "r", "b"])]
    inputs = {"z": _x(*_SHAPE, seed=2), "b": _x(1, 3, 4, 8, seed=3)}
    _run(nodes, inputs, {}, lanes=1)


def test_boolean_result() -> None:
    epilogue = _run([Node("Less", ["r", "b"])], {}, {"b": _x(3, 1, 1, seed=1) + 4})
    assert epilogue.out_dtype == "uint8"


def test_lanes_across_channels_step_through_operands() -> None:
    region, _ = make_region(
        [Node("Relu", ["x"], ["r"]), Node("Add", ["r", "b"], ["t"]), Node("Add", ["t", "z"])],
        {"x": _x(1, 8, 4), "z": _x(1, 8, 4, seed=1)}, {"b": _x(8, 1, seed=2)}, ["y"],
        anchored=True,
    )  # fmt: skip
    epilogue = Epilogue(region, region.ops[0].outputs[0], (1, 8, 4))

    def body(y: Any, b: Any, z: Any, begin: Any, end: Any) -> None:
        with loop(begin, end) as unit:
            value = vload(y, unit * 8, 8)
            vstore(y, unit * 8, epilogue.apply(value, (0, 0, unit), (b, z), axis=1, lanes=8), 8)

    func = stage_func([("y", "float32", 32), *epilogue.params], body)
    code = library({"f": func}, host())
    columns = np.ascontiguousarray(_x(1, 8, 4, seed=5)[0].T)
    out = columns.copy()
    bias, residual = epilogue.weights["e0"], _x(1, 8, 4, seed=1)
    code.f(out.ctypes, bias.ctypes, residual.ctypes, 0, 4)
    np.testing.assert_allclose(out, columns + bias.reshape(1, 8) + residual[0].T, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "why"),
    [((1, 1, 4, 1), "does not broadcast over groups"), ((2, 2, 3, 4, 8), "broadcasts")],
)
def test_refusals(shape: tuple[int, ...], why: str) -> None:
    nodes = [Node("Relu", ["x"], ["r"]), Node("Add", ["r", "b"])]
    inputs = {"x": _x(*_SHAPE), "b": _x(*shape)}
    region, _ = make_region(nodes, inputs, {}, ["y"], anchored=True)
    assert why in str(Epilogue(region, region.ops[0].outputs[0], _VIEW).refusal)


def test_relu6_is_two_instructions_on_arm() -> None:
    nodes = [Node("Relu", ["x"], ["r"]), Node("Clip", ["r", "low", "high"])]
    bounds = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    region, _ = make_region(nodes, {"x": _x(*_SHAPE)}, bounds, ["y"], anchored=True)
    arm = Target("a", "aarch64", "linux", "", "aarch64-linux-gnu", "", ("+neon",), 128, 32, 32768,
                 1 << 20, 2, "", "")  # fmt: skip
    kernel, _ = _kernel(region, _VIEW, 2, 4)
    text = lower_to_module({"f": kernel.stages[0].func}, arm).inspect_source("s")
    code = text[text.index("f:") : text.index("ret")]
    assert "fmaxnm" not in code
    assert code.count("fmax") == code.count("fmin") > 0
    assert "fcm" not in code
