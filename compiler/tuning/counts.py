"""Measure compiled candidates for microcontrollers: instructions on an emulated board.

Counts are exact and the same every time, so each candidate runs once. All candidates of a layer are
steps of one program; they read the same inputs, and its own weights each. A candidate
that crashes or hangs takes its program with it; the others are then counted again, each alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effc.bare.archive import link_bare
from effc.bare.board import BoardExecutor
from effc.bare.codegen import ALIGNMENT, arena_bytes
from effc.devices.emulated import get_board
from effc.devices.target import Target
from effc.errors import DeviceError, EffcError
from effc.kernels.region import Region
from effc.memory_plan import align_up
from effc.packed_weights import PackedWeights
from effc.program import Call, Pointer, Program, StorageClass
from effc.tuning.build import Compiled, CompiledStage
from effc.tuning.measure import Timing

__all__ = ["BoardHarness"]

_TIMEOUT_S = 60.0


class BoardHarness:
    """Counts instructions of candidates; a stand-in for ``measure.Harness``.

    Args:
        target: What the candidates were compiled for.
        folder: Folder with their objects and constants.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.folder = folder

    def link(self, compiled: Sequence[Compiled]) -> None:
        """Programs are linked as they are run: one holds no more than the board's memory."""

    def send(self, jobs: Sequence[object]) -> None:
        """Nothing to send: the board is emulated here."""

    def run(
        self, region: Region, compiled: Sequence[Compiled], budget_s: float, rounds: int
    ) -> list[Timing]:
        """Count candidates of one layer.

        Args:
            region: The layer.
            compiled: Candidates for it.
            budget_s, rounds: Not needed: one run is exact.

        Returns:
            The time of each at one instruction per cycle.
        """
        return [timing for part in self._parts(compiled) for timing in self._run(region, part)]

    def _parts(self, compiled: Sequence[Compiled]) -> Iterator[list[Compiled]]:
        """Candidates whose weights fit the board together."""
        room = get_board(self.target.machine).code.length // 2
        part: list[Compiled] = []
        size = 0
        for candidate in compiled:
            needed = sum(align_up(c.nbytes, ALIGNMENT) for _, c in candidate.weights)
            if part and size + needed > room:
                yield part
                part, size = [], 0
            part.append(candidate)
            size += needed
        if part:
            yield part

    def _run(self, region: Region, compiled: Sequence[Compiled]) -> list[Timing]:
        try:
            counts = self._count(region, compiled)
        except EffcError as error:
            if len(compiled) == 1:
                return [Timing(None, error=str(error))]
            return [timing for c in compiled for timing in self._run(region, [c])]
        seconds = [count / self.target.clock_mhz / 1e6 for count in counts]
        return [Timing(s, quartile=s, rounds=1) for s in seconds]

    def _count(self, region: Region, compiled: Sequence[Compiled]) -> list[int]:
        layout = _Layout(region, compiled, self.folder)
        program = layout.program()
        library = self.folder / "candidates.a"
        objects = [Path(c.object).read_bytes() for c in compiled if c.object]
        linked = link_bare(program, objects, self.target, library)
        manifest = _manifest(program, self.target, linked.stack_bytes)
        with BoardExecutor(library, manifest, _TIMEOUT_S) as board:
            counts = [layer.instructions for layer in board.profile(1, 0)]
        if len(counts) != len(compiled) or None in counts:
            raise DeviceError("the board counted other candidates", where=region.name)
        return [count or 0 for count in counts]


class _Layout:
    """Memory and calls of a program of candidates.

    Inputs and outputs of the layer come first in the arena; behind them each candidate has its
    workspaces and scratch, all at the same place.
    """

    def __init__(self, region: Region, compiled: Sequence[Compiled], folder: Path) -> None:
        self.compiled, self.folder = compiled, folder
        self.weights = PackedWeights(ALIGNMENT)
        self.shared: dict[str, Pointer] = {}
        self.size = 0
        for value in (*region.inputs, *region.outputs):
            self.shared[value.name] = Pointer(StorageClass.ARENA, 0, self.size)
            self.size += align_up(value.type.nbytes, ALIGNMENT)

    def program(self) -> Program:
        """Candidates as steps, each a region of its own."""
        calls, end = [], self.size
        for number, candidate in enumerate(self.compiled):
            places, own = self._places(candidate)
            end = max(end, own)
            calls += [_call(stage, places, f"candidate_{number}") for stage in candidate.stages]
        return Program(
            name="c",
            inputs=(),
            outputs=(),
            calls=tuple(calls),
            weights=self.weights.blob(),
            arena_bytes=end,
            arena_lower_bound_bytes=end,
            scratch_bytes=0,
        )

    def _places(self, candidate: Compiled) -> tuple[dict[str, Pointer], int]:
        """Where a candidate's operands are, and the end of its memory."""
        places = dict(self.shared)
        for name, content in candidate.weights:
            data = np.zeros(content.nbytes, np.uint8)
            if content.file:
                data[:] = np.frombuffer((self.folder / content.file).read_bytes(), np.uint8)
            places[f"w:{name}"] = Pointer(StorageClass.WEIGHTS, 0, self.weights.add(data))
        end = self.size
        scratch = max((stage.scratch for stage in candidate.stages), default=0)
        own = [(f"t:{name}", nbytes) for name, nbytes in candidate.workspaces]
        for name, nbytes in [*own, ("scratch", scratch)]:
            places[name] = Pointer(StorageClass.ARENA, 0, end)
            end += align_up(nbytes, ALIGNMENT)
        return places, end


def _call(stage: CompiledStage, places: Mapping[str, Pointer], region: str) -> Call:
    pointers = tuple(places[name] for name in stage.args)
    return Call(stage.symbol, pointers, stage.extent, region, ())


def _manifest(program: Program, target: Target, stack: int) -> dict[str, Any]:
    """What a board's executor reads of a manifest."""
    return {
        "name": program.name,
        "target": target.name,
        "inputs": [],
        "outputs": [],
        "arena_bytes": arena_bytes(program),
        "stack_bytes": stack,
        "steps": [call.region for call in program.calls],
        "layers": [],
    }
