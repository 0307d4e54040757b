"""One file of weights for the libraries of several ABIs.

Kernels pack weights in the order in which they read them, so that libraries for two processors
may want different bytes. ``align_packings`` chooses configurations whose packed weights are the
same wherever every target has such a configuration; ``share_weights`` then joins what is left:
equal tensors once, others side by side.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from effc.devices.target import Target
from effc.kernels.region import Region
from effc.program import Pointer, Program, StorageClass

if TYPE_CHECKING:
    from effc.kernels.template import Choice

__all__ = ["align_packings", "share_weights"]

_ALIGNMENT = 64
_MAX_SLOWDOWN = 1.5
"""A configuration predicted to take more than this many times as long as the best is no choice."""

Ranked = dict[str, "list[Choice]"]
"""All configurations per distinct region, the chosen one first."""


def align_packings(
    regions: Sequence[Sequence[Region]], ranked: Sequence[Ranked], targets: Sequence[Target]
) -> None:
    """Move configurations with common packings to the front of their lists.

    Args:
        regions: Of each target.
        ranked: Of each target; changed.
        targets: The first one's order of preference counts.
    """
    sides = [
        _Packings({region.key: region for region in reversed(own)}, lists, target)
        for own, lists, target in zip(regions, ranked, targets, strict=True)
    ]
    first, *others = sides
    for key in first.regions:
        if not all(key in side.regions for side in others):
            continue
        for packing, place in first.distinct(key):
            places = [side.find(key, packing) for side in others]
            found = [p for p in places if p is not None]
            if len(found) == len(others):
                for side, chosen in zip(sides, (place, *found), strict=True):
                    side.choose(key, chosen)
                break


class _Packings:
    """Digests of the weights that a target's configurations pack, made when asked for."""

    def __init__(self, regions: Mapping[str, Region], ranked: Ranked, target: Target) -> None:
        self.regions = regions
        self.ranked = ranked
        self.target = target
        self.known: dict[str, list[bytes]] = {}

    def packings(self, key: str) -> Iterator[bytes]:
        """By configuration, best first, as far as they are not too slow."""
        known = self.known.setdefault(key, [])
        yield from known
        choices = self.ranked[key]
        for choice in choices[len(known) :]:
            if choice.cost > _MAX_SLOWDOWN * choices[0].cost:
                return
            kernel = choice.template.build(self.regions[key], self.target, choice.config)
            known.append(_digest(kernel.weights))
            yield known[-1]

    def distinct(self, key: str) -> Iterator[tuple[bytes, int]]:
        """Different packings, each with the place of its best configuration."""
        seen: set[bytes] = set()
        for place, packing in enumerate(self.packings(key)):
            if packing not in seen:
                seen.add(packing)
                yield packing, place

    def find(self, key: str, packing: bytes) -> int | None:
        """Place of the best configuration with a packing."""
        return next((p for p, found in enumerate(self.packings(key)) if found == packing), None)

    def choose(self, key: str, place: int) -> None:
        choices = self.ranked[key]
        choices.insert(0, choices.pop(place))


def _digest(weights: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].nbytes} ".encode())
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.digest()


def share_weights(programs: Sequence[Program]) -> None:
    """Give programs the same weights, each with its own offsets into them.

    Args:
        programs: Of one model for several targets; changed. The first one's order is kept.
    """
    places: dict[bytes, int] = {}
    blocks: list[np.ndarray] = []
    size = 0
    for program in programs:
        moved = []
        for offset, count in program.weight_blocks:
            data = program.weights[offset : offset + count]
            key = hashlib.sha256(data.data).digest()
            if key not in places:
                places[key] = size
                padded = np.zeros(-(-count // _ALIGNMENT) * _ALIGNMENT, np.uint8)
                padded[:count] = data
                blocks.append(padded)
                size += padded.size
            moved.append(places[key])
        _move(program, moved)
    joined = np.concatenate([np.zeros(0, np.uint8), *blocks])
    for program in programs:
        program.weights = joined


def _move(program: Program, moved: Sequence[int]) -> None:
    """Point to the new places of the program's blocks."""
    starts = [offset for offset, _ in program.weight_blocks]

    def move(pointer: Pointer) -> Pointer:
        if pointer.storage is not StorageClass.WEIGHTS:
            return pointer
        block = bisect_right(starts, pointer.offset) - 1
        return replace(pointer, offset=moved[block] + pointer.offset - starts[block])

    program.calls = tuple(
        replace(call, pointers=tuple(map(move, call.pointers))) for call in program.calls
    )
    program.weight_blocks = tuple(
        (new, count) for new, (_, count) in zip(moved, program.weight_blocks, strict=True)
    )
