"""The smaller network computes what the masked one does."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from channel_graphs import Builder, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_feeds, run, snr_db

from effc.errors import UsageError
from effc.frontend import import_model
from effc.passes.pruning.channel_groups import Channels, find_channels
from effc.passes.pruning.remove_channels import mask_channels, remove_channels
from effc.passes.registry import simplify

MODELS = Path(__file__).parents[4] / "shared" / "data" / "models"


def choose(channels: Channels, seed: int) -> list[int]:
    """Any channels, but never a whole group."""
    chance = random.Random(seed)
    return [
        channel
        for group in channels.groups
        for channel in chance.sample(group.channels, chance.randrange(len(group.channels)))
    ]


def masked_and_small(model: ir.Model, seed: int) -> tuple[onnx.ModelProto, onnx.ModelProto, int]:
    """(masked model, model without the channels, how many); weights of both as protobuf."""
    original = ir.to_proto(model)
    channels = find_channels(model.graph)
    removed = choose(channels, seed)
    mask_channels(model.graph, channels, removed)
    small = ir.from_proto(original)
    remove_channels(small.graph, find_channels(small.graph), removed)
    return ir.to_proto(model), ir.to_proto(small), len(removed)


def integer_feeds(model: ir.Model) -> dict[str, np.ndarray]:
    """Random integers, for which the sums of random graphs are exact."""
    return {k: np.round(3 * v).astype(np.float32) for k, v in random_feeds(model).items()}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(graphs(), st.integers(0, 2**16), st.booleans())
def test_random_graphs_without_channels_equal_masked_ones_bit_for_bit(
    proto: onnx.ModelProto, seed: int, simplified: bool
) -> None:
    model = import_model(proto)
    if simplified:
        simplify(model)
    feeds = integer_feeds(model)
    masked, small, _ = masked_and_small(model, seed)
    onnx.checker.check_model(small, full_check=True)
    for expected, got in zip(run(masked, feeds), run(small, feeds), strict=True):
        np.testing.assert_array_equal(expected, got)


def test_every_kind_of_size_is_renewed() -> None:
    b = Builder(3)
    padded = b.pad_channels(b.conv("x", 8), 2, 2)
    left, right = b.split(b.conv(b.gather(padded, [*range(-12, 0), 3]), 12), 5)
    cut = b.slice(b.op("Concat", [right, left], (1, 12, 6, 6), axis=1), 1, 99)
    shuffled = b.shuffle(b.conv(b.conv(cut, 12), 12, group=12), 3)
    model = import_model(b.model([b.classify(b.conv_transpose(b.conv(shuffled, 8), 8, 4))]))
    feeds = integer_feeds(model)
    masked, small, count = masked_and_small(model, 3)
    assert count > 10
    np.testing.assert_array_equal(run(masked, feeds)[0], run(small, feeds)[0])


def test_nothing_to_remove_changes_nothing() -> None:
    model = import_model(Builder(0).example())
    before = ir.to_proto(model)
    remove_channels(model.graph, find_channels(model.graph), [])
    assert ir.to_proto(model) == before


def test_a_whole_group_or_an_unknown_channel_is_refused() -> None:
    model = import_model(Builder(0).example())
    channels = find_channels(model.graph)
    with pytest.raises(UsageError, match="at least one channel must stay"):
        remove_channels(model.graph, channels, channels.groups[0].channels)
    with pytest.raises(UsageError, match="no such channels"):
        remove_channels(model.graph, channels, [10**6])


@pytest.mark.skipif(not MODELS.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    "name",
    [
        "cifar10_resnet20_fp32",
        "cifar10_resnet32_bn_fp32",
        "cifar10_tiniest_fp32",
        "coco_fastestdet_352_fp32",
        "face_ultraface_rfb320_fp32",
        "imagenet_mobilenet_v2_1.0_224_fp32deq",
        "imagenet_squeezenet_v1.0_deepcompressed_fp32",
        "mlperf_tiny_ad01_autoencoder_fp32",
        "mlperf_tiny_ic01_resnet8_fp32",
        "mlperf_tiny_kws01_dscnn_fp32",
        "sr_fsrcnn_x2_fp32",
    ],
)
@pytest.mark.parametrize("simplified", [True, False])
def test_real_networks_without_channels_equal_masked_ones(name: str, simplified: bool) -> None:
    shapes = {"input": (1, 3, 32, 32)} if name.startswith("cifar10") else {}
    model = import_model(MODELS / f"{name}.onnx", shapes=shapes)
    if simplified:
        simplify(model)
    depth = sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.graph)
    feeds = random_feeds(model)
    masked, small, count = masked_and_small(model, 1)
    assert count > 20
    # Each layer's sums differ by their order: of K terms by about sqrt(K) roundings, relative to
    # the sum; K <= 4096 here. Layers add up at worst.
    relative = depth * np.sqrt(4096) * np.finfo(np.float32).eps / 2
    for expected, got in zip(run(masked, feeds), run(small, feeds), strict=True):
        assert snr_db(expected, got) > -20 * np.log10(relative)
