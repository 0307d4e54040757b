"""Which kernels compute a model: its regions, the choice for each, and why others were refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.imported import Imported
from effc.kernels import registry
from effc.kernels.float_unit import float_refusal
from effc.kernels.region import DOMAIN, Region
from effc.kernels.template import Choice
from effc.kernels.versions import versions_of
from effc.layers import LayerRecord, record
from effc.options import CompileOptions
from effc.phases import PhaseClock
from effc.regions import Graph, partition
from effc.view_plan import ViewPlan, plan_views

if TYPE_CHECKING:
    import onnx_ir as ir

    from effc.tuning.testbed import AnyTestbed
    from effc.tuning.tuner import Hints

__all__ = ["Selected", "choose_kernels", "layer_records", "regions_of"]

_OTHER_OPERATOR = ("the anchor is not", "is not element-wise", "has an epilogue")
"""Refusals that only say that a kernel is for other operators."""


@dataclass(frozen=True)
class Selected:
    """A model with a choice of kernels for a target.

    Attributes:
        target: What for.
        imported: The model.
        graph, views: Its regions, before and after views are planned.
        ranked: All configurations per distinct region, the chosen one first.
        tuning: What the tuner did.
        options: As given.
    """

    target: Target
    options: CompileOptions
    imported: Imported
    graph: Graph
    views: ViewPlan
    ranked: dict[str, list[Choice]]
    tuning: dict[str, Any]


def choose_kernels(
    imported: Imported,
    target: Target,
    options: CompileOptions,
    clock: PhaseClock,
    hints: Hints | None = None,
    testbed: AnyTestbed | None = None,
) -> Selected:
    """Choose a kernel for every distinct region of a simplified model.

    Args:
        imported: The model.
        target: What for.
        options: How thoroughly to measure, if at all.
        clock: Of the compilation.
        hints: Kernels that are likely to be good, see ``effc.tuning.tuner.tune``.
        testbed: What measures; this machine or an emulator if ``None``.

    Raises:
        UnsupportedError: Operators that no kernel can compute, all of them.
    """
    from effc.tuning.tuner import tune

    with clock.phase("regions"):
        graph, views = _plan_regions(imported.model, target)
    clock.dump.regions(views.regions)
    with clock.phase("tune"):
        ranked, tuning = tune(
            views.regions,
            target,
            mode=options.tune,
            database=options.tuning_db,
            threads=options.threads,
            progress=lambda done, total, detail: clock.report("tune", done, total, detail),
            hints=hints,
            testbed=testbed,
        )
    return Selected(target, options, imported, graph, views, ranked, tuning)


def regions_of(model: ir.Model, target: Target) -> list[Region]:
    """The regions that a simplified model is compiled as.

    Raises:
        UnsupportedError: Operators that no kernel can compute, all of them.
    """
    return list(_plan_regions(model, target)[1].regions)


def _plan_regions(model: ir.Model, target: Target) -> tuple[Graph, ViewPlan]:
    """The regions of a model, before and after views are planned.

    Raises:
        UnsupportedError: Operators that no kernel can compute, all of them.
    """
    from effc.kernels.elementwise import OPS

    graph = partition(model, OPS, lambda region: registry.accepts_fused(region, target))
    views = plan_views(graph.regions, graph.inputs, graph.outputs)
    _require_kernels(views.regions, target)
    return graph, views


def _require_kernels(regions: Sequence[Region], target: Target) -> None:
    """Report every operator that no template can compute, at once."""
    distinct: dict[str, Region] = {}
    for region in regions:
        distinct.setdefault(region.key, region)
    missing: dict[str, str] = {}
    for key, region in distinct.items():
        lacking = float_refusal(region, target)
        if lacking is None and registry.accepts(region, target):
            continue
        op = region.ops[0]
        refusals = registry.refusals(region, target).values() if lacking is None else [lacking]
        why = "; ".join(dict.fromkeys(refusals))
        missing[key] = f"{op.op_type} (node {op.name or '?'}): {why}"
    if missing:
        raise UnsupportedError(
            f"{len(missing)} operator(s) of the model cannot be compiled",
            where=target.name,
            got="\n  " + "\n  ".join(missing.values()),
            hint=_remedy(regions, any("floating-point unit" in why for why in missing.values())),
        )


def _remedy(regions: Sequence[Region], floats: bool) -> str:
    """What to do about operators that cannot be compiled; ``floats``: as they compute in floats."""
    if not floats:
        return "rewrite these nodes, or run them outside of the compiled part of the model"
    if any(op.domain == DOMAIN for region in regions for op in region.ops):
        return (
            "the rest of the model computes in integers: cut these nodes off, and compute them "
            "outside (the largest score is the same before a Softmax)"
        )
    return "quantize the model (--quantize int8 with --calibration)"


def layer_records(selected: Selected, regions: Sequence[Region]) -> tuple[LayerRecord, ...]:
    """What to tell of all regions; those that became views come last.

    Args:
        selected: The choice.
        regions: Those with kernels, in execution order.
    """
    target = selected.target
    layers = []
    for region in regions:
        choice, *others = selected.ranked[region.key]
        versions = versions_of(choice.template, region, target).values()
        layers.append(record(region, choice, others, _refusals(region, target), tuple(versions)))
    kept = {region.name for region in regions}
    dropped = [region for region in selected.graph.regions if region.name not in kept]
    return (*layers, *(record(region, None) for region in dropped))


def _refusals(region: Region, target: Target) -> dict[str, str]:
    """Why kernel families for this kind of operator refused it; the fallback is not asked."""
    *own, _ = registry.templates()
    found = {t.name: t.refuse(region, target) for t in own}
    return {
        name: why
        for name, why in found.items()
        if why is not None
        and not why.startswith("not ")
        and not any(text in why for text in _OTHER_OPERATOR)
    }
