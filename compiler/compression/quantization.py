"""The step of a compression that turns a float model into a quantized one.

The graph is simplified first as for compilation, so that what one kernel computes is one operator
(activations recognized, transposes moved away), and values between kernels are what is quantized.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from effc.compiled import PassRecord
from effc.compression.precision import choose_precisions
from effc.compression.quantizer import Precisions, Quantizer
from effc.passes.origin import restore_names
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
    precisions = Precisions(
        frozenset(name for name in names if asked[name].get("precision") == "float"),
        {name: own["activation_bits"] for name, own in asked.items() if "activation_bits" in own},
    )
    make = partial(
        Quantizer,
        work.exact,
        ranges=recipe.ranges,
        rounding=recipe.rounding,
        progress=work.progress,
    )
    settings: dict[str, Any] = {
        "quantize": recipe.quantize,
        "ranges": recipe.ranges,
        "rounding": recipe.rounding,
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
