"""Which operators stay in float, or get 16-bit values, so that little is lost.

What is measured needs no labels: on the last quarter of the calibration samples, which then
calibrate nothing, the share in per cent of samples whose top-1 differs from the float model's. For
networks whose only output is no row of scores it is the squared error of the outputs in per cent of
their energy. Points of accuracy are lost at most as many as top-1 differ, usually far fewer.

1. Everything is quantized. If that loses no more than asked for, it is the result.
2. *Blame.* Each operator alone is quantized, all else is float; the squared error of the outputs on
   a few samples is its blame.
3. The most blamed operators are widened, as few as suffice: their number is doubled until they do,
   then found by bisection, with weights as fitted in 1.
4. Weights are fitted anew to the network that results, and it is measured again; where it misses
   the goal, more operators are widened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.compression.quantizer import Precisions, Quantized, Quantizer
from effc.errors import UsageError
from effc.options import ProgressCallback
from effc.passes.pruning.batching import SampleRunner
from effc.passes.quantization.points import find_points
from effc.samples import Arrays

__all__ = ["Choice", "choose_precisions", "fewest", "loss_of"]

Array = np.ndarray[Any, Any]

_FEWEST_SAMPLES = 8

_BLAMED = 32
"""Samples that blame is found with."""


@dataclass(frozen=True)
class Choice:
    """A quantized network that loses little.

    Attributes:
        quantized: The network.
        widened: Operators that are not 8 bits wide, the most blamed first.
        loss: What it loses on samples that calibrated nothing, see :func:`loss_of`.
        loss_of_all: The same with all operators quantized to 8 bits.
        samples: How many samples losses are of.
        widen: What widened operators have: ``float`` or ``int16``.
    """

    quantized: Quantized
    widened: tuple[str, ...]
    loss: float
    loss_of_all: float
    samples: int
    widen: str

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "widened": list(self.widened),
            "widen": self.widen,
            "loss_percent": round(self.loss, 4),
            "loss_percent_int8": round(self.loss_of_all, 4),
            "loss_samples": self.samples,
        }


def choose_precisions(
    make: Callable[[Sequence[Arrays]], Quantizer],
    samples: Sequence[Arrays],
    base: Precisions,
    most: float,
    widen: str = "float",
    progress: ProgressCallback | None = None,
) -> Choice:
    """The network with the fewest wide operators that loses no more than allowed.

    Args:
        make: Quantizer that calibrates with given samples.
        samples: Of which the last quarter judges.
        base: What is not 8 bits wide in any case.
        most: Allowed loss in per cent.
        widen: ``float``, or ``int16`` for values around an operator.
        progress: Called in the phase ``precision``.

    Raises:
        UsageError: There are too few samples, or 16-bit values do not suffice.
    """
    judging = len(samples) // 4
    if judging < _FEWEST_SAMPLES:
        raise UsageError(
            "too few samples to judge by",
            where="--max-drop",
            expected=f"at least {4 * _FEWEST_SAMPLES} calibration samples",
            got=len(samples),
        )
    quantizer = make(samples[:-judging])
    judge = _Judge(quantizer.exact, samples[-judging:])
    first = quantizer.quantize(base)
    loss_of_all = loss = judge.loss(first.model)
    result, count, order = first, 0, []
    if loss > most:
        order = _blamed(quantizer, judge, base, first, progress)

    def with_widened(number: int) -> Precisions:
        return _widened(base, order[:number], widen)

    def suffices(number: int) -> bool:
        if progress is not None:
            progress("precision", number, len(order), "")
        tried = quantizer.quantize(with_widened(number), first.fitted)
        return judge.loss(tried.model) <= most

    while loss > most:
        if count == len(order):
            raise UsageError(
                "this loss cannot be met",
                where="--max-drop",
                expected=f"{most:g}",
                got=f"{loss:g} with all operators widened to {widen}",
            )
        count = fewest(suffices, count + 1, len(order))
        result = quantizer.quantize(with_widened(count))
        loss = judge.loss(result.model)
    return Choice(result, tuple(order[:count]), loss, loss_of_all, judging, widen)


def fewest(suffices: Callable[[int], bool], low: int, high: int) -> int:
    """The least number from ``low`` on that suffices, if larger ones do as well; or ``high``."""
    tried, step = low, 1
    below = low - 1
    while tried < high and not suffices(tried):
        below = tried
        tried, step = min(tried + step, high), 2 * step
    while tried - below > 1:
        middle = (below + tried) // 2
        if suffices(middle):
            tried = middle
        else:
            below = middle
    return tried


def _widened(base: Precisions, names: Sequence[str], widen: str) -> Precisions:
    if widen == "float":
        return replace(base, float=base.float | set(names))
    return replace(base, bits={**base.bits, **dict.fromkeys(names, 16)})


def _blamed(
    quantizer: Quantizer,
    judge: _Judge,
    base: Precisions,
    first: Quantized,
    progress: ProgressCallback | None,
) -> list[str]:
    """Quantized operators, those that alone do most harm first."""
    names = {node.name or "" for node in quantizer.exact.graph}
    units = [unit.node.name or "" for unit in first.points.units]
    blame: dict[str, float] = {}
    for index, name in enumerate(units):
        alone = replace(base, float=frozenset(names - {name}))
        if find_points(quantizer.exact, alone.float, integer=alone.integer).units:
            made = quantizer.quantize(alone, first.fitted)
            blame[name] = judge.error(made.model, _BLAMED)
        if progress is not None:
            progress("precision", index + 1, len(units), name)
    return sorted(blame, key=lambda name: -blame[name])


class _Judge:
    """The float model's outputs on samples, and how far others are from them."""

    def __init__(self, exact: ir.Model, samples: Sequence[Arrays]) -> None:
        self._exact = exact
        self._samples = samples
        self._names = [v.name or "" for v in exact.graph.outputs]
        self._expected = self._outputs(exact, len(samples))

    def loss(self, model: ir.Model) -> float:
        """See :func:`loss_of`."""
        return loss_of(self._expected, self._outputs(model, len(self._samples)))

    def error(self, model: ir.Model, count: int) -> float:
        """Relative squared error on the first samples, summed over outputs."""
        got = self._outputs(model, count)
        pairs = [
            (want[: len(have)].astype(np.float64), have)
            for want, have in zip(self._expected, got, strict=True)
        ]
        return sum(
            float(np.square(want - have).sum() / max(np.square(want).sum(), 1e-30))
            for want, have in pairs
        )

    def _outputs(self, model: ir.Model, count: int) -> list[Array]:
        runner = SampleRunner(model, self._samples[:count], like=self._exact)
        batches = list(runner.values(self._names))
        return [np.concatenate([np.atleast_1d(b[name]) for b in batches]) for name in self._names]


def loss_of(expected: Sequence[Array], got: Sequence[Array]) -> float:
    """What a network loses, in per cent.

    Of a single output that is one row of at least two scores per sample: the share of samples with
    another top-1. Else the squared error of all floating point outputs over their energy.
    """
    if len(expected) == 1:
        rows = expected[0].reshape(len(expected[0]), -1)
        if rows.shape[1] == expected[0].shape[-1] >= 2 and expected[0].dtype.kind == "f":
            other = got[0].reshape(rows.shape).argmax(axis=1) != rows.argmax(axis=1)
            return 100 * float(other.mean())
    signal = noise = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.dtype.kind == "f":
            signal += float(np.square(want, dtype=np.float64).sum())
            noise += float(np.square(want - have, dtype=np.float64).sum())
    return 100 * noise / signal if signal else 0.0
