"""Normalizations against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from single_op import Node, assert_close, check, host, make_region, region_of, run_kernel

from effc.kernels.normalize import BatchNormTemplate, NormalizeTemplate
from effc.kernels.normalize_axis import LocalResponseTemplate, LpNormalizeTemplate

_TEMPLATE = NormalizeTemplate()


def _x(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 3 + 1).astype(dtype)


# Normalized values are below 10 here, scaled by below 12 and shifted by below 12; mean and
# variance each carry a few roundings of the two implementations.
_BOUND = 130.0


@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.lists(st.sampled_from([2, 3, 7, 8, 9, 17, 33]), min_size=2, max_size=4), st.data())
def test_layer_normalization(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(1, len(shape) - 1))
    operands = {"s": _x(*shape[axis:], seed=1)}
    if data.draw(st.booleans()):
        operands["b"] = _x(*shape[axis:], seed=2)
    node = Node("LayerNormalization", ["x", *operands], attrs={"axis": axis})
    assert_close(check(_TEMPLATE, [node], {"x": _x(*shape)}, operands, inplace=True), _BOUND)


@pytest.mark.printed
def test_layer_normalization_with_residual_in_place() -> None:
    nodes = [Node("LayerNormalization", ["x", "s"], ["n"]), Node("Add", ["n", "r"])]
    inputs = {"x": _x(3, 37), "r": _x(3, 37, seed=3)}
    assert_close(check(_TEMPLATE, nodes, inputs, {"s": _x(37, seed=1)}, inplace=True), _BOUND)


def test_layer_normalization_puts_out_its_statistics() -> None:
    node = Node("LayerNormalization", ["x", "s"], ["y", "m", "i"])
    inputs, constants = {"x": _x(2, 3, 37)}, {"s": _x(37, seed=1)}
    assert_close(check(_TEMPLATE, [node], inputs, constants, outputs=("y", "m", "i")), _BOUND)
    assert_close(check(_TEMPLATE, [node], inputs, constants, outputs=("y", "i")), _BOUND)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16)])
def test_instance_normalization(size: tuple[int, int]) -> None:
    nodes = [Node("InstanceNormalization", ["x", "s", "b"], ["n"]), Node("Relu", ["n"])]
    constants = {"s": _x(5, seed=1), "b": _x(5, seed=2)}
    assert_close(check(_TEMPLATE, nodes, {"x": _x(2, 5, *size)}, constants), _BOUND)


@pytest.mark.parametrize("per_channel", [False, True])
def test_group_normalization(per_channel: bool) -> None:
    x, groups = _x(2, 6, 5, 7), 3
    scale, bias = (_x(6 if per_channel else groups, seed=s) for s in (1, 2))
    wide = x.astype(np.float64).reshape(2, groups, -1)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    factors = [v if per_channel else np.repeat(v, 2) for v in (scale, bias)]
    scale_, bias_ = (f.reshape(1, 6, 1, 1) for f in factors)
    want = (normal.reshape(x.shape) * scale_ + bias_).astype(np.float32)
    node = Node("GroupNormalization", ["x", "s", "b"], attrs={"num_groups": groups})
    constants = {"s": scale, "b": bias}
    region = region_of(
        [node], {"x": x, **constants, "y": want}, ["x"], constants, ["y"], anchored=True
    )
    assert _TEMPLATE.refuse(region, host()) is None
    got = run_kernel(_TEMPLATE.build(region, host(), {}), region, {"x": x}, host())
    assert_close([(got, {"y": want})], _BOUND)


@pytest.mark.parametrize("axes", [(0, 2, 3), (2, 3), (1, 2, 3)])
def test_mean_variance_normalization(axes: tuple[int, ...]) -> None:
    x = _x(2, 5, 7, 9)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(axes, keepdims=True)) / (wide.std(axes, keepdims=True) + 1e-9)
    node = Node("MeanVarianceNormalization", ["x"], attrs={"axes": axes})
    values = {"x": x, "y": want.astype(np.float32)}
    region = region_of([node], values, ["x"], {}, ["y"], anchored=True)
    got = run_kernel(_TEMPLATE.build(region, host(), {}), region, {"x": x}, host())
    assert_close([(got, {"y": values["y"]})], _BOUND)


@pytest.mark.parametrize("runtime", [False, True])
def test_batch_normalization(runtime: bool) -> None:
    operands = {n: _x(5, seed=i) for i, n in enumerate("sbm")}
    operands["v"] = np.abs(_x(5, seed=7)) + 0.1
    nodes = [Node("BatchNormalization", ["x", *operands], ["n"]), Node("LeakyRelu", ["n"])]
    inputs = {"x": _x(2, 5, 3, 11), **(operands if runtime else {})}
    constants = {} if runtime else operands
    found = check(BatchNormTemplate(), nodes, inputs, constants, inplace=not runtime)
    assert_close(found, _BOUND)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [1, -1])
def test_lp_normalization(p: int, axis: int) -> None:
    node = Node("LpNormalization", ["x"], attrs={"p": p, "axis": axis})
    assert_close(check(LpNormalizeTemplate(), [node], {"x": _x(2, 5, 37)}), 1.0)


@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (3, 0.5), (3, 1.0), (5, 0.6)])
def test_local_response(size: int, beta: float) -> None:
    node = Node("LRN", ["x"], attrs={"size": size, "beta": beta, "alpha": 0.1, "bias": 1.5})
    assert_close(check(LocalResponseTemplate(), [node], {"x": _x(2, 7, 5, 5)}), 12.0)


def test_refusals() -> None:
    node = Node("LayerNormalization", ["x", "s"])
    x = {"x": _x(3, 4)}
    region, _ = make_region([node], x, {"s": _x(1)}, ["y"], anchored=True)
    assert "scale of shape (1,)" in str(_TEMPLATE.refuse(region, host()))
