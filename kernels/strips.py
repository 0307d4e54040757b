"""Loops over contiguous elements in vectors, and reductions along them.

A *strip* is a run of ``count`` contiguous elements with a static length: full
vectors in a loop, then ever shorter vectors for the rest, never a byte more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx

from effc.kernels.builder import T, bind, local, loop, splat, vload, vstore, whole_or_rest
from effc.kernels.lanes import pieces, reduce_lanes

__all__ = ["AxisView", "axis_view", "blocks", "each_vector", "reduce_steps", "reduce_strip"]

Expr = Any  # tvm.tirx expressions have no useful static types
Load = Callable[[Expr, int], Expr]
Combine = Callable[[Expr, Expr], Expr]

_ACCUMULATORS = 4  # independent chains that hide the latency of an addition
_BLOCK = 32  # additions into one accumulator before it is emptied into a total


@dataclass(frozen=True)
class AxisView:
    """A tensor seen as ``[outer, length, inner]`` around one axis."""

    outer: int
    length: int
    inner: int


def axis_view(shape: tuple[int, ...], axis: int) -> AxisView:
    """The view around one axis."""
    at = axis % len(shape) if shape else 0
    return AxisView(prod(shape[:at]), prod(shape[at : at + 1]), prod(shape[at + 1 :]))


def each_vector(count: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """Call ``body(offset, width)`` for all elements of a strip of static length."""
    full = count // lanes
    if full > 1:
        with loop(full) as i:
            body(bind(i * lanes), lanes)
    elif full:
        body(T.int32(0), lanes)
    for offset, width in pieces(count - full * lanes, lanes):
        body(T.int32(full * lanes + offset), width)


def blocks(count: int, lanes: int, block: Expr, body: Callable[[Expr, int], None]) -> None:
    """Run ``body`` for vector number ``block`` of a strip: one vector, or the ragged rest.

    ``block`` counts ``ceil(count / lanes)`` units; the last may be several short vectors.
    """
    full = count // lanes
    rest = list(pieces(count - full * lanes, lanes))

    def remainder() -> None:
        for offset, width in rest:
            body(T.int32(full * lanes + offset), width)

    whole_or_rest(block, full, rest, lambda: body(bind(block * lanes), lanes), remainder)


def reduce_strip(
    count: int, lanes: int, load: Load, combine: Combine, identity: Expr, dtype: str
) -> Expr:
    """Combine all elements of a strip into one scalar.

    Args:
        count: Elements, static.
        lanes: Vector width.
        load: ``load(offset, width)`` gives elements as ``dtype``.
        combine: Associative operator.
        identity: Its neutral element, a scalar.
        dtype: Element type of the accumulators.
    """
    full = count // lanes
    chains = min(_ACCUMULATORS, max(full, 1))
    scalars: list[Expr] = []
    if full:
        scalars.append(_reduce_full(full, chains, lanes, load, combine, identity, dtype))
    for offset, width in pieces(count - full * lanes, lanes):
        value = load(T.int32(full * lanes + offset), width)
        scalars.append(reduce_lanes(value, width, combine))
    total = bind(scalars[0]) if scalars else identity
    for scalar in scalars[1:]:
        total = bind(combine(total, bind(scalar)))
    return total


def _reduce_full(
    full: int, chains: int, lanes: int, load: Load, combine: Combine, identity: Expr, dtype: str
) -> Expr:
    accumulators = local(chains * lanes, dtype)

    def step(chain: int, vector: Expr) -> None:
        value = combine(vload(accumulators, chain * lanes, lanes), load(vector, lanes))
        vstore(accumulators, chain * lanes, value, lanes)

    def clear() -> None:
        for chain in range(chains):
            vstore(accumulators, chain * lanes, splat(identity, lanes), lanes)

    def merged() -> Expr:
        values = [vload(accumulators, chain * lanes, lanes) for chain in range(chains)]
        while len(values) > 1:
            pairs = zip(values[::2], values[1::2], strict=False)
            rest = values[len(values) // 2 * 2 :]
            values = [bind(combine(a, b)) for a, b in pairs] + rest
        return values[0]

    rounds, left = divmod(full, chains)
    big, small = divmod(rounds, _BLOCK)
    total = local(lanes, dtype)
    vstore(total, 0, splat(identity, lanes), lanes)
    if big > 1:
        with loop(big) as block:
            clear()
            with loop(_BLOCK) as i:
                for chain in range(chains):
                    step(chain, bind(((block * _BLOCK + i) * chains + chain) * lanes))
            vstore(total, 0, combine(vload(total, 0, lanes), merged()), lanes)
    else:
        small, big = rounds, 0
    clear()
    with loop(small) as i:
        for chain in range(chains):
            step(chain, bind(((big * _BLOCK + i) * chains + chain) * lanes))
    for chain in range(left):
        step(chain, T.int32((rounds * chains + chain) * lanes))
    return reduce_lanes(bind(combine(vload(total, 0, lanes), merged())), lanes, combine)


def reduce_steps(
    count: int,
    lanes: int,
    load: Callable[[Expr], Expr],
    combine: Combine,
    identity: Expr,
    dtype: str,
) -> Expr:
    """Combine ``count`` vectors ``load(0) ... load(count - 1)`` lane by lane.

    Sums stay accurate for long axes: a partial result takes at most ``_BLOCK`` terms
    before it joins the total.
    """
    total, partial = local(lanes, dtype), local(lanes, dtype)
    vstore(total, 0, splat(identity, lanes), lanes)

    def run(first: Expr, steps: int) -> None:
        vstore(partial, 0, splat(identity, lanes), lanes)
        with loop(steps) as i:
            vstore(partial, 0, combine(vload(partial, 0, lanes), load(bind(first + i))), lanes)
        vstore(total, 0, combine(vload(total, 0, lanes), vload(partial, 0, lanes)), lanes)

    big, small = divmod(count, _BLOCK)
    if big:
        with loop(big) as block:
            run(bind(block * _BLOCK), _BLOCK)
    if small:
        run(tirx.const(big * _BLOCK, "int32"), small)
    return vload(total, 0, lanes)
