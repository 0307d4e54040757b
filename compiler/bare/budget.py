"""Whether a model fits the memory of a microcontroller, and what takes it if not.

RAM is everything that one inference needs: inputs and outputs (the caller's), the arena, and the
stack. Flash is code, tables and weights. Limits are the options' (``--ram``, ``--flash``), else
the board's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from effc.bare.codegen import arena_bytes
from effc.devices.target import Target
from effc.errors import QualityError
from effc.options import CompileOptions
from effc.program import Program

__all__ = ["check_flash", "check_ram", "ram_limit", "ram_needed"]

_STACK = 1024  # room that is left for it while plans are made
_SHOWN = 8
"""Tensors and layers of a breakdown."""


def ram_limit(target: Target, options: CompileOptions) -> int:
    """Bytes of RAM that the model may use, 0 if nobody says."""
    return options.ram or target.ram_bytes


def ram_needed(program: Program, stack: int = 0) -> int:
    """Bytes of RAM that one inference needs."""
    ports = sum(port.type.nbytes for port in (*program.inputs, *program.outputs))
    return ports + arena_bytes(program) + stack


def ram_missing(program: Program, target: Target, options: CompileOptions) -> int:
    """Bytes by which a plan is too large before its stack is known; not positive if it fits."""
    limit = ram_limit(target, options)
    return ram_needed(program, _STACK) - limit if limit else 0


def check_ram(
    program: Program,
    target: Target,
    options: CompileOptions,
    stack: int = 0,
    strips: str = "",
) -> None:
    """Refuse a memory plan that does not fit.

    Args:
        program: With its plan.
        target: What for.
        options: Limits.
        stack: Bytes of stack, if they are known yet.
        strips: The best that computing the first stages in strips of rows could do, in words.

    Raises:
        QualityError: It does not fit; says what is in memory at the fullest step.
    """
    limit = ram_limit(target, options)
    needed = ram_needed(program, stack)
    if not limit or needed <= limit:
        return
    ports = [
        *((f"input {port.name}", port.type.nbytes) for port in program.inputs),
        *((f"output {port.name}", port.type.nbytes) for port in program.outputs),
    ]
    parts = [*ports, ("arena", arena_bytes(program))]
    if stack:
        parts.append(("stack", stack))
    lines = [*_lines(parts), *_fullest(program)]
    if strips:
        lines.append(f"first stages in strips of rows do not fit either; smallest: {strips}")
    raise QualityError(
        f"the model needs {needed - limit} bytes of RAM more than there are",
        where=program.name,
        expected=f"at most {limit} bytes",
        got=f"{needed} bytes\n  " + "\n  ".join(lines),
        hint="a smaller input, fewer channels in the layers named here, or 8 instead of more bits "
        "make these tensors smaller",
    )


def _fullest(program: Program) -> list[str]:
    """What is in the arena at the step that needs most, largest first."""
    peak = cast("dict[str, Any]", program.metadata["peak"])
    live = [(str(row["name"]), int(row["bytes"])) for row in peak["live"]]
    lines = [f"in the arena at step {peak['step']} ({peak['region']}):", *_lines(live[:_SHOWN])]
    if peak["shared_bytes"]:
        lines += _lines([("less what a result shares with its input", -peak["shared_bytes"])])
    if peak["order_proven"]:
        needed = peak["order_bound_bytes"]
        lines.append(f"no order of the layers needs less than {needed} bytes of arena")
    return lines


def check_flash(
    program: Program, code: int, flash: int, target: Target, options: CompileOptions
) -> None:
    """Refuse a library that does not fit.

    Args:
        program: With its weights.
        code: Bytes of machine code.
        flash: Bytes of everything that is read-only.
        target: What for.
        options: Limits.

    Raises:
        QualityError: It does not fit; names the largest tensors of weights.
    """
    limit = options.flash or target.flash_bytes
    if not limit or flash <= limit:
        return
    weights = program.weights.nbytes
    parts = [("code", code), ("weights", weights), ("tables", flash - code - weights)]
    raise QualityError(
        f"the model needs {flash - limit} bytes of flash more than there are",
        where=program.name,
        expected=f"at most {limit} bytes",
        got=f"{flash} bytes\n  " + "\n  ".join([*_lines(parts), *_lines(_largest(program))]),
        hint="--quantize int8, --prune, or --optimize size make it smaller",
    )


def _largest(program: Program) -> list[tuple[str, int]]:
    """The steps that read most weights."""
    blocks = dict(program.weight_blocks)
    sizes: dict[str, int] = {}
    for call in program.calls:
        offsets = {p.offset for p in call.pointers if p.storage.value == "weights"}
        size = sum(blocks.get(offset, 0) for offset in offsets)
        sizes[call.region] = sizes.get(call.region, 0) + size
    found = sorted(sizes.items(), key=lambda item: -item[1])
    return [(f"weights of {name}", size) for name, size in found[:_SHOWN] if size]


def _lines(parts: Sequence[tuple[str, int]]) -> list[str]:
    return [f"{size:>10} {name}" for name, size in parts]
