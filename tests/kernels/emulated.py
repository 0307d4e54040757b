"""Runs kernels of other processors under QEMU.

The kernels of all regions become one static program: it reads their inputs and weights from a
file, calls the stages in two parts, and writes the outputs. Every tensor ends where an
unreadable page begins.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from single_op import Arrays

from effc.devices.catalog import get_target
from effc.devices.qemu import qemu_command
from effc.devices.target import Target
from effc.kernels.region import Region
from effc.kernels.template import Kernel
from effc.lower import lower

__all__ = ["Case", "arm64", "run_emulated"]

_MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
static void *block(size_t size) {{
  size_t whole = (size + 4095) / 4096 * 4096;
  char *p = mmap(0, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED || mprotect(p + whole, 4096, PROT_NONE)) return 0;
  return p + whole - (size + 3) / 4 * 4;
}}
{declarations}
int main(int argc, char **argv) {{
  (void)argc;
  FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
  if (!in || !out) return 1;
{body}
  return fclose(out) != 0;
}}
"""


@dataclass(frozen=True)
class Case:
    """A kernel, its region and values of the region's inputs."""

    kernel: Kernel
    region: Region
    inputs: Arrays


def arm64(cpu: str, *features: str) -> Target:
    """64-bit Arm with the given CPU name and features."""
    return replace(get_target("linux-arm64"), cpu=cpu, features=("+neon", *features))


def run_emulated(cases: Sequence[Case], target: Target) -> list[np.ndarray]:
    """The first output of every case."""
    functions, declarations, body = {}, [], []
    data = b""
    for number, case in enumerate(cases):
        arrays = {**case.inputs, **{f"w:{n}": a for n, a in case.kernel.weights.items()}}
        sizes = {name: a.nbytes for name, a in arrays.items()}
        data += b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
        sizes |= {f"t:{name}": size for name, size in case.kernel.workspaces.items()}
        sizes |= {v.name: v.type.nbytes for v in case.region.outputs}
        sizes["scratch"] = max(stage.scratch for stage in case.kernel.stages)
        names = {name: f"b{number}_{i}" for i, name in enumerate(sizes)}
        for i, (name, size) in enumerate(sizes.items()):
            body.append(f"  char *{names[name]} = block({max(size, 1)});")
            if i < len(arrays):
                body.append(f"  if (fread({names[name]}, 1, {size}, in) != {size}) return 2;")
        for i, stage in enumerate(case.kernel.stages):
            symbol = f"k{number}_{i}"
            functions[symbol] = stage.func
            types = ", ".join(["void *"] * len(stage.args))
            declarations.append(f"void {symbol}({types}, int32_t, int32_t);")
            pointers = ", ".join(names[ref] for ref in stage.args)
            middle = stage.extent // 2
            body.append(f"  {symbol}({pointers}, {middle}, {stage.extent});")
            body.append(f"  {symbol}({pointers}, 0, {middle});")
        result = case.region.outputs[0]
        body.append(f"  fwrite({names[result.name]}, 1, {result.type.nbytes}, out);")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _MAIN.format(declarations="\n".join(declarations), body="\n".join(body))
        (folder / "main.c").write_text(source)
        (folder / "k.o").write_bytes(lower(functions, target))
        (folder / "in").write_bytes(data)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", target.runner_target]
        command += ["-static", "-o", str(folder / "run"), str(folder / "main.c")]
        subprocess.run([*command, str(folder / "k.o")], check=True, capture_output=True)
        program = [*qemu_command(target), str(folder / "run")]
        subprocess.run([*program, str(folder / "in"), str(folder / "out")], check=True)
        raw = (folder / "out").read_bytes()
    found, at = [], 0
    for case in cases:
        value = case.region.outputs[0]
        part = raw[at : at + value.type.nbytes]
        found.append(np.frombuffer(part, value.dtype).reshape(value.shape))
        at += value.type.nbytes
    return found
