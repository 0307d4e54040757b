"""The weights of a model: a section of the library, or a file that it is given; see ``codegen``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from effc.program import Program

__all__ = [
    "ALIGNMENT",
    "WEIGHTS_HEADER_BYTES",
    "weights_assembly",
    "weights_declaration",
    "weights_file",
    "weights_header",
]

ALIGNMENT = 64
"""Of arena and weights, bytes."""

WEIGHTS_HEADER_BYTES = 64
"""What stands before the weights in a file, see ``runtimes/core/program.h``."""


def weights_file(program: Program) -> str:
    """Name of the raw weights file that the assembly file includes."""
    return f"{program.name}.weights"


def weights_header(program: Program) -> bytes:
    """What a file of weights begins with, see ``runtimes/core/program.h``."""
    data = program.weights
    fields = (b"EFFCWTS1", data.nbytes.to_bytes(8, "little"), hashlib.sha256(data.data).digest())
    return b"".join(fields).ljust(WEIGHTS_HEADER_BYTES, b"\0")


def weights_declaration(program: Program) -> Iterable[str]:
    """C lines: the weights in the library, or what a file of them begins with."""
    if not program.weights_in_file:
        yield f"extern const uint8_t {program.name}_weights[];"
        return
    header = ", ".join(map(str, weights_header(program)))
    yield f"static const uint8_t weights_header[EFFC_WEIGHTS_HEADER] = {{{header}}};"


def weights_assembly(program: Program) -> str:
    """Read-only weights; a C array of this size would take the compiler minutes."""
    symbol = f"{program.name}_weights"
    lines = [
        "#ifdef __APPLE__",
        "    .section __TEXT,__const",
        f"    .globl _{symbol}",
        f"    .private_extern _{symbol}",
        f"    .balign {ALIGNMENT}",
        f"_{symbol}:",
        f'    .incbin "{weights_file(program)}"',
        "#else",
        f'    .section .rodata.{symbol}, "a", %progbits',
        f"    .global {symbol}",
        f"    .hidden {symbol}",
        f"    .type {symbol}, %object",
        f"    .balign {ALIGNMENT}",
        f"{symbol}:",
        f'    .incbin "{weights_file(program)}"',
        f"    .size {symbol}, . - {symbol}",
        '    .section .note.GNU-stack, "", %progbits',
        "#endif",
    ]
    return "\n".join(lines) + "\n"
