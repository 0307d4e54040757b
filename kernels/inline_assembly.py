"""Inner loops in assembly, for processors whose registers LLVM does not fill well.

A ``Routine`` is a short piece of assembly over accumulators, pointers and temporaries. It is
written as an LLVM function that wraps one ``asm`` expression; TVM links it to the module
(``pragma_import_llvm``) and LLVM inlines it, so accumulators stay in registers and every other
register is LLVM's to spill. Thirteen of Thumb's fourteen registers are busy in an inner product
of two positions by two filters: LLVM's own loop needs 1.20 instructions per product, with
reloads and one load per word; the same loop by hand needs 0.97.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx

from effc.kernels.builder import T

__all__ = ["Routine", "importing"]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class Routine:
    """A piece of assembly.

    Attributes:
        name: Unique for its text: functions with the same name in one module are the same.
        sums: Names of int32 accumulators: read, and written back.
        pointers, numbers: Names of operands in registers, which the text may change.
        inputs: Names of int32 operands that the text only reads.
        temporaries: Names of further registers.
        text: Instructions, one per line, with ``{name}`` for a register; labels are numbers.
        places: Where the accumulators lie behind each other in the caller's buffer.
        clobbers: Registers beside the named ones (LLVM names).
        even: Names of those that need registers of even number.
        low: Names of operands that need one of the registers r0 to r7.
    """

    name: str
    sums: tuple[str, ...]
    pointers: tuple[str, ...]
    numbers: tuple[str, ...]
    temporaries: tuple[str, ...]
    text: str
    inputs: tuple[str, ...] = ()
    places: tuple[int, ...] = (0, 1, 2, 3)
    clobbers: tuple[str, ...] = ()
    even: tuple[str, ...] = ()
    low: tuple[str, ...] = ()

    def call(self, *operands: Expr) -> None:
        """Emit a call.

        Args:
            operands: The address (``T.address_of``) of accumulators, if there are any; then those
                of pointers, int32 numbers and inputs, in order.
        """
        T.evaluate(tirx.call_extern("void", self.name, *operands))

    @property
    def ir(self) -> str:
        """The LLVM function."""
        tied = [*self.sums, *self.pointers, *self.numbers]
        kinds = ["i32"] * len(self.sums) + ["ptr"] * len(self.pointers)
        kinds += ["i32"] * (len(self.numbers) + len(self.temporaries))
        names = [*tied, *self.temporaries]
        operands = [*zip(kinds, tied, strict=False), *(("i32", name) for name in self.inputs)]
        places = {name: i for i, name in enumerate(names)}
        places |= {n: len(names) + len(tied) + i for i, n in enumerate(self.inputs)}
        registers = {name: f"${place}" for name, place in places.items()}
        lines = [line.strip() for line in self.text.strip().splitlines()]
        text = "\\0A".join(line.format(**registers) for line in lines)
        kind = dict.fromkeys(self.even, "^Te") | dict.fromkeys(self.low, "l")
        constraints = [f"=&{kind.get(name, 'r')}" for name in names]
        constraints += [str(i) for i in range(len(tied))] + ["r"] * len(self.inputs)
        constraints += [f"~{{{name}}}" for name in (*self.clobbers, "cc", "memory")]
        given = operands[len(self.sums) :]
        head = ["ptr %sums"] if self.sums else []
        parameters = ", ".join([*head, *(f"{kind} %{name}" for kind, name in given)])
        result = "{" + ", ".join(kinds) + "}"
        arguments = ", ".join(f"{kind} %{name}" for kind, name in operands)
        body = []
        for i, name in enumerate(self.sums):
            body.append(f"%p{i} = getelementptr i32, ptr %sums, i32 {self.places[i]}")
            body.append(f"%{name} = load i32, ptr %p{i}")
        asm = f'asm sideeffect "{text}", "{",".join(constraints)}"'
        body.append(f"%r = call {result} {asm}({arguments})")
        for i in range(len(self.sums)):
            body.append(f"%r{i} = extractvalue {result} %r, {i}")
            body.append(f"store i32 %r{i}, ptr %p{i}")
        signature = f"define internal void @{self.name}({parameters}) alwaysinline {{"
        return "\n".join([signature, *body, "ret void", "}"])


@contextmanager
def importing(routines: Sequence[Routine]) -> Iterator[None]:
    """Make routines known to the stage function that is built inside."""
    with ExitStack() as stack:
        for routine in routines:
            text = tvm.ir.StringImm(routine.ir)
            stack.enter_context(T.attr(tirx.const(0, "int32"), "pragma_import_llvm", text))
        yield
