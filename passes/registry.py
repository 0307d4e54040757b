"""All simplification passes by name, and the pipeline that applies them to a fixpoint."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from effc.passes.base import Pass, PassReport
from effc.passes.canonicalize_gemm import CanonicalizeGemm
from effc.passes.expand_operators import ExpandOperators
from effc.passes.expand_quantized import ExpandQuantized
from effc.passes.fold_batch_norm import FoldBatchNorm
from effc.passes.fold_constants import FoldConstants
from effc.passes.fold_scale import FoldScale
from effc.passes.fuse_layer_norm import FuseLayerNorm
from effc.passes.make_pads_explicit import MakePadsExplicit
from effc.passes.merge_common_subexpressions import MergeCommonSubexpressions
from effc.passes.merge_pad import MergePad
from effc.passes.pruning.remove_dead_channels import RemoveDeadChannels
from effc.passes.recognize_activations import RecognizeActivations
from effc.passes.remove_dead_code import RemoveDeadCode
from effc.passes.remove_no_ops import RemoveNoOps
from effc.passes.sink_transposes import SinkTransposes
from effc.passes.use_global_pooling import UseGlobalPooling
from effc.passes.use_slices import UseSlices

__all__ = ["PASSES", "SIMPLIFY", "simplify"]

PASSES: dict[str, Pass] = {
    p.name: p
    for p in (
        FoldConstants(),
        ExpandOperators(),
        ExpandQuantized(),
        RemoveNoOps(),
        MakePadsExplicit(),
        FoldBatchNorm(),
        FoldScale(),
        MergePad(),
        SinkTransposes(),
        UseSlices(),
        CanonicalizeGemm(),
        UseGlobalPooling(),
        FuseLayerNorm(),
        RecognizeActivations(),
        RemoveDeadChannels(),
        MergeCommonSubexpressions(),
        RemoveDeadCode(),
    )
}
"""Every pass by its name."""

SIMPLIFY: tuple[str, ...] = tuple(PASSES)
"""Names of the default pipeline, in order."""

ROUND_LIMIT = 12


def simplify(model: ir.Model, names: Sequence[str] = SIMPLIFY) -> tuple[ir.Model, list[PassReport]]:
    """Run passes in order, again and again until none changes anything.

    Args:
        model: As ``import_model`` gives it; changed in place.
        names: Passes to run.

    Returns:
        The model, and one report per pass with all it did.
    """
    reports = {name: PassReport(name) for name in names}
    for _ in range(ROUND_LIMIT):
        modified = False
        for name in names:
            result = PASSES[name].run(model)
            reports[name].applied += result.applied
            reports[name].refused = list(result.refused)
            modified |= result.modified
        if not modified:
            break
    return model, list(reports.values())
