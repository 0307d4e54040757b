"""The step of a compression that turns a float model into a quantized one.

The graph is simplified first as for compilation, so that what one kernel computes is one operator
(activations recognized, transposes moved away), and values between kernels are what is quantized.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from effc.compiled import PassRecord
from effc.compression.precision import choose_precisions
from effc.compression.quantizer import Precisions, Quantizer
from effc.devices.catalog import get_target
from effc.passes.origin import restore_names
from effc.passes.pruning.batching import SampleRunner
from effc.passes.pruning.layers import find_layers
from effc.passes.quantization.equalize_channels import (
    EqualizeChannels,
    channel_ranges,
    find_pairs,
)
from effc.passes.quantization.fit_weights import Form, fit_weights, round_alone
from effc.passes.quantization.insert_grouped_weights import InsertGroupedWeights
from effc.passes.registry import simplify

if TYPE_CHECKING:
    from effc.compression.workflow import Work

__all__ = ["quantize_step"]


def quantize_step(work: Work) -> None:
    """Quantize the model of ``work``, if that is asked for."""
    recipe = work.recipe
    if recipe.quantize is None:
        return
    simplified = simplify(work.model)[0]
    restore_names(simplified.graph)
    work.exact = simplified.clone()
    names = [node.name or "" for node in work.exact.graph]
    asked = {name: recipe.of_layer(name) for name in names}
    in_float = frozenset(name for name in names if asked[name].get("precision", "int8") != "int8")
    if recipe.quantize != "int8":
        _quantize_weights(work, in_float)
        return
    wide = {n: own["activation_bits"] for n, own in asked.items() if "activation_bits" in own}
    # Without a floating-point unit a Softmax that makes an output is better rough than not at all.
    floats = get_target(work.options.timing.target).float_unit
    precisions = Precisions(in_float, wide, frozenset() if floats else frozenset(names))
    if recipe.equalize:
        _equalize(work)
    make = partial(
        Quantizer,
        work.exact,
        ranges=recipe.ranges,
        rounding=recipe.rounding,
        refine=recipe.refine,
        progress=work.progress,
    )
    settings: dict[str, Any] = {
        "quantize": recipe.quantize,
        "ranges": recipe.ranges,
        "rounding": recipe.rounding,
        "equalize": recipe.equalize,
        "refine": recipe.refine,
        "calibration_samples": len(work.samples),
    }
    if recipe.max_drop is None:
        found = make(work.samples).quantize(precisions)
    else:
        choice = choose_precisions(
            make, work.samples, precisions, recipe.max_drop, recipe.widen, work.progress
        )
        found = choice.quantized
        settings |= choice.record()
    applied = tuple(f"{name}: error {layer.error:.3g}" for name, layer in found.fitted.items())
    refused = tuple(f"{where}: {why}" for where, why in found.points.refused)
    work.passes.append(PassRecord("quantize", applied, refused, settings))
    work.model = found.model
    work.precisions |= dict.fromkeys(names, "float")
    for unit in found.points.units:
        bits = max(found.points.group_of(name).bits for name in (*unit.reads, *unit.results))
        work.precisions[unit.node.name or ""] = "int8" if bits == 8 else f"int8, values int{bits}"


def _equalize(work: Work) -> None:
    """Even out channels of the float model; it computes the same."""
    assert work.exact is not None
    pairs = find_pairs(work.exact)
    task = EqualizeChannels(channel_ranges(SampleRunner(work.exact, work.samples), pairs))
    result = task.run(work.exact)
    # Scaled values are none of the user's model: under its names they would be taken for such.
    for pair in (p for p in pairs if p.first.name in result.applied):
        value = pair.first.node.outputs[0]
        while value.name != pair.between:
            value.name = f"{value.name}/evened"
            value = next(iter(value.uses())).node.outputs[0]
        value.name = f"{value.name}/evened"
    refused = tuple(f"{where}: {why}" for where, why in result.refused)
    work.passes.append(PassRecord(task.name, result.applied, refused))


_FORMS = {"int8-weights": Form(8), "int4-weights": Form(4, group=32)}


def _quantize_weights(work: Work, in_float: Collection[str]) -> None:
    """Integer weights of float layers; with samples, fitted to the float network."""
    recipe, exact = work.recipe, work.exact
    assert recipe.quantize is not None
    assert exact is not None
    form = replace(_FORMS[recipe.quantize], rounding=recipe.rounding)
    if recipe.group is not None:
        form = replace(form, group=recipe.group)
    model = exact.clone()
    layers = [layer for layer in find_layers(model)[0] if layer.name not in in_float]
    fitted = {}
    if work.samples:
        names = {layer.name for layer in layers}
        tick = partial(work.report, "quantize")
        fitted = fit_weights(model, exact, work.samples, names, form, tick=tick)
    for layer in layers:
        if layer.name not in fitted:
            fitted[layer.name] = round_alone(layer, form)
    InsertGroupedWeights(fitted, form).run(model)
    applied = tuple(f"{name}: error {layer.error:.3g}" for name, layer in fitted.items())
    settings = {
        "quantize": recipe.quantize,
        "group": form.group,
        "rounding": form.rounding,
        "calibration_samples": len(work.samples),
    }
    work.passes.append(PassRecord("quantize_weights", applied, (), settings))
    work.model = model
    work.precisions |= {layer.name: "float" for layer in find_layers(exact)[0]}
    work.precisions |= dict.fromkeys(fitted, recipe.quantize)
