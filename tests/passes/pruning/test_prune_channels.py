"""How many channels go, which ones, and what the others make up for."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from channel_graphs import Builder
from hypothesis import given
from hypothesis import strategies as st
from reference import run

from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.calibration import unfold
from effc.passes.pruning.channel_groups import find_channels
from effc.passes.pruning.channel_surgeon import ChannelSurgeon
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.prune_channels import Demand, PruneChannels, kept_count
from effc.passes.pruning.prune_weights import Setting
from effc.passes.pruning.refit_layers import refit_layers
from effc.passes.pruning.scheme import Scheme

Array = np.ndarray[Any, Any]
CHANNEL = Scheme("channel", (1, 1))


class FloatBuilder(Builder):
    """Normal weights, Relu between convolutions."""

    def weight(self, *shape: int) -> str:
        scale = np.sqrt(2 / max(np.prod(shape[1:]), 1))
        return self.const((scale * self.rng.standard_normal(shape)).astype(np.float32))

    def clip(self, x: str) -> str:
        return self.op("Relu", [x], self.shapes[x])


def samples(count: int = 24, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((3, 3, 1, 1))  # correlated channels
    arrays = rng.standard_normal((count, 1, 3, 6, 6))
    return [
        {"x": (a + np.tensordot(mix[:, :, 0, 0], a, (1, 1)).swapaxes(0, 1)).astype("f4")}
        for a in arrays
    ]


def settings_for(model: ir.Model, sparsity: float, *names: str) -> dict[str, Setting]:
    layers = find_layers(model)[0]
    return {
        layer.name: Setting(CHANNEL, sparsity)
        for layer in layers
        if (layer.name in names if names else layer.role == "inner")
    }


@given(st.integers(1, 600), st.floats(0, 0.999))
def test_kept_counts(total: int, sparsity: float) -> None:
    kept = kept_count(total, sparsity)
    assert 1 <= kept <= total
    multiple = 8 if total >= 64 else 4 if total >= 16 else 1
    assert kept % multiple == 0 or kept == total
    assert abs(kept - total * (1 - sparsity)) <= multiple
    assert kept_count(total, 0) == total


def chain() -> ir.Model:
    b = FloatBuilder(3)
    inner = b.conv(b.conv(b.conv("x", 16), 16), 12, 1)
    return import_model(b.model([b.classify(inner)]))


def test_first_layers_and_outputs_keep_their_channels() -> None:
    model = chain()
    first, second, third, last = (layer.name for layer in find_layers(model)[0])
    result = PruneChannels(settings_for(model, 0.5))
    log = result.run(model)
    shapes = [layer.shape[:2] for layer in find_layers(model)[0]]
    assert shapes == [(16, 3), (8, 16), (6, 8), (5, 6 * 36)]
    assert log.applied == (second, third)
    assert log.refused == ((first, "it keeps all"),)
    assert {k: int(v.sum()) for k, v in result.kept.items()} == {
        first: 16,
        second: 8,
        third: 6,
        last: 5,
    }


def test_a_first_layer_that_is_asked_for_loses_channels() -> None:
    model = chain()
    names = [layer.name for layer in find_layers(model)[0]]
    PruneChannels(settings_for(model, 0.75, *names[:2])).run(model)
    assert [layer.shape[:2] for layer in find_layers(model)[0][:3]] == [(4, 3), (4, 4), (12, 4)]


def test_a_group_follows_the_layer_that_is_asked_for_least() -> None:
    model = import_model(Builder(0).example())
    layers = [layer.name for layer in find_layers(model)[0]]
    settings = settings_for(model, 0.5) | {layers[0]: Setting(CHANNEL, 0.25)}
    PruneChannels(settings).run(model)
    groups = find_channels(model.graph).groups
    # Of 5 + 3 channels of the sum a quarter goes (of few channels by rounding), of others half.
    assert [len(group.channels) for group in groups] == [4, 2, 6, 3, 2]


def test_magnitude_removes_the_smallest_filters() -> None:
    model = chain()
    second = find_layers(model)[0][1]
    small = [1, 4, 5, 9, 10, 12, 13, 15]
    weight = np.array(second.weight())
    weight[small] *= 1e-3
    second.set_weight(weight)
    result = PruneChannels(settings_for(model, 0.5, second.name))
    result.run(model)
    assert np.flatnonzero(~result.kept[second.name]).tolist() == small
    assert 0 < result.losses[second.name] < 0.5


def reader_error(layer: Layer, gone: list[int], inputs: Array) -> float:
    """Least-squares error, with bias, of a convolution without some input channels."""
    columns = unfold(layer, inputs)[0].astype(np.float64)
    wanted = columns @ layer.weight().reshape(layer.shape[0], -1).T.astype(np.float64)
    kept = ~np.isin(np.arange(columns.shape[1]) // 9, gone)
    design = np.concatenate([columns[:, kept], np.ones((len(columns), 1))], axis=1)
    best = np.linalg.lstsq(design, wanted, rcond=None)[0]
    centred = wanted - wanted.mean(axis=0)
    return float(np.square(wanted - design @ best).sum() / np.square(centred).sum())


def surgeon_case() -> tuple[ir.Model, list[Layer], Array]:
    """A model, its layers, and what the third one reads."""
    b = FloatBuilder(5)
    model = import_model(b.model([b.conv(b.conv(b.conv("x", 6), 7), 4)]))
    layers = find_layers(model)[0]
    value = layers[2].node.inputs[0]
    assert value is not None
    runner = SampleRunner(model, samples())
    batches = [batch[value.name or ""] for batch in runner.values([value.name or ""])]
    return model, layers, np.concatenate(batches)


def test_surgeon_costs_are_least_squares_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effc.passes.pruning.channel_surgeon.DAMPING", 1e-6)
    model, layers, inputs = surgeon_case()
    channels = find_channels(model.graph)
    group = next(g for g in channels.groups if g.name == layers[1].name)
    surgeon = ChannelSurgeon(SampleRunner(model, samples()))
    for count in (1, 3, 5):
        (choice,) = surgeon(model, channels, [Demand(group, count)])
        gone = [group.channels.index(c) for c in choice.channels]
        assert choice.loss == pytest.approx(reader_error(layers[2], gone, inputs), rel=2e-3)
    singles = [reader_error(layers[2], [c], inputs) for c in range(7)]
    (first,) = surgeon(model, channels, [Demand(group, 1)])
    assert group.channels.index(first.channels[0]) == int(np.argmin(singles))
    pairs = sorted(reader_error(layers[2], list(p), inputs) for p in combinations(range(7), 2))
    (both,) = surgeon(model, channels, [Demand(group, 2)])
    assert both.loss <= pairs[len(pairs) // 5]  # greedy: among the best, not always the best


def test_surgeon_is_better_than_magnitude_and_refit_is_better_still() -> None:
    data, held_out = samples(64), samples(8, seed=1)
    errors = {}
    for how in ("magnitude", "surgeon", "refit"):
        b = FloatBuilder(7)
        stem = b.conv("x", 16)
        branch = b.conv(b.conv(stem, 32), 16)
        total = b.clip(b.op("Add", [stem, branch], b.shapes[stem]))
        model = import_model(b.model([b.classify(b.conv(b.conv(total, 32), 16))]))
        dense = ir.from_proto(ir.to_proto(model))
        expected = np.concatenate([run(dense, s)[0] for s in held_out])
        settings = settings_for(model, 0.5)
        chooser = [] if how == "magnitude" else [ChannelSurgeon(SampleRunner(model, data))]
        result = PruneChannels(settings, *chooser)
        result.run(model)
        if how == "refit":
            left = refit_layers(model, dense, data, result.kept)
            assert all(0 <= error < 1 for error in left.values())
        got = np.concatenate([run(model, s)[0] for s in held_out])
        errors[how] = float(np.square(got - expected).mean())
    assert errors["refit"] < 0.5 * errors["surgeon"] < 0.5 * errors["magnitude"]


def test_refit_is_the_least_squares_solution() -> None:
    model, layers, inputs = surgeon_case()
    dense = ir.from_proto(ir.to_proto(model))
    result = PruneChannels(settings_for(model, 0.4, layers[1].name))
    result.run(model)
    gone = np.flatnonzero(~result.kept[layers[1].name]).tolist()
    assert len(gone) == 3
    errors = refit_layers(model, dense, samples(), result.kept)
    # Damping of one percent costs a little.
    original = find_layers(dense)[0]
    best = reader_error(original[2], gone, inputs)
    assert best * 0.999 <= errors[layers[2].name] <= best * 1.1
    pruned = find_layers(model)[0]
    assert np.array_equal(pruned[0].weight(), original[0].weight())  # what is before stays


def test_an_unpruned_model_is_not_refitted() -> None:
    model = chain()
    kept = {layer.name: np.ones(layer.shape[0], bool) for layer in find_layers(model)[0]}
    assert refit_layers(model, ir.from_proto(ir.to_proto(model)), samples(), kept) == {}


def test_channels_that_no_layer_reads_are_chosen_by_magnitude() -> None:
    b = FloatBuilder(2)
    model = import_model(b.model([b.conv_transpose(b.conv(b.conv("x", 8), 8), 2, 1)]))
    chooser = ChannelSurgeon(SampleRunner(model, samples(4)))
    second = find_layers(model)[0][1].name
    log = PruneChannels({second: Setting(CHANNEL, 0.5)}, chooser).run(model)
    assert log.applied == (second,)
    assert (second, "by magnitude: no layer of fitting size reads them") in log.refused
