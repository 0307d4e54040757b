"""The step of a compression that removes whole channels.

By magnitude or by Optimal Brain Surgeon; what makes up for them comes later
(``effc.compression.corrections``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from effc.compiled import PassRecord
from effc.compression.store import ArrayStore, Slot, digest_of
from effc.errors import UsageError
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.channel_surgeon import ChannelSurgeon
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.prune_channels import Chooser, PruneChannels, by_magnitude
from effc.passes.pruning.prune_weights import Pruned

if TYPE_CHECKING:
    from effc.compression.recipe import LayerPlan
    from effc.compression.workflow import Work

__all__ = ["prune_channels_step"]


def prune_channels_step(work: Work, plans: Sequence[LayerPlan]) -> None:
    """Remove channels from the graph of ``work``.

    Raises:
        UsageError: Layers are asked to use different methods, or there is no calibration data.
    """
    method = _method(work, plans)
    settings = {p.layer.name: p.setting for p in plans if p.setting is not None}
    chooser: Chooser = by_magnitude
    store = None
    if method == "obs":
        runner = SampleRunner(work.model, work.samples)
        store = ArrayStore(work.options.work, digest_of(work.model, work.samples))
        chooser = ChannelSurgeon(runner, partial(work.report, "prune"), partial(Slot, store))
    task = PruneChannels(settings, chooser)
    result = task.run(work.model)
    if store is not None:
        store.trim()
    work.kept |= task.kept
    layers = {layer.name: layer for layer in find_layers(work.model)[0]}
    for name in result.applied:
        work.pruned[name] = Pruned(layers[name].weight(), task.losses[name])
        work.methods[name] = method
    work.refused |= {name: why for name, why in result.refused if name in settings}
    applied = tuple(
        f"{name}: {int(task.kept[name].sum())} of {len(task.kept[name])} channels kept, "
        f"{method}, loss {work.pruned[name].loss:.3g}"
        for name in result.applied
    )
    refused = tuple(f"{name}: {why}" for name, why in result.refused)
    record = {"sparsity": work.recipe.settings.get("sparsity"), "method": method}
    work.passes.append(PassRecord(task.name, applied, refused, record))


def _method(work: Work, plans: Sequence[LayerPlan]) -> str:
    methods = sorted({plan.method for plan in plans})
    if len(methods) > 1:
        raise UsageError(
            "channels of layers are coupled, so that all need the same method",
            where="recipe: method",
            got=" and ".join(methods),
        )
    if methods == ["obs"] and not work.samples:
        raise UsageError(
            "calibration data is needed",
            where="method obs (channel)",
            expected="--calibration X.npz with samples of real inputs",
        )
    return methods[0]
