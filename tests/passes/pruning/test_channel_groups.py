"""Which channels are coupled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from channel_graphs import Builder

from effc.frontend import import_model
from effc.passes.pruning.channel_groups import ChannelGroup, find_channels
from effc.passes.registry import simplify

MODELS = Path(__file__).parents[4] / "shared" / "data" / "models"


def groups_of(model: ir.Model | onnx.ModelProto) -> list[ChannelGroup]:
    imported = import_model(model) if isinstance(model, onnx.ModelProto) else model
    return list(find_channels(imported.graph).groups)


def sizes(model: ir.Model | onnx.ModelProto) -> list[tuple[int, int, int]]:
    """(channels, producers, consumers) of each group."""
    return [(len(g.channels), len(g.producers), len(g.consumers)) for g in groups_of(model)]


def test_example_network() -> None:
    # The sum goes into the split's halves; squeeze-and-excitation makes what it scales; the first
    # five channels of the sum are read by the left classifier, the rest by the right one.
    assert sizes(Builder(0).example()) == [
        (5, 2, 3),  # stem and branch; branch, side convolution, left classifier
        (3, 2, 3),
        (12, 1, 1),  # through the depthwise convolution
        (6, 2, 2),  # side convolution and gate; squeeze, right classifier
        (4, 1, 1),  # inside squeeze-and-excitation
    ]


def test_grouped_convolutions_lose_whole_groups() -> None:
    b = Builder(0)
    model = b.model([b.conv(b.conv(b.conv("x", 8), 12, group=4), 3)])
    assert sizes(model) == [(4, 1, 1)]


def test_shuffled_channels_move_together() -> None:
    b = Builder(0)
    model = b.model([b.conv(b.shuffle(b.conv("x", 12), 3), 3)])
    assert sizes(model) == [(4, 1, 1)]


def test_a_flattened_channel_is_a_block_of_inputs() -> None:
    b = Builder(0)
    model = import_model(b.model([b.classify(b.conv("x", 7))]))
    channels = find_channels(model.graph)
    (group,) = channels.groups
    here = channels.on(group.consumers[0])
    assert [(here == c).sum() for c in group.channels] == [36] * 7
    np.testing.assert_array_equal(here, np.repeat(group.channels, 36))


def test_padded_channels_can_go() -> None:
    b = Builder(0)
    padded = b.pad_channels(b.conv("x", 4), 2, 3)
    model = b.model([b.conv(b.op("Add", [padded, b.conv("x", 9)], (1, 9, 6, 6)), 3)])
    assert sizes(model) == [(4, 2, 1), (5, 1, 1)]


def test_vectors_of_equal_bytes_do_not_couple_layers() -> None:
    b = Builder(0)
    bias = b.const(np.ones(6, np.float32))
    first = b.op("Conv", ["x", b.weight(6, 3, 1, 1), bias], (1, 6, 6, 6))
    second = b.op("Conv", [first, b.weight(6, 6, 1, 1), bias], (1, 6, 6, 6))
    assert sizes(b.model([b.conv(second, 2)])) == [(6, 1, 1), (6, 1, 1)]


def test_shared_kernels_couple_layers() -> None:
    b = Builder(0)
    kernel = b.weight(6, 6, 1, 1)
    first = b.conv("x", 6)
    second = b.op("Conv", [first, kernel], (1, 6, 6, 6))
    third = b.op("Conv", [second, kernel], (1, 6, 6, 6))
    assert sizes(b.model([b.conv(third, 2)])) == [(6, 3, 3)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("t = Conv(x, w) y = Conv(t, v) z = Relu(x)", 1),
        ("t = Conv(x, w) y = Softmax<axis=1>(t) z = Conv(y, v)", 0),
        ("t = Conv(x, w) y = LRN<size=3>(t) z = Conv(y, v)", 0),
        ("t = Conv(x, w) z = Conv(t, v) y = Relu(t)", 0),
        ("t = Conv(x, w) m = ReduceMean(t, one) s = Sub(t, m) y = Conv(s, v) z = Neg(y)", 0),
        ("t = Conv(x, w) y = Slice(t, one, end, one, two) z = Relu(y) ", 0),
        ("y = Conv(x, w) z = Relu(x)", 0),
    ],
    ids=[
        "nothing",
        "softmax",
        "lrn",
        "output",
        "mean over channels",
        "strided slice",
        "input and output",
    ],
)
def test_mixed_and_visible_channels_stay(text: str, count: int) -> None:
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[1,3,4,4] x) => (float[n,c,h,k] y, float[n1,c1,h1,k1] z)
        <float[6,3,1,1] w, float[2,6,1,1] v, int64[1] one = {{1}}, int64[1] two = {{2}},
         int64[1] end = {{6}}> {{ {text} }}"""
    )
    for value, shape in (("w", (6, 3, 1, 1)), ("v", (2, 6, 1, 1))):
        tensor = onnx.numpy_helper.from_array(np.ones(shape, np.float32), value)
        proto.graph.initializer.append(tensor)
    kept = [t for t in proto.graph.initializer if len(t.raw_data) or t.int64_data]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    assert len(groups_of(proto)) == count


@pytest.mark.skipif(not MODELS.is_dir(), reason="needs ../shared/data")
def test_residual_stages_of_a_real_network() -> None:
    model = import_model(MODELS / "cifar10_resnet20_fp32.onnx", shapes={"input": (1, 3, 32, 32)})
    simplify(model)
    # Shortcuts pad channels: the 16 of the first stage live in all three, 16 more in two.
    residual = [g for g in groups_of(model) if len(g.producers) > 1]
    assert [(len(g.channels), len(g.producers)) for g in residual] == [(16, 10), (16, 6), (32, 3)]
    inner = [g for g in groups_of(model) if len(g.producers) == 1]
    assert [len(g.channels) for g in inner] == [16] * 3 + [32] * 3 + [64] * 3
