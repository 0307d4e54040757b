"""First stages in strips: the same bits as whole, from fewer bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from effc.passes.graph import Writer, shape_of
from effc.passes.integer.operators import DOMAIN
from effc.passes.integer.reference import run
from effc.passes.patches import Cut, find_cuts, plan_strips, split

Layers = list[tuple[str, int, int, int]]  # kind, kernel, stride, padding


def _network(layers: Layers, height: int, layout: str = "quads") -> ir.Model:
    """Integer layers over an image; a residual sum where shapes allow.

    ``layout``: where the image has its channels, if a convolution reads it as it is.
    """
    rng = np.random.default_rng(height + len(layers))
    shape = (1, height, 7, 4) if layout == "last" else (1, 4, height, 7)
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT8))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20, DOMAIN: 1}, name="g")
    writer = Writer(graph, None)
    rescale: dict[str, Any] = {"x_zero": 0, "left": 0, "right": 8, "zero": 3, "to": 3}
    limits = {"low": -128, "high": 127}
    if layout == "quads":
        values = [writer.op("ToQuads", x, domain=DOMAIN)]
    else:
        w = rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
        how: dict[str, Any] = {"x_zero": 5, "pads": (1, 1, 1, 1), "layout": layout}
        sums = writer.op("ConvInteger", x, w, domain=DOMAIN, **how)
        factor = np.array(1 << 29, np.int32)
        values = [writer.op("Requantize", sums, factor, domain=DOMAIN, **rescale, **limits)]
    for kind, kernel, stride, pad in layers:
        window = {"strides": (stride, 1), "pads": (pad, 1, pad, 1)}
        last = values[-1]
        if shape_of(last)[2] + 2 * pad < kernel:
            continue
        if kind == "pool":
            made = writer.op("MaxPool8", last, domain=DOMAIN, kernel_shape=(kernel, 3), **window)
        elif kind == "residual":
            if len(values) < 2 or shape_of(values[-2]) != shape_of(last):
                continue
            scales = {"a_multiplier": 1 << 18, "b_multiplier": 3 << 16, "offset": 1 << 17}
            made = writer.op(
                "AddRescaled",
                last,
                values[-2],
                domain=DOMAIN,
                right=18,
                zero=-2,
                to=3,
                **scales,
                **limits,
            )
        else:
            group = 4 if kind == "depthwise" else 1
            w = rng.integers(-127, 128, (4, 4 // group, kernel, 3)).astype(np.int8)
            sums = writer.op("ConvInteger", last, w, domain=DOMAIN, x_zero=5, group=group, **window)
            # One multiplier per row, as behind pools with padding: constants are cut as well.
            rows = shape_of(sums)[2]
            factors = rng.integers(1 << 29, 1 << 30, (1, 1, rows, 1, 1)).astype(np.int32)
            made = writer.op("Requantize", sums, factors, domain=DOMAIN, **rescale, **limits)
        values.append(made)
    graph.outputs.append(writer.op("FromQuads", values[-1], domain=DOMAIN, channels=4))
    return ir.Model(graph, ir_version=10)


_KIND = st.sampled_from(["dense", "depthwise", "pool", "residual"])
_LAYER = st.tuples(_KIND, st.integers(1, 3), st.integers(1, 2), st.integers(0, 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(_LAYER, min_size=1, max_size=5),
    st.integers(12, 20),
    st.integers(1, 7),
    st.sampled_from(["quads", "first", "last"]),
    st.data(),
)
def test_strips_give_the_bits_of_the_whole(
    layers: Layers, height: int, rows: int, layout: str, data: st.DataObject
) -> None:
    shape = (1, height, 7, 4) if layout == "last" else (1, 4, height, 7)
    feeds = {"x": np.random.default_rng(7).integers(-128, 128, shape).astype(np.int8)}
    model = _network(layers, height, layout)
    expected = list(run(model, feeds).values())[-1]
    cuts = find_cuts(model.graph)
    if not cuts:
        return
    cut = data.draw(st.sampled_from(cuts))
    strips = plan_strips(cut, rows)
    if isinstance(strips, str):
        assert "padding" in strips  # a kernel of one row may see nothing but padding
        return
    split(model, strips)
    np.testing.assert_array_equal(list(run(model, feeds).values())[-1], expected)


def _last_cut(model: ir.Model) -> Cut:
    return find_cuts(model.graph)[-1]


def test_halo_is_computed_again_and_counted() -> None:
    model = _network([("dense", 3, 1, 1), ("dense", 3, 1, 1)], 16)
    strips = plan_strips(_last_cut(model), 4)
    assert not isinstance(strips, str)
    first, second = strips.cut.stages[1].outputs[0], strips.cut.value
    assert [needed[second][1] for needed in strips.needed] == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert [needed[first][1] for needed in strips.needed] == [(0, 5), (3, 9), (7, 13), (11, 16)]
    assert strips.extra == 6 * 7 * 4 * 4 * 3 * 3  # six rows of the first convolution, all channels


def test_strips_in_the_middle_are_alike() -> None:
    model = _network([("dense", 3, 2, 1), ("depthwise", 3, 1, 1)], 16)
    strips = plan_strips(_last_cut(model), 2)
    assert not isinstance(strips, str)
    split(model, strips)
    pads: dict[tuple[int, ...], int] = {}
    for node in model.graph:
        if node.op_type == "ConvInteger":
            pad = tuple(int(p) for p in node.attributes.get_ints("pads", ()))
            pads[pad] = pads.get(pad, 0) + 1
    assert pads[0, 1, 0, 1] >= 4


def test_a_value_that_is_read_behind_is_no_cut() -> None:
    model = _network([("dense", 1, 1, 0), ("depthwise", 3, 1, 1), ("residual", 1, 1, 0)], 12)
    values = [cut.value.producer().op_type for cut in find_cuts(model.graph)]  # type: ignore[union-attr]
    assert values == ["Requantize", "AddRescaled"]
