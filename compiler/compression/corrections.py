"""The steps of a compression that make up for what zeros and removed channels cost.

Either all layers are fitted to the dense model, which makes up for means and deviations as well, or
these alone are matched. What is too large to be fitted is matched.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from effc.compiled import PassRecord
from effc.passes.pruning.correct_statistics import CorrectStatistics
from effc.passes.pruning.layers import find_layers
from effc.passes.pruning.refit_layers import refit_layers

if TYPE_CHECKING:
    from effc.compression.workflow import Work

__all__ = ["correct_step", "refit_step"]


def refit_step(work: Work) -> None:
    """Fit all layers of ``work`` to the dense model, if that is asked for."""
    if work.recipe.correct != "refit" or not work.samples or not work.pruned:
        return
    whole = {layer.name: np.ones(layer.shape[0], bool) for layer in find_layers(work.model)[0]}
    errors = refit_layers(
        work.model,
        work.dense,
        work.samples,
        whole | work.kept,
        zeros={name for name, pruned in work.pruned.items() if pruned.sparsity},
        tick=partial(work.report, "refit"),
    )
    work.refitted |= errors.keys()
    for name in errors.keys() & work.kept.keys() & work.pruned.keys():
        work.pruned[name] = replace(work.pruned[name], loss=errors[name])
    applied = tuple(f"{name}: error {error:.3g}" for name, error in errors.items())
    settings = {"calibration_samples": len(work.samples)}
    work.passes.append(PassRecord("refit_layers", applied, (), settings))


def correct_step(work: Work) -> None:
    """Match statistics of the layers of ``work`` that were not fitted, if that is asked for."""
    if work.recipe.correct == "none" or not work.samples or not work.pruned:
        return
    task = CorrectStatistics(
        work.dense,
        work.samples,
        kept=work.kept,
        skip=work.refitted,
        bias_only=work.recipe.correct == "bias",
        tick=partial(work.report, "correct"),
    )
    result = task.run(work.model)
    refused = tuple(f"{where}: {why}" for where, why in result.refused)
    if not result.applied and not refused:
        return
    settings = {"match": "bias" if task.bias_only else "statistics", "samples": len(task.samples)}
    work.passes.append(PassRecord(task.name, result.applied, refused, settings))
