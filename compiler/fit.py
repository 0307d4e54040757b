"""Making a model fit the RAM of a microcontroller: its first stages in strips of rows.

Where the plan of a model is larger than its limit, cuts and heights of strips
(``effc.passes.patches``) are ranked by the work that they add, as far as an estimate says that
they fit; the first one whose real plan fits is taken. Each try is a whole plan with
kernels, so there are few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from effc.passes.graph import shape_of
from effc.passes.patches import find_cuts, plan_strips, rest_peak, split

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["StripChoice", "fit_in_strips", "in_strips", "strip_choices"]

_TRIES = 8
_MOST_STRIPS = 16

Result = TypeVar("Result")


@dataclass(frozen=True)
class StripChoice:
    """A way to compute the first stages in strips.

    Attributes:
        cut: Number of the cut among ``find_cuts``.
        tensor: Its name.
        height: Rows of a strip.
        count: Number of strips.
        extra: Multiply-accumulates that are added.
        estimate: Bytes of the arena, about.
    """

    cut: int
    tensor: str
    height: int
    count: int
    extra: int
    estimate: int

    def __str__(self) -> str:
        return (
            f"{self.tensor}: {self.count} strips of {self.height} rows, "
            f"{self.extra} multiply-accumulates more"
        )


def strip_choices(model: ir.Model) -> list[StripChoice]:
    """Every cut with every useful height of strips, least work first."""
    found = []
    for number, cut in enumerate(find_cuts(model.graph)):
        rows = shape_of(cut.value)[2]
        behind = rest_peak(model.graph, cut)
        for height in sorted({-(-rows // n) for n in range(2, min(rows, _MOST_STRIPS) + 1)}):
            strips = plan_strips(cut, height)
            if not isinstance(strips, str):
                estimate = max(strips.peak, behind)
                name = cut.value.name or ""
                found.append(
                    StripChoice(number, name, height, len(strips.rows), strips.extra, estimate)
                )
    return sorted(found, key=lambda c: (c.extra, c.estimate, c.cut))


def in_strips(model: ir.Model, choice: StripChoice) -> ir.Model:
    """A copy of a model with its first stages in strips."""
    import onnx_ir as ir

    copy: ir.Model = ir.from_proto(ir.to_proto(model))
    strips = plan_strips(find_cuts(copy.graph)[choice.cut], choice.height)
    assert not isinstance(strips, str)
    split(copy, strips)
    return copy


def fit_in_strips(
    model: ir.Model, limit: int, plan: Callable[[ir.Model, StripChoice], tuple[Result, int]]
) -> tuple[Result | None, StripChoice | None]:
    """Look for strips with which a model fits.

    Args:
        model: Simplified.
        limit: Bytes of the arena.
        plan: Plans a model in strips; returns whatever the caller wants, and bytes of the arena.

    Returns:
        What ``plan`` returned for the first that fits and its choice; if none does, ``None`` and
        the choice with the smallest estimate, ``None`` if there are no cuts.
    """
    choices = strip_choices(model)
    left = [choice for choice in choices if choice.estimate <= limit]
    smallest: dict[int, int] = {}  # arena by cut
    for _ in range(_TRIES):
        if not left:
            break
        choice = left[0]
        result, nbytes = plan(in_strips(model, choice), choice)
        if nbytes <= limit:
            return result, choice
        # Lower strips help until something else than the strips is the largest step.
        useless = nbytes >= smallest.get(choice.cut, nbytes + 1)
        smallest[choice.cut] = nbytes
        left = [
            other
            for other in left[1:]
            if other.cut != choice.cut or (other.estimate < choice.estimate and not useless)
        ]
    return None, min(choices, key=lambda c: c.estimate, default=None)
