"""First and second moments of what a layer reads, alone or together with what it should compute.

    E[x], cov(x) = E[x x^T] - E[x] E[x]^T, and for targets y: E[y], cov(y, x)

with x a column of the layer's unfolded input (``effc.passes.pruning.calibration``) and y what the
original layer computes at the same place of the original model. Centred, because a layer's bias
makes up for the mean of whatever is removed: only variance is lost. A layer that cannot have a bias
(MatMul) has the plain second moments instead, with means 0. Products are float32 over one
batch, sums float64. Inputs are taken relative to their means over the first batch: of what hardly
varies (clipped activations) float32 squares would leave nothing but rounding.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from effc.passes.pruning.calibration import COLUMNS, choose, share_of, unfold
from effc.passes.pruning.layers import Layer

__all__ = ["Moments", "Target"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Target:
    """The layer as it was, and which of its output channels are left."""

    layer: Layer
    kept: Array

    def values(self, inputs: Array, share: float, rng: np.random.Generator) -> Array:
        """What the original computes, ``[columns, Cout]``, at the positions ``unfold`` takes.

        The original's bias is left out.
        """
        columns = unfold(self.layer, inputs, share, rng)
        groups, count, width = columns.shape
        weight = self.layer.weight().reshape(groups, -1, width).astype(np.float32, copy=False)
        found = np.matmul(columns, weight.transpose(0, 2, 1))
        return np.asarray(found.transpose(1, 0, 2).reshape(count, -1)[:, self.kept])


class Moments:
    """Sums over the columns of one layer.

    Args:
        layer: Conv, Gemm or MatMul.
        samples: Runs of the model that will be added; of large feature maps a random part is taken.
        target: The layer as it was, if it is to be imitated.
        columns: How many are enough whatever the layer.

    Attributes:
        columns: How many there are so far.
    """

    def __init__(
        self,
        layer: Layer,
        samples: int,
        target: Target | None = None,
        columns: int = COLUMNS,
    ) -> None:
        self.layer = layer
        self.target = target
        width = prod(layer.shape[1:])
        self._share = share_of(layer, samples, columns)
        self._seed = zlib.crc32(layer.name.encode())
        self.columns = 0
        self._inputs = np.zeros((layer.groups, width + 1, width + 1))
        outputs = layer.shape[0] // layer.groups if target is not None else 0
        self._outputs = np.zeros((layer.groups, outputs, width + 1))
        self._squares = 0.0
        self._shift: Array | None = None

    def add(
        self, inputs: Array, original: Array | None = None, missing: Array | None = None
    ) -> None:
        """Add samples.

        Args:
            inputs: What the layer reads.
            original: What the target reads for the same samples.
            missing: In the layout of the layer's output, what the layer should compute beyond that.
        """
        self._seed += 1
        columns = unfold(self.layer, inputs, self._share, np.random.default_rng(self._seed))
        groups, count, _ = columns.shape
        if self._shift is None:
            means = self._centre(columns.sum(axis=1, dtype=np.float64), count)
            self._shift = means.astype(np.float32).astype(np.float64)  # exact in both
        one = np.ones((groups, count, 1), np.float32)
        shifted = columns - self._shift[:, None].astype(np.float32)
        extended = np.concatenate([shifted, one], axis=2)
        self._inputs += np.matmul(extended.transpose(0, 2, 1), extended)
        self.columns += count
        if self.target is not None and original is not None:
            same = np.random.default_rng(self._seed)
            values = self.target.values(original, self._share, same)
            if missing is not None:
                rows = np.moveaxis(missing, 1, -1) if self.layer.kernel else missing
                rows = rows.reshape(-1, rows.shape[-1])
                again = np.random.default_rng(self._seed)
                values = values + rows[choose(len(rows), self._share, again)]
            values = values.reshape(count, groups, -1)
            self._outputs += np.matmul(values.transpose(1, 2, 0), extended)
            self._squares += float(np.square(values, dtype=np.float64).sum())

    def merge(self, other: Moments) -> None:
        """Add the samples of other moments of the same layer; both have some."""
        assert self._shift is not None
        assert other._shift is not None
        move = other._shift - self._shift
        inputs, outputs = other._inputs.copy(), other._outputs.copy()
        inputs[:, :, :-1] += inputs[:, :, -1:] * move[:, None]
        inputs[:, :-1] += inputs[:, -1:] * move[:, :, None]
        outputs[:, :, :-1] += outputs[:, :, -1:] * move[:, None]
        self.columns += other.columns
        self._inputs += inputs
        self._outputs += outputs
        self._squares += other._squares

    @property
    def mean(self) -> Array:
        """E[x], ``[groups, K]``."""
        return self._offset + (0.0 if self._shift is None else self._shift)

    @property
    def covariance(self) -> Array:
        """cov(x), ``[groups, K, K]``."""
        return self._centred(self._inputs[:, :-1])

    @property
    def power(self) -> Array:
        """E[x^2], mean over the columns' entries, ``[groups]``."""
        squares = np.einsum("gkk->gk", self._inputs)[:, :-1]
        sums = self._inputs[:, :-1, -1]
        variance = (squares - sums * self._offset) / max(self.columns, 1)
        return np.asarray((variance + np.square(self.mean)).mean(axis=1))

    @property
    def target_mean(self) -> Array:
        """E[y] without the original's bias, ``[groups, Cout / groups]``."""
        return self._centre(self._outputs[:, :, -1], self.columns)

    @property
    def target_variance(self) -> float:
        """Variance of y, summed over all outputs."""
        return self._squares / max(self.columns, 1) - float(np.square(self.target_mean).sum())

    @property
    def target_covariance(self) -> Array:
        """cov(y, x), ``[groups, Cout / groups, K]``."""
        return self._centred(self._outputs)

    @property
    def _offset(self) -> Array:
        """E[x] beyond the shift."""
        return self._centre(self._inputs[:, -1, :-1], self.columns)

    def _centre(self, sums: Array, columns: int) -> Array:
        biased = self.layer.bias() is not None
        return np.asarray(sums / max(columns, 1)) if biased else np.zeros(sums.shape)

    def _centred(self, sums: Array) -> Array:
        """``E[a x^T] - E[a] E[x]^T`` from sums of ``a (x, 1)^T``."""
        second = sums / max(self.columns, 1)
        return np.asarray(second[:, :, :-1] - second[:, :, -1:] * self._offset[:, None])
