"""Runs kernels for microcontrollers on the boards that QEMU emulates.

The kernels of many regions become one program, whose inputs and outputs are those of all
regions. The monitor on the board checks that they stay within their memory and their stack.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integer_cases import Node, region_of
from single_op import Arrays, alignment

from effc.bare.archive import link_bare
from effc.bare.board import BoardExecutor
from effc.bare.codegen import arena_bytes
from effc.devices.target import Target
from effc.functions import build_functions, lower_functions
from effc.kernels.elementwise import ElementwiseTemplate
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.kernels.template import Choice, Config, Template
from effc.storage import build_program
from effc.view_plan import plan_views

__all__ = ["Problem", "Result", "run_in_arena", "run_on_board"]

Problem = tuple[Sequence[Node], Arrays, Arrays]
"""Nodes, inputs and constants, as ``integer_cases.region_of`` takes them."""


@dataclass(frozen=True)
class Result:
    """What one region computed.

    Attributes:
        got, want: Its output, and the reference's.
        instructions: Of its stages.
    """

    got: np.ndarray
    want: np.ndarray
    instructions: int


def run_on_board(
    problems: Sequence[Problem],
    template: Template,
    target: Target,
    configs: Sequence[Config] | None = None,
) -> list[Result]:
    """Run a template's kernels: with its first configuration, or one from ``configs`` each."""
    _require_emulator(target)
    regions, feeds, wanted = [], {}, []
    chosen: dict[str, Choice] = {}
    for number, (nodes, inputs, constants) in enumerate(problems):
        region, expected = region_of(nodes, inputs, constants, anchored=True)
        assert template.refuse(region, target) is None, template.refuse(region, target)
        config = configs[number] if configs else template.candidates(region, target)[0][0]
        for value in _values(region):
            value.name = f"r{number}_{value.name}"
        region.name = f"r{number}"
        regions.append(region)
        chosen[region.key] = Choice(template, config, 0.0)
        feeds |= {f"r{number}_{name}": array for name, array in inputs.items()}
        (want,) = expected.values()
        wanted.append(want)
    outputs, instructions, _ = _run(regions, chosen, feeds, target)
    return [
        Result(outputs[region.outputs[0].name], want, instructions[region.name])
        for region, want in zip(regions, wanted, strict=True)
    ]


def run_in_arena(problem: Problem, template: Template, target: Target) -> tuple[Result, int]:
    """Run a kernel whose input and result lie in the arena, where the plan puts them.

    Returns:
        What it computed, and the bytes of the arena.
    """
    _require_emulator(target)
    region, expected = region_of(*problem, anchored=True)
    (x,), (y,) = region.inputs, region.outputs
    outside = [Value(f"{v.name}_outside", TensorType(v.shape, "uint8")) for v in (x, y)]
    flips = [
        Region(name, (Op("FlipSign", (a,), (b,), domain=DOMAIN),), None, (a,), (b,))
        for name, a, b in (("before", outside[0], x), ("behind", y, outside[1]))
    ]
    chosen = {region.key: Choice(template, template.candidates(region, target)[0][0], 0.0)}
    for flip in flips:
        moves = ElementwiseTemplate()
        chosen[flip.key] = Choice(moves, moves.candidates(flip, target)[0][0], 0.0)
    feeds = {outside[0].name: problem[1][x.name].view(np.uint8) ^ 0x80}
    outputs, instructions, arena = _run([flips[0], region, flips[1]], chosen, feeds, target)
    got = (outputs[outside[1].name] ^ 0x80).view(np.int8)
    return Result(got, expected[y.name], instructions[region.name]), arena


def _require_emulator(target: Target) -> None:
    emulator = "qemu-system-riscv32" if target.arch == "riscv32" else "qemu-system-arm"
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed (tools/install-system-packages.sh)")


def _values(region: Region) -> list[Value]:
    found: dict[int, Value] = {}
    for op in region.ops:
        for value in (*op.inputs, *op.outputs):
            if value is not None:
                found[id(value)] = value
    return list(found.values())


def _run(
    regions: Sequence[Region], chosen: dict[str, Choice], feeds: Arrays, target: Target
) -> tuple[Arrays, dict[str, int], int]:
    """Outputs, instructions per region, bytes of the arena."""
    read = [value for region in regions for value in region.inputs]
    made = [value for region in regions for value in region.outputs]
    inputs = [value for value in read if value not in made]
    outputs = [value for value in made if value not in read]
    plain = {op.inputs[0] for region in regions for op in region.ops if "layout" in op.attrs}
    views = plan_views(regions, inputs, outputs)
    built = build_functions("k", views.regions, chosen, target)
    program = build_program(
        "k", inputs, outputs, views.regions, built.kernels, built.symbols, views, serial=True
    )
    with tempfile.TemporaryDirectory() as folder:
        objects = lower_functions(built, target)
        linked = link_bare(program, objects, target, Path(folder) / "libk.a")
        manifest = {
            "name": "k",
            "target": target.name,
            "inputs": [_port(value, value in plain) for value in inputs],
            "outputs": [_port(value, False) for value in outputs],
            "arena_bytes": arena_bytes(program),
            "stack_bytes": linked.stack_bytes,
            "steps": [call.region for call in program.calls],
            "layers": [{"name": region.name, "nodes": []} for region in regions],
        }
        with BoardExecutor(linked.path, manifest) as board:
            found = board.run(feeds)
            layers = {layer.name: layer.instructions or 0 for layer in board.profile(1, 0)}
    return found, layers, arena_bytes(program)


def _port(value: Value, plain: bool) -> dict[str, Any]:
    """A manifest's entry; inside of a model quads of several positions are whole words.

    ``plain``: whether it is no quads, whatever its shape.
    """
    return {
        "name": value.name,
        "dtype": value.dtype,
        "shape": list(value.shape),
        "bytes": value.type.nbytes,
        "alignment": np.dtype(value.dtype).itemsize if plain else alignment(value),
    }
