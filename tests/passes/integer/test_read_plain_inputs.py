"""First convolutions read the model's input where it is: the same bits, no copy in quads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from qdq import Model, reference

from effc.frontend import import_model
from effc.passes.base import PassReport
from effc.passes.graph import attribute
from effc.passes.integer.integerize import integerize
from effc.passes.integer.reference import run

GRID = 0.02, np.array(7, np.uint8)


def _image(model: Model, channels: int, dtype: Any, last: bool) -> str:
    """A quantized image, ``[1, channels, 6, 5]`` in the end."""
    shape = (1, 6, 5, channels) if last else (1, channels, 6, 5)
    limits = np.iinfo(dtype)
    values = np.random.default_rng(3).integers(limits.min, limits.max + 1, shape).astype(dtype)
    x = model.dq(model.input("x", values), GRID[0], np.array(7, dtype))
    return model.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x


def _conv(model: Model, x: str, shape: tuple[int, ...], **attrs: Any) -> str:
    weights = np.random.default_rng(5).integers(-127, 128, shape).astype(np.int8)
    w = model.dq(model.const(weights), 0.01, np.array(0, np.int8))
    return model.q(model.op("Conv", x, w, pads=[1, 1, 1, 1], **attrs), 0.05, np.array(3, np.int8))


def _both(model: Model, *outputs: str) -> tuple[Counter[str], list[str], PassReport]:
    """Check the bits; operators, layouts of convolutions, and what the pass says."""
    proto = model.proto(*outputs, like=reference(model.proto(*outputs), model.inputs))
    wanted, _ = integerize(import_model(proto), "int8")
    made, reports = integerize(import_model(proto), "int8", plain=True)
    want, got = run(wanted, model.inputs), run(made, model.inputs)
    for a, b in zip(wanted.graph.outputs, made.graph.outputs, strict=True):
        np.testing.assert_array_equal(got[b.name or ""], want[a.name or ""])
    convolutions = [node for node in made.graph if node.op_type == "ConvInteger"]
    layouts = [attribute(node, "layout", "quads") for node in convolutions]
    return Counter(node.op_type for node in made.graph), layouts, reports[-1]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("last", [False, True])
def test_images_are_read_in_place(channels: int, dtype: Any, last: bool) -> None:
    model = Model()
    x = _image(model, channels, dtype, last)
    made, layouts, report = _both(model, _conv(model, x, (5, channels, 3, 3), strides=[2, 1]))
    assert layouts == ["last" if last else "first"]
    assert not {"ToQuads", "FlipSign", "Transpose"} & set(made)
    assert len(report.applied) == 1


def test_every_convolution_of_an_image_reads_it() -> None:
    model = Model()
    x = _image(model, 3, np.int8, last=True)
    made, layouts, _ = _both(model, _conv(model, x, (4, 3, 3, 3)), _conv(model, x, (6, 3, 3, 3)))
    assert layouts == ["last", "last"]
    assert made["ToQuads"] == 0


@pytest.mark.parametrize("why", ["channels", "depthwise", "other"])
def test_what_needs_quads_keeps_them(why: str) -> None:
    model = Model()
    channels = 5 if why == "channels" else 4
    x = _image(model, channels, np.int8, last=False)
    if why == "depthwise":
        y = [_conv(model, x, (4, 1, 3, 3), group=4)]
    else:
        y = [_conv(model, x, (5, channels, 3, 3))]
    if why == "other":
        pool = model.op("AveragePool", x, kernel_shape=[2, 2])
        y.append(model.q(pool, 0.03, np.array(1, np.int8)))
    made, layouts, report = _both(model, *y)
    assert set(layouts) == {"quads"}
    assert made["ToQuads"] == 1
    assert not report.applied
    (refused,) = report.refused
    assert "channels" in refused[1] if why == "channels" else "convolutions" in refused[1]
