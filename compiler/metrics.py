"""How far two sets of outputs are apart, and how far they may be.

The tolerance is a signal-to-noise ratio. Let ``u`` be the unit roundoff of the output's
dtype (2^-24 for float32) and ``K_l`` the length of the longest accumulation of layer ``l``
(multiply-accumulates per output element; at least 16 per ONNX node, which pays for
polynomial approximations of ``exp`` and the like). Rounding errors of a sum of ``K`` terms
behave like a random walk, relative error about ``u sqrt(K)`` (Higham & Mary, A new approach
to probabilistic rounding error analysis, 2019); errors of different layers add up the same
way. So two correct programs differ by about ``u sqrt(sum K_l)``, and
:func:`snr_limit` allows ``SAFETY`` = 4 times that, which also covers Winograd transforms.

Half precision counts as so many more terms of the output's type: a layer in float16 rounds its
operands and result, and sums of at most ``t`` terms (``terms`` of the manifest; what lies above is
added up in float32), with ``u = 2^-11``: its length is ``(2^-11 / 2^-24)^2 (t + 3)``. A layer with
float16 weights only rounds those: ``t + 3`` is 1, and its own length comes on top.

Integers and booleans must be equal, but 8-bit outputs of a quantized model may differ by
one step, and one element in a hundred by more: ONNX Runtime rounds halves to even in
floating point, effc upwards in fixed point, so that a value near a half may fall to either side of
it in any layer, and later layers amplify that (``effc.verify`` measures by how much). For the same
reason float outputs of a quantized model need ``QUANTIZED_SNR_DB`` only: 8 bits give 48 dB
at full scale, of which a few elements that are a step off leave about 37. NaN must meet NaN,
infinity the same infinity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

__all__ = ["MAX_SNR_DB", "OutputError", "accumulated_length", "is_quantized", "snr_limit"]

SAFETY = 4.0
QUANTIZED_SNR_DB = 30.0
MAX_SNR_DB = 300.0
"""Shown for identical outputs, so that the figure stays a number."""

_MAX_RELATIVE = 1e30
"""Shown where the reference is all zeros."""

_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


_HALF_TERM = int((_ROUNDOFF["float16"] / _ROUNDOFF["float32"]) ** 2)
"""Terms of a float32 sum that err as much as one of float16."""


def accumulated_length(layers: Iterable[Mapping[str, Any]]) -> int:
    """``sum K_l`` over the layers of a manifest."""
    total = 0
    for layer in layers:
        elements = max(sum(prod(shape) for shape in layer["outputs"]), 1)
        length = max(layer["macs"] // elements, 16 * max(len(layer["nodes"]), 1))
        precision = layer.get("precision", "")
        if precision == "f16":
            length = _HALF_TERM * (layer["terms"] + 3)
        elif precision:
            length += _HALF_TERM
        total += length
    return max(total, 16)


def is_quantized(manifest: Mapping[str, Any]) -> bool:
    """Whether the model rounds to 8 bits within, so that rounding errors come in steps."""
    names = ("integerize", "expand_quantized")
    return any(p["name"] in names and p["applied"] for p in manifest["passes"])


def snr_limit(dtype: str, length: int) -> float:
    """Smallest signal-to-noise ratio, in dB, that counts as correct for a float dtype."""
    noise = SAFETY * _ROUNDOFF[dtype] * math.sqrt(length)
    return -20.0 * math.log10(min(noise, 0.5))


_OUTLIERS = 0.01
"""Share of the elements of a quantized output that may differ by more than a step."""


@dataclass
class OutputError:
    """Error of one output, accumulated over samples.

    Attributes:
        name, dtype: Of the output.
        max_abs_error: Largest absolute difference.
        max_rel_error: Largest difference relative to the reference element, where elements
            below 1/1000 of the sample's largest count as that.
        limit_steps: Largest accepted difference of integers.
        mismatches: Elements that differ by more (integers), or of which only one is NaN or
            infinite.
        elements: Compared so far.
        signal, noise: Sums of squares.
        by_steps: How many elements of a quantized output differ by how many steps.
        limit_db: Smallest accepted ratio of the two; ``None`` for exact dtypes.
    """

    name: str
    dtype: str
    limit_db: float | None
    limit_steps: int = 0
    max_abs_error: float = 0.0
    max_rel_error: float = 0.0
    mismatches: int = 0
    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    by_steps: Counter[int] = field(default_factory=Counter)

    @classmethod
    def start(cls, name: str, dtype: str, length: int, quantized: bool = False) -> OutputError:
        """An empty record with its limits.

        Args:
            name, dtype: Of the output.
            length: See :func:`accumulated_length`.
            quantized: See :func:`is_quantized`.
        """
        if dtype not in _ROUNDOFF:
            return cls(name, dtype, None, int(quantized and dtype in ("int8", "uint8")))
        limit = snr_limit(dtype, length)
        return cls(name, dtype, min(limit, QUANTIZED_SNR_DB) if quantized else limit)

    def add(self, reference: np.ndarray, got: np.ndarray) -> None:
        """Compare one more sample; both arrays have the same shape."""
        self.elements += reference.size
        if self.limit_db is None:
            self._add_exact(reference, got)
            return
        want, have = reference.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(want) & np.isfinite(have)
        same = finite | (want == have) | (np.isnan(want) & np.isnan(have))
        self.mismatches += int((~same).sum())
        want, have = want[finite], have[finite]
        if not want.size:
            return
        error = np.abs(want - have)
        scale = np.maximum(np.abs(want), max(np.abs(want).max() / 1000, np.finfo(np.float64).tiny))
        relative = np.minimum(error / scale, _MAX_RELATIVE)
        self._raise(float(error.max()), float(relative.max()))
        self.signal += float(want @ want)
        self.noise += float(error @ error)

    def _add_exact(self, reference: np.ndarray, got: np.ndarray) -> None:
        want = reference.astype(np.float64).ravel()
        error = np.abs(want - got.astype(np.float64).ravel())
        count = int((reference != got).sum())
        if self.limit_steps:
            sizes, counts = np.unique(error, return_counts=True)
            self.by_steps.update(
                dict(zip(sizes.astype(int).tolist(), counts.tolist(), strict=True))
            )
            self.allow_steps(self.limit_steps)
        else:
            self.mismatches += count
        self.signal += float(want @ want)
        self.noise += float(error @ error)
        if count:
            largest = float(error.max())
            self._raise(largest, largest / max(float(np.abs(want).max()), 1.0))

    def allow_steps(self, limit: int) -> None:
        """Set the largest accepted difference of a quantized output."""
        self.limit_steps = limit
        self.mismatches = sum(count for size, count in self.by_steps.items() if size > limit)

    def _raise(self, absolute: float, relative: float) -> None:
        self.max_abs_error = max(self.max_abs_error, absolute)
        self.max_rel_error = max(self.max_rel_error, relative)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio over all samples, at most ``MAX_SNR_DB``."""
        if self.noise == 0.0:
            return MAX_SNR_DB
        if self.signal == 0.0:
            return -MAX_SNR_DB
        return min(10.0 * math.log10(self.signal / self.noise), MAX_SNR_DB)

    @property
    def ok(self) -> bool:
        """Within the limit."""
        if self.mismatches > (_OUTLIERS * self.elements if self.limit_steps else 0):
            return False
        return self.limit_db is None or self.snr_db >= self.limit_db

    def describe(self) -> dict[str, Any]:
        """For JSON; three significant digits, so that reports are stable."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "ok": self.ok,
            "max_abs_error": _round(self.max_abs_error),
            "max_rel_error": _round(self.max_rel_error),
            "snr_db": round(self.snr_db, 1),
            "snr_limit_db": None if self.limit_db is None else round(self.limit_db, 1),
            "limit_steps": self.limit_steps,
            "mismatches": self.mismatches,
            "elements": self.elements,
        }


def _round(value: float) -> float:
    return float(f"{value:.3g}")
