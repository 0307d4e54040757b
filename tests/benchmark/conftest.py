"""A benchmark program whose model takes known times: its clock is advanced by the model itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from toy_model import toy_program

from effc import zig
from effc.devices.catalog import get_target
from effc.link import link_runner
from effc.program import Call, Pointer, StorageClass

# Replaces the C library's clock; a run adds the next entry of the table to it.
CLOCK = """
#include <stdint.h>
struct timespec {{ long long tv_sec; long tv_nsec; }};
static uint64_t virtual_ns, runs;
static const uint64_t table[] = {{ {table} }};
int clock_gettime(int clock, struct timespec *t)
{{
    t->tv_sec = virtual_ns / 1000000000u;
    t->tv_nsec = virtual_ns % 1000000000u;
    return 0;
}}
int clock_nanosleep(int clock, int flags, const struct timespec *t, struct timespec *left)
{{
    uint64_t until = (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec;
    virtual_ns = until > virtual_ns ? until : virtual_ns;
    return 0;
}}
void timed_k0(const float *x, int32_t begin, int32_t end)
{{
    virtual_ns += table[runs++ % (sizeof table / sizeof *table)];
}}
"""

Ask = Callable[..., dict[str, Any]]


def build_timed(folder: Path, table: Sequence[int]) -> Ask:
    """The program whose n-th inference takes ``table[n]`` nanoseconds; runs it with arguments."""
    target = get_target("host")
    source = folder / "clock.c"
    source.write_text(CLOCK.format(table=", ".join(map(str, table))))
    flags = [f"--target={target.clang_target}", "-O1", "-fPIC", "-w", "-c", str(source)]
    zig.clang([*flags, "-o", str(folder / "clock.o")])
    program = toy_program("timed")
    program.calls = (Call("timed_k0", (Pointer(StorageClass.INPUT),), 1, "wait", ("n",)),)
    built = link_runner(program, [folder / "clock.o"], target, folder / "timed")

    def ask(*arguments: object) -> dict[str, Any]:
        done = subprocess.run(
            [str(built), *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return ask


@pytest.fixture(scope="session")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[int]], Ask]:
    """``timed(table)``: see :func:`build_timed`."""
    return lambda table: build_timed(tmp_path_factory.mktemp("timed"), table)
