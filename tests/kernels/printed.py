"""Runs kernels as printed C, which GCC or Clang compiled with sanitizers.

A kernel becomes a program of its own: it reads blocks of memory, calls the stages, and writes the
blocks back. Every block is allocated in its exact size, so that AddressSanitizer (GCC; ziglang
brings none) sees any access beside it. Warnings are errors.

``--codegen gcc`` or ``clang`` runs all kernel tests this way instead of through LLVM; tests marked
``printed`` run this way besides, always.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from c_compilers import COMPILERS, SANITIZERS, compile_c, whole_text

from effc.c_source.module import print_stages
from effc.kernels.template import Kernel

__all__ = ["CODEGENS", "Block", "Printed", "codegen", "through"]

CODEGENS = ("llvm", *COMPILERS)
"""What can make code of a kernel here."""

Block = tuple[np.ndarray, int]
"""Bytes of an allocation (written back), and how far from a multiple of 16 they begin."""

_MAIN = """
#include <stdio.h>
#include <stdlib.h>
enum { BLOCKS = %(blocks)d, POINTERS = %(pointers)d };
static unsigned char *all[BLOCKS], *block[BLOCKS], *at[POINTERS];
static uint32_t size[BLOCKS];
static uint32_t number(void)
{
    uint32_t value = 0;
    if (fread(&value, sizeof value, 1, stdin) != 1)
        exit(3);
    return value;
}
int main(void)
{
    for (int i = 0; i < BLOCKS; i++) {
        size[i] = number();
        const uint32_t skew = number();
        all[i] = malloc(size[i] + skew);
        block[i] = all[i] + skew;
        if (fread(block[i], 1, size[i], stdin) != size[i])
            return 3;
    }
    for (int i = 0; i < POINTERS; i++) {
        const uint32_t of = number();
        at[i] = block[of] + number();
    }
%(calls)s
    for (int i = 0; i < BLOCKS; i++) {
        fwrite(block[i], 1, size[i], stdout);
        free(all[i]);
    }
    return fflush(stdout) != 0;
}
"""

_current = "llvm"


def codegen() -> str:
    """What makes code of kernels now: one of ``CODEGENS``."""
    return _current


@contextmanager
def through(name: str) -> Iterator[None]:
    """Let ``name`` of ``CODEGENS`` make the code of kernels."""
    global _current
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before


class Printed:
    """The stages of a kernel as C.

    Args:
        kernel: What to print.
        compiler: One of ``programs.COMPILERS``.

    Raises:
        UnsupportedError: The printer refuses a stage.
    """

    def __init__(self, kernel: Kernel, compiler: str) -> None:
        self._stages = kernel.stages
        self._compiler = compiler
        self._source = print_stages({f"k{i}": stage for i, stage in enumerate(kernel.stages)})
        self._programs: dict[int, bytes] = {}

    @cached_property
    def _names(self) -> list[str]:
        """What stages are given, in the order of the program's pointers."""
        return list(dict.fromkeys(name for stage in self._stages for name in stage.args))

    def run(self, blocks: Mapping[str, Block], places: Mapping[str, tuple[str, int]]) -> None:
        """Call all stages in order.

        Args:
            blocks: By name; their bytes are replaced by what the stages leave there.
            places: By name of a stage's argument: its block and its offset there.
        """
        numbers = {name: i for i, name in enumerate(blocks)}
        data = b"".join(
            np.array([array.size, skew], np.uint32).tobytes() + array.tobytes()
            for array, skew in blocks.values()
        )
        where = [(numbers[places[n][0]], places[n][1]) for n in self._names]
        data += np.array(where, np.uint32).tobytes()
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "run"
            program.write_bytes(self._program(len(blocks)))
            program.chmod(0o700)
            done = subprocess.run([str(program)], input=data, capture_output=True, check=False)
        error = done.stderr.decode("utf-8", "replace")
        assert done.returncode == 0, f"{error[:3000]}\n{self._text(len(blocks))}"
        start = 0
        for array, _ in blocks.values():
            array[:] = np.frombuffer(done.stdout, np.uint8, array.size, start)
            start += array.size
        assert start == len(done.stdout)

    def _program(self, blocks: int) -> bytes:
        if blocks not in self._programs:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                (folder / "k.c").write_text(self._text(blocks))
                flags = ("-O2", *SANITIZERS[self._compiler])
                program = compile_c(self._compiler, [folder / "k.c"], folder / "k", *flags)
                self._programs[blocks] = program.read_bytes()
        return self._programs[blocks]

    def _text(self, blocks: int) -> str:
        source = self._source
        calls = []
        for symbol, stage in zip(source.functions, self._stages, strict=True):
            places = [f"(void *)at[{self._names.index(name)}]" for name in stage.args]
            calls.append(f"    {symbol}({', '.join(places)});")
        sizes = {"blocks": blocks, "pointers": len(self._names)}
        return whole_text(source) + _MAIN % {**sizes, "calls": "\n".join(calls)}
