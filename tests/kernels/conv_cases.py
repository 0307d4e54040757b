"""Convolution regions for tests, with a float64 reference and its error bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from onnx.reference import ReferenceEvaluator
from single_op import run_kernel

from effc.devices.target import Target
from effc.kernels.conv_shape import ConvShape
from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Config, Template

__all__ = ["check_conv", "conv_region", "random_inputs", "reference"]


def conv_region(
    x_shape: tuple[int, ...],
    cout: int,
    kernel: tuple[int, ...],
    *,
    group: int = 1,
    bias: bool = True,
    relu: bool = False,
    residual: bool = False,
    seed: int = 0,
    **attrs: Any,
) -> Region:
    """A Conv region, optionally with a residual Add and a Relu behind it."""
    rng = np.random.default_rng(seed)
    space = len(kernel)
    strides = attrs.get("strides", (1,) * space)
    dilations = attrs.get("dilations", (1,) * space)
    pads = attrs.get("pads", (0,) * 2 * space)
    out = tuple(
        (x_shape[2 + i] + pads[i] + pads[i + space] - (kernel[i] - 1) * dilations[i] - 1)
        // strides[i]
        + 1
        for i in range(space)
    )
    y_type = TensorType((x_shape[0], cout, *out), "float32")
    x = Value("x", TensorType(x_shape, "float32"))
    weight = rng.standard_normal((cout, x_shape[1] // group, *kernel)).astype(np.float32)
    w = Value("w", TensorType(weight.shape, "float32"), weight)
    inputs: list[Value | None] = [x, w]
    if bias:
        value = rng.standard_normal(cout).astype(np.float32)
        inputs.append(Value("b", TensorType((cout,), "float32"), value))
    if group != 1:
        attrs["group"] = group
    result = Value("conv", y_type)
    ops = [Op("Conv", tuple(inputs), (result,), attrs, "conv")]
    runtime = [x]
    if residual:
        other = Value("other", y_type)
        runtime.append(other)
        total = Value("sum", y_type)
        ops.append(Op("Add", (result, other), (total,)))
        result = total
    if relu:
        positive = Value("positive", y_type)
        ops.append(Op("Relu", (result,), (positive,)))
        result = positive
    return Region("conv", tuple(ops), ops[0], tuple(runtime), (result,))


def reference(region: Region, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The convolution in float64 and, per element, ``sum |w*x| + |bias|`` (for error bounds)."""
    anchor = region.anchor
    assert anchor is not None
    feeds = {"x": inputs["x"].astype(np.float64)}
    for value in anchor.inputs[1:]:
        assert value is not None
        assert value.const is not None
        feeds[value.name] = value.const.astype(np.float64)
    exact = _conv(anchor, feeds)
    bound = _conv(anchor, {name: np.abs(array) for name, array in feeds.items()})
    for op in region.epilogue:
        if op.op_type == "Add":
            exact = exact + inputs["other"]
            bound = bound + np.abs(inputs["other"])
        else:
            exact = np.maximum(exact, 0)
    return exact, bound


def random_inputs(region: Region, seed: int = 1) -> dict[str, np.ndarray]:
    """Normal data for every runtime input."""
    rng = np.random.default_rng(seed)
    return {v.name: rng.standard_normal(v.shape).astype(np.float32) for v in region.inputs}


def check_conv(
    template: Template,
    region: Region,
    target: Target,
    config: Config,
    *,
    slack: float = 0,
    inputs: dict[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Assert that the kernel is as exact as f32 summation may be; return the exact result.

    Args:
        template, region, target, config: What to run.
        slack: Rounding errors per term beyond those of plain summation.
        inputs: Data; random by default.
    """
    inputs = inputs or random_inputs(region)
    assert template.refuse(region, target) is None
    kernel = template.build(region, target, config)
    got = run_kernel(kernel, region, inputs, target)[region.outputs[0].name]
    exact, bound = reference(region, inputs)
    assert region.anchor is not None
    terms = ConvShape.of(region.anchor).reduction + 4 + slack
    ulp = np.finfo(np.float32).eps / 2
    assert (np.abs(got - exact) <= terms * ulp * bound).all()
    return exact


def _conv(op: Op, feeds: dict[str, np.ndarray]) -> np.ndarray:
    names = [value.name for value in op.inputs if value is not None]
    attrs = {name: value for name, value in op.attrs.items() if name != "terms"}  # of float16
    node = helper.make_node("Conv", names, ["y"], **attrs)
    infos = [helper.make_tensor_value_info(n, 11, feeds[n].shape) for n in names]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("y", 11, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    result: np.ndarray = ReferenceEvaluator(model).run(None, feeds)[0]
    return result
