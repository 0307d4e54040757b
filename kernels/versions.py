"""Which versions of a kernel's functions a library holds.

A target's variants (``effc.devices.target``) are processors with more features. A function
has a version of its own for a variant if the template says that one of the added features
changes its code; otherwise the variant runs the version of a less demanding one. All versions of a
function take the same arguments, so they share weights, arena and the split of work.
"""

from __future__ import annotations

import numpy as np

from effc.devices.target import BASE, Target
from effc.errors import InternalError
from effc.kernels.region import Region
from effc.kernels.template import Kernel, Template

__all__ = ["ranked_target", "require_same", "versions_of"]


def ranked_target(template: Template, region: Region, target: Target) -> Target:
    """The target as configurations of a region are ranked and measured for it.

    That is the version that most devices run, where the template's code depends on it.
    """
    if target.common != BASE and versions_of(template, region, target)[target.common] != BASE:
        return target.version(target.common)
    return target


def versions_of(template: Template, region: Region, target: Target) -> dict[str, str]:
    """The version that each variant runs, by variant name; ``base`` runs itself.

    A variant named by itself has code of its own.
    """
    used = template.features(region) if target.variants else frozenset()
    added: dict[str, frozenset[str]] = {BASE: frozenset()}
    runs = {BASE: BASE}
    for variant in reversed(target.variants):  # the least demanding first
        mine = frozenset(f[1:] for f in variant.features if not target.has(f[1:]))
        same = [n for n, less in added.items() if less <= mine and less & used == mine & used]
        runs[variant.name] = runs[same[0]] if same else variant.name
        added[variant.name] = mine
    return runs


def require_same(base: Kernel, other: Kernel, where: str) -> None:
    """Check that two versions of a kernel can stand for each other; scratch may differ.

    Args:
        base, other: Built for a target's base and for one of its variants.
        where: Region and variant, for the error.

    Raises:
        InternalError: They differ in more than code.
    """

    def interface(kernel: Kernel) -> dict[str, object]:
        return {
            "stages": [(s.args, s.extent, s.bounds) for s in kernel.stages],
            "weights": {n: (w.dtype.str, w.shape) for n, w in kernel.weights.items()},
            "workspaces": kernel.workspaces,
            "inplace": kernel.inplace,
            "overlaps": kernel.overlaps,
        }

    first, second = interface(base), interface(other)
    different = [key for key in first if first[key] != second[key]] or [
        f"weights {name}"
        for name, array in base.weights.items()
        if not np.array_equal(_bytes(array), _bytes(other.weights[name]))
    ]
    if different:
        raise InternalError(
            "versions of a kernel differ in more than code",
            where=where,
            got=", ".join(different),
            hint="features that change layouts do not belong into Template.features",
        )


def _bytes(array: np.ndarray) -> np.ndarray:
    """The array's bytes: equal NaNs are equal, and so are no two zeros of other signs."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
