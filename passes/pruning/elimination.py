"""Greedy removal of units with the least loss, for many filter bands at once.

Optimal Brain Surgeon in blocks (Frantar and Alistarh, Optimal Brain Compression, NeurIPS 2022,
section 4). For the rows W of a band and its inverse Hessian V = H^-1, removing the columns B costs

    loss = trace(W_B V_BB^-1 W_B^T),   W <- W - W_B V_BB^-1 V_B:,   V <- V - V_:B V_BB^-1 V_B:

A downdate of V at every step would be bound by memory. With V_BB = L L^T and the rows
F_B = L^-1 V_B:, the downdate is V - F_B^T F_B, so the factors of recent steps are collected:

    V = base - F^T F

of which a step needs only the rows B, and for the losses the diagonal blocks, which are kept up to
date. After about 128 rows F is multiplied out into the base (one matrix product), and what
has been removed is cut out of all arrays. Everything is float32: V shrinks by no more than the
ratio of a Hessian's diagonal to its damping.

Bands have different masks after the first step, but the same number of steps, so a batch of them
is one stack of arrays. Columns are numbered component-major: component i of unit u is
column ``i * units + u``; so a unit's components lie along an axis of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import blas

__all__ = ["Elimination", "unit_losses"]

Array = np.ndarray[Any, Any]

_RANK = 128
"""Rows of F after which it is multiplied out; small enough for the cache, large enough for GEMM."""

_COMPACT_BELOW = 0.9
"""Share of live units under which removed ones are cut out."""

_TINY = np.float32(1e-12)


def unit_losses(weight: Array, blocks: Array) -> Array:
    """Loss of removing each unit.

    Args:
        weight: ``[bands, rows, width, units]``.
        blocks: Diagonal blocks of the inverse Hessian, ``[bands, width, width, units]``.

    Returns:
        ``[bands, units]``.
    """
    width = weight.shape[2]
    if width == 1:
        return np.asarray(np.square(weight[:, :, 0]).sum(axis=1) / _positive(blocks[:, 0, 0]))
    rest, rows = blocks.copy(), weight.copy()
    loss = np.zeros((weight.shape[0], weight.shape[3]), weight.dtype)
    for i in range(width):  # Cholesky factor and forward substitution in one sweep
        scale = 1 / np.sqrt(_positive(rest[:, i, i]))
        y = rows[:, :, i] * scale[:, None]
        loss += np.einsum("grm,grm->gm", y, y)
        if i + 1 < width:
            column = rest[:, i + 1 :, i] * scale[:, None]
            rest[:, i + 1 :, i + 1 :] -= column[:, :, None] * column[:, None]
            rows[:, :, i + 1 :] -= y[:, :, None] * column[:, None]
    return loss


def _positive(values: Array) -> Array:
    return np.maximum(values, _TINY)


class Elimination:
    """The state of a batch of bands.

    Args:
        weight: ``[bands, rows, width, units]`` float32.
        inverse: Inverse Hessian that the bands start from, ``[width * units] * 2`` float32.
    """

    def __init__(self, weight: Array, inverse: Array) -> None:
        self.bands, self.rows, self.width, self.units = weight.shape
        self.weight = np.ascontiguousarray(weight)
        self.base = np.repeat(inverse[None], self.bands, axis=0)
        square = inverse.reshape(self.width, self.units, self.width, self.units)
        diagonal = np.einsum("iuju->iju", square)
        self.blocks = np.repeat(diagonal[None], self.bands, axis=0)
        self.ids = np.tile(np.arange(self.units), (self.bands, 1))
        self.live = np.ones((self.bands, self.units), bool)
        self.factor = np.empty((self.bands, max(_RANK, self.width), inverse.shape[0]), weight.dtype)
        self.rank = 0
        self._band = np.arange(self.bands)

    def step(self, allowed: Array | None = None) -> tuple[Array, Array]:
        """Remove the unit of least loss from every band.

        Args:
            allowed: Units, by their original number, that may be removed: bool ``[bands, units]``.

        Returns:
            The units removed and their losses, ``[bands]`` each.
        """
        losses = unit_losses(self.weight, self.blocks)
        candidates = self.live
        if allowed is not None:
            candidates = candidates & np.take_along_axis(allowed, self.ids, axis=1)
        losses[~candidates] = np.inf
        slot = losses.argmin(axis=1)
        removed = self.ids[self._band, slot]
        self._remove(slot)
        return removed, losses[self._band, slot].astype(np.float64)

    def _remove(self, slot: Array) -> None:
        band, width, units = self._band, self.width, self.units
        columns = slot[:, None] + np.arange(width) * units
        rows = self.base[band[:, None], columns]
        recent = self.factor[:, : self.rank]
        if self.rank:
            at = np.take_along_axis(recent, columns[:, None], axis=2)
            rows -= at.transpose(0, 2, 1) @ recent
        pivot = np.take_along_axis(rows, columns[:, None], axis=2)
        whiten = _inverse_cholesky(pivot)
        factor = whiten @ rows
        flat = self.weight.reshape(self.bands, self.rows, -1)
        own = np.take_along_axis(flat, columns[:, None], axis=2)
        flat -= (own @ whiten.transpose(0, 2, 1)) @ factor
        split = factor.reshape(self.bands, width, width, units)
        if width == 1:
            self.blocks -= np.square(split)
        else:
            for k in range(width):
                self.blocks -= split[:, k, :, None] * split[:, k, None]
        self.live[band, slot] = False
        self.weight[band, :, :, slot] = 0
        self.blocks[band, :, :, slot] = np.eye(width, dtype=np.float32)  # stays invertible
        self.factor[:, self.rank : self.rank + width] = factor
        self.rank += width
        if self.rank + width > self.factor.shape[1]:
            self._multiply_out()

    def _multiply_out(self) -> None:
        """Multiply F out; cut removed units out if there are many."""
        factor = self.factor[:, : self.rank]
        live = int(self.live[0].sum())
        if not live:
            return
        if live < _COMPACT_BELOW * self.units:
            factor = self._compact(live)
        for base, rows in zip(self.base, factor, strict=True):
            # base is symmetric: its transpose is the Fortran array that BLAS updates in place.
            blas.sgemm(-1.0, rows.T, rows.T, 1.0, base.T, trans_b=True, overwrite_c=True)
        self.factor = np.empty((self.bands, self.factor.shape[1], self.base.shape[1]), np.float32)
        self.rank = 0

    def _compact(self, live: int) -> Array:
        """Keep live units only; returns the recent factors over them."""
        slots = np.nonzero(self.live)[1].reshape(self.bands, live)
        columns = (slots[:, None] + np.arange(self.width)[:, None] * self.units).reshape(
            self.bands, -1
        )
        factor = np.take_along_axis(self.factor[:, : self.rank], columns[:, None], axis=2)
        smaller = np.empty((self.bands, columns.shape[1], columns.shape[1]), self.base.dtype)
        for base, at, out in zip(self.base, columns, smaller, strict=True):
            base.take(at, axis=0).take(at, axis=1, out=out, mode="clip")  # clip: unbuffered
        self.base = smaller
        self.weight = np.take_along_axis(self.weight, slots[:, None, None], axis=3)
        self.blocks = np.take_along_axis(self.blocks, slots[:, None, None], axis=3)
        self.ids = np.take_along_axis(self.ids, slots, axis=1)
        self.live = np.ones((self.bands, live), bool)
        self.units = live
        return factor


def _inverse_cholesky(pivot: Array) -> Array:
    """``L^-1`` of ``pivot = L L^T``, ``[bands, width, width]``."""
    if pivot.shape[1] == 1:
        return np.asarray(1 / np.sqrt(_positive(pivot)))
    precise = pivot.astype(np.float64)
    diagonal = np.einsum("bii->bi", precise)
    diagonal += 1e-7 * diagonal.max(axis=1, keepdims=True)  # rounding of float32
    return np.linalg.inv(np.linalg.cholesky(precise)).astype(pivot.dtype)
