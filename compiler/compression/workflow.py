"""From a model and options to a compressed model, step by step.

1. *prepare*: import, and simplify as far as pruning needs it (constants folded, pads explicit,
   BatchNormalization in the weights, dense layers as Gemm).
2. *plan*: which layers get what (``effc.compression.recipe``).
3. *prune*: zeros by magnitude or by Optimal Brain Surgeon, then blocks from masks made elsewhere.
4. *correct*: all layers refitted to the dense model, or means and deviations of their outputs, from
   the calibration samples.
5. *quantize*: QuantizeLinear and DequantizeLinear, integer weights
   (``effc.compression.quantization``).
6. *finish*: an ONNX model with the names and shapes of the original; a free leading dimension stays
   free where the graph allows it.

Each kind of pruning is one function in ``STEPS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from effc.compiled import PassRecord
from effc.compression.channels import prune_channels_step
from effc.compression.corrections import correct_step, refit_step
from effc.compression.goal import Goal
from effc.compression.options import CompressOptions
from effc.compression.quantization import quantize_step
from effc.compression.recipe import LayerPlan, Recipe, plan_layers, read_recipe
from effc.compression.store import TraceStore, digest_of
from effc.compression.surgery import prune_layers, trace_layers, unfit_for_surgeon
from effc.errors import UsageError
from effc.frontend import import_model
from effc.frontend.load import load_proto
from effc.options import ProgressCallback
from effc.passes.base import PassResult
from effc.passes.graph import shape_of
from effc.passes.origin import restore_names
from effc.passes.pruning.batching import SampleRunner, free_batch
from effc.passes.pruning.layers import Layer, find_layers
from effc.passes.pruning.prune_weights import Pruned, PruneWeights, Setting, magnitude, misfit
from effc.passes.pruning.regroup_masks import RegroupMasks
from effc.passes.pruning.scheme import Kind, parse_block
from effc.passes.registry import simplify
from effc.samples import Arrays, Tensor, generate, load_samples

if TYPE_CHECKING:
    from effc.compression.levels import LevelPlan

__all__ = ["PREPARE", "STEPS", "Compressed", "LayerResult", "Work", "compress_model"]

PREPARE = (
    "fold_constants",
    "remove_no_ops",
    "make_pads_explicit",
    "fold_batch_norm",
    "fold_scale",
    "merge_pad",
    "canonicalize_gemm",
    "remove_dead_code",
)
"""Passes before pruning: what puts weights into the form in which they are pruned."""


@dataclass(frozen=True)
class LayerResult:
    """What became of one layer with weights.

    Attributes:
        name: Node name.
        op: ``Conv``, ``Gemm`` or ``MatMul``.
        weights: Number of weights.
        sparsity: Fraction of zeros in the result.
        scheme, block, method: How it was pruned; empty if it was not.
        loss: Relative error by the measure of the method, see docs/COMPRESSION.md.
        why: Why it was not pruned.
        channels: Output channels left of those it had, ``"16 of 32"``; empty if all are.
        precision: ``int8`` or ``float`` in a quantized model, else empty.
    """

    name: str
    op: str
    weights: int
    sparsity: float
    scheme: str = ""
    block: str = ""
    method: str = ""
    loss: float | None = None
    why: str = ""
    channels: str = ""
    precision: str = ""


@dataclass(frozen=True)
class Compressed:
    """A compressed model and what was done to it.

    Attributes:
        model: Plain ONNX.
        layers: All layers with weights, in order.
        passes: Records for the manifest, with settings.
        notes: What the user should know.
        levels: How sparsities were chosen from measured times, if they were.
    """

    model: onnx.ModelProto
    layers: tuple[LayerResult, ...]
    passes: tuple[PassRecord, ...]
    notes: tuple[str, ...] = ()
    levels: LevelPlan | None = None


@dataclass
class Work:
    """The state between steps.

    Attributes:
        model: The graph that steps change.
        dense: The graph as it was before pruning.
        recipe: All settings.
        options: As given.
        samples: Calibration samples, none without data.
        progress: To report to.
        pruned: What became of layers, by name.
        methods: How layers were pruned, by name.
        refused: Why layers were not pruned, by name.
        passes: Records of what was done.
        kept: By layer, which output channels of the dense model are left; empty for all.
        refitted: Layers that were fitted to the dense model, which leaves nothing to correct.
        exact: The float model that was quantized, if one was.
        precisions: Of layers, by name.
    """

    model: ir.Model
    dense: ir.Model
    recipe: Recipe
    options: CompressOptions
    samples: Sequence[Arrays]
    progress: ProgressCallback | None
    pruned: dict[str, Pruned] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    passes: list[PassRecord] = field(default_factory=list)
    kept: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    refitted: set[str] = field(default_factory=set)
    exact: ir.Model | None = None
    precisions: dict[str, str] = field(default_factory=dict)

    def report(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Tell the user where things are."""
        if self.progress is not None:
            self.progress(phase, done, total, detail)


Step = Callable[[Work, Sequence[LayerPlan]], None]


def compress_model(
    source: str | Path | onnx.ModelProto,
    options: CompressOptions,
    progress: ProgressCallback | None = None,
) -> Compressed:
    """Compress a model.

    Args:
        source: ONNX file or model.
        options: What to do.
        progress: Called in the phases ``import``, ``calibrate``, ``prune``, ``refit``, ``correct``,
            ``quantize``.

    Raises:
        UsageError: Options or recipe do not fit the model.
        ModelError: The model or the calibration data is invalid.
    """
    options.require_active()
    recipe = read_recipe(options)
    if progress is not None:
        progress("import", 0, 1)
    proto, _ = load_proto(source)
    free = _free_names(proto)
    shapes = _with_batch_of_one(proto, options)
    constants = {name: np.asarray(value) for name, value in options.constants.items()}
    model = simplify(import_model(source, shapes=shapes, constants=constants), PREPARE)[0]
    restore_names(model.graph)
    work = Work(model, model.clone(), recipe, options, _samples(model, options, recipe), progress)
    work.report("import", 1, 1)
    layers, unfit = find_layers(model)
    plans = plan_layers(recipe, layers)
    levels = None
    if recipe.goal is not None:
        plans, levels = _choose_levels(work, plans, recipe.goal)
    if recipe.prunes:
        work.refused |= {plan.layer.name: plan.why for plan in plans if plan.setting is None}
    _prune(work, plans)
    _regroup(work)
    refit_step(work)
    correct_step(work)
    notes = [] if levels is None else levels.notes()
    results = _results(work, plans, unfit)
    quantize_step(work)
    results = tuple(replace(r, precision=work.precisions.get(r.name, "")) for r in results)
    result = _finish(work, free, notes)
    return Compressed(result, results, tuple(work.passes), tuple(notes), levels)


def _choose_levels(
    work: Work, plans: Sequence[LayerPlan], goal: Goal
) -> tuple[list[LayerPlan], LevelPlan]:
    """Sparsities from measured times, where layers have none of their own."""
    from effc.compression.speed import plan_levels

    store = None
    if work.samples:
        store = TraceStore(work.options.work, digest_of(work.dense, work.samples))
    plans, levels = plan_levels(
        work.dense,
        plans,
        goal,
        work.options.timing,
        work.samples,
        store,
        work.recipe.correct,
        work.progress,
    )
    record = levels.record
    work.passes.append(
        PassRecord(
            "choose_levels",
            tuple(
                f"{row['name']}: {row['sparsity']:.1%}, {row['dense_seconds'] * 1e6:.4g} us dense, "
                f"{row['seconds'] * 1e6:.4g} us with {row['kernel']}"
                for row in record["layers"]
            ),
            settings={**record["goal"], "errors": record["errors"]["method"]},
        )
    )
    return plans, levels


def _free_names(proto: onnx.ModelProto) -> str | None:
    """Name of the inputs' leading dimension if it is free."""
    weights = {t.name for t in proto.graph.initializer}
    inputs = [v for v in proto.graph.input if v.name not in weights]
    dims = [v.type.tensor_type.shape.dim for v in inputs]
    if not dims or any(not d or d[0].HasField("dim_value") for d in dims):
        return None
    return dims[0][0].dim_param or "N"


def _with_batch_of_one(
    proto: onnx.ModelProto, options: CompressOptions
) -> dict[str, tuple[int, ...]]:
    """Shapes for import: where only the leading dimension is free, it becomes 1."""
    bound = {t.name for t in proto.graph.initializer} | set(options.constants)
    result = dict(options.shapes)
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in result or value.name in bound or not dims:
            continue
        if not dims[0].HasField("dim_value") and all(d.HasField("dim_value") for d in dims[1:]):
            result[value.name] = (1, *(d.dim_value for d in dims[1:]))
    return result


def _samples(model: ir.Model, options: CompressOptions, recipe: Recipe) -> Sequence[Arrays]:
    if options.calibration is None:
        return ()
    inputs = _tensors(model)
    return load_samples(options.calibration, inputs).samples[: recipe.samples]


def _tensors(model: ir.Model) -> list[Tensor]:
    return [
        Tensor(v.name or "", v.dtype.numpy().name, shape_of(v))
        for v in model.graph.inputs
        if v.dtype is not None
    ]


def _prune(work: Work, plans: Sequence[LayerPlan]) -> None:
    """Each layer by the step for its kind of scheme."""
    by_kind: dict[Kind, list[LayerPlan]] = {}
    for plan in plans:
        if plan.setting is not None:
            by_kind.setdefault(plan.setting.scheme.kind, []).append(plan)
    for kind in by_kind:
        if kind not in STEPS:
            raise UsageError(
                "this scheme cannot be applied here", where=kind, expected=", ".join(STEPS)
            )
    for step in dict.fromkeys(STEPS.values()):
        own = [p for kind, chosen in by_kind.items() if STEPS[kind] is step for p in chosen]
        if own:
            step(work, own)


def prune_weights_step(work: Work, plans: Sequence[LayerPlan]) -> None:
    """Zeros in weights, by magnitude or by Optimal Brain Surgeon."""
    settings = {p.layer.name: p.setting for p in plans if p.setting is not None}
    methods = {p.layer.name: p.method for p in plans}
    surgeon = _surgeon(work, [p for p in plans if p.method == "obs"])
    for name in [n for n in settings if n in work.refused]:
        del settings[name]

    def pruner(layer: Layer, setting: Setting) -> Pruned:
        return surgeon[layer.name] if layer.name in surgeon else magnitude(layer, setting)

    task = PruneWeights(settings, pruner)
    result = task.run(work.model)
    work.pruned |= task.results
    work.methods |= {name: methods[name] for name in task.results}
    work.refused |= dict(result.refused)
    details = {
        name: f"{pruned.sparsity:.1%} zeros, {settings[name].scheme}, {methods[name]}, "
        f"loss {pruned.loss:.3g}"
        for name, pruned in task.results.items()
    }
    work.passes.append(_record(task.name, result, details, _settings(work)))


def _surgeon(work: Work, plans: Sequence[LayerPlan]) -> dict[str, Pruned]:
    """Weights by Optimal Brain Surgeon; notes in ``work.refused`` what is too large for it."""
    wanted: list[tuple[Layer, Setting]] = []
    for plan in plans:
        assert plan.setting is not None
        if not work.samples:
            raise UsageError(
                "calibration data is needed",
                where=f"method obs ({plan.layer.name})",
                expected="--calibration X.npz with samples of real inputs",
            )
        if misfit(plan.layer, plan.setting) is not None:
            continue  # the pass says so
        why = unfit_for_surgeon(plan.layer)
        if why is None:
            wanted.append((plan.layer, plan.setting))
        else:
            work.refused[plan.layer.name] = why
    if not wanted:
        return {}
    runner = SampleRunner(work.dense, work.samples)
    store = TraceStore(work.options.work, digest_of(work.dense, work.samples))
    traces = trace_layers(runner, wanted, store, work.progress)
    store.trim()
    return prune_layers(runner, wanted, traces, work.progress)


STEPS: dict[Kind, Step] = {
    "block-punched": prune_weights_step,
    "n:m": prune_weights_step,
    "pattern": prune_weights_step,
    "channel": prune_channels_step,
}
"""What applies each kind of scheme, in the order of steps; kinds with the same step are handed over
together."""


def _regroup(work: Work) -> None:
    if work.recipe.regroup is None:
        return
    task = RegroupMasks(parse_block(work.recipe.regroup), skip=work.pruned.keys())
    result = task.run(work.model)
    details = {
        name: f"{found.sparsity:.1%} zeros, lost {found.loss:.2%} of its energy"
        for name, found in task.results.items()
    }
    work.pruned |= task.results
    work.methods |= dict.fromkeys(task.results, "regroup")
    work.refused |= dict(result.refused)
    work.passes.append(_record(task.name, result, details, {"block": work.recipe.regroup}))


def _record(
    name: str, result: PassResult, details: Mapping[str, str], settings: Mapping[str, Any]
) -> PassRecord:
    applied = tuple(f"{n}: {details[n]}" if n in details else n for n in result.applied)
    refused = tuple(f"{where}: {why}" for where, why in result.refused)
    return PassRecord(name, applied, refused, dict(settings))


def _settings(work: Work) -> dict[str, Any]:
    settings = dict(work.recipe.settings)
    if work.recipe.overrides:
        settings["layer"] = [dict(entry) for entry in work.recipe.overrides]
    return settings | {"calibration_samples": len(work.samples)}


def _finish(work: Work, free: str | None, notes: list[str]) -> onnx.ModelProto:
    """Plain ONNX; the leading dimension as free as it was."""
    model = work.model
    result = None
    if free is not None:
        samples = work.samples[:2]
        if len(samples) < 2:
            samples = [generate(_tensors(model), seed=seed) for seed in (0, 1)]
        result = free_batch(model, samples, free, like=work.exact)
        if result is None:
            notes.append(
                f"the free dimension '{free}' of the inputs became 1: the graph depends on it"
            )
    result = ir.to_proto(model) if result is None else result
    result.producer_name = "effc"
    onnx.checker.check_model(result)
    return result


def _results(
    work: Work, plans: Sequence[LayerPlan], unfit: Sequence[tuple[str, str]]
) -> tuple[LayerResult, ...]:
    planned = {plan.layer.name: plan.setting for plan in plans}
    results = []
    for layer in find_layers(work.model)[0]:
        weight = layer.weight()
        setting, pruned = planned.get(layer.name), work.pruned.get(layer.name)
        block, scheme = "", ""
        if pruned is not None and work.methods[layer.name] == "regroup":
            scheme, block = "block-punched", work.recipe.regroup or ""
        elif pruned is not None and setting is not None:
            scheme, block = setting.scheme.name, "x".join(map(str, setting.scheme.block))
            block = "" if scheme == "channel" else block
        kept = work.kept.get(layer.name)
        results.append(
            LayerResult(
                layer.name,
                layer.node.op_type,
                weight.size,
                1 - np.count_nonzero(weight) / max(weight.size, 1),
                scheme,
                block,
                work.methods.get(layer.name, ""),
                None if pruned is None else pruned.loss,
                "" if pruned is not None else work.refused.get(layer.name, ""),
                "" if kept is None or kept.all() else f"{kept.sum()} of {len(kept)}",
            )
        )
    results += [LayerResult(name, "", 0, 0.0, why=why) for name, why in unfit]
    return tuple(results)
