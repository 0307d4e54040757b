"""Hand-made programs with stage functions in C, for tests of the runtime and the linker."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from effc import zig
from effc.codegen import generate_c
from effc.codegen_weights import weights_file
from effc.devices.target import Target
from effc.kernels.region import TensorType
from effc.program import Call, Pointer, Port, Program, StorageClass

# y = tanh(x) * w into the arena, then out = y + x through scratch, then s = sum(out).
STAGES = """
#include <stdint.h>
extern float tanhf(float);
void {name}_k0(const float *x, const float *w, float *y, int32_t begin, int32_t end) {{
    for (int32_t i = begin * 4; i < end * 4; i++) y[i] = tanhf(x[i]) * w[i];
}}
void {name}_k1(const float *y, const float *x, float *t, float *out, int32_t begin, int32_t end) {{
    for (int32_t u = begin; u < end; u++) {{
        for (int32_t i = 0; i < 4; i++) t[i] = y[u * 4 + i] + x[u * 4 + i];
        for (int32_t i = 0; i < 4; i++) out[u * 4 + i] = t[i];
    }}
}}
void {name}_k2(const float *out, float *s, int32_t begin, int32_t end) {{
    for (int32_t u = begin; u < end; u++) {{
        float sum = 0;
        for (int32_t i = 0; i < {size}; i++) sum += out[i];
        *s = sum;
    }}
}}
"""


def toy_program(name: str = "toy", units: int = 10, *, bounds: bool = False) -> Program:
    """Three steps over ``4 * units`` floats; uses every storage class."""
    size = 4 * units
    weights = np.arange(size, dtype=np.float32).view(np.uint8)
    io = Pointer(StorageClass.INPUT)
    out = Pointer(StorageClass.OUTPUT)
    arena = Pointer(StorageClass.ARENA, offset=64)
    split = tuple(np.cumsum([0, *range(1, units + 1)]).tolist()) if bounds else None
    calls = (
        Call(f"{name}_k0", (io, Pointer(StorageClass.WEIGHTS), arena), units, "mul", ("m/Tanh",)),
        Call(
            f"{name}_k1",
            (arena, io, Pointer(StorageClass.SCRATCH), out),
            units,
            "add",
            ("a", "b"),
            split,
        ),
        Call(f"{name}_k2", (out, Pointer(StorageClass.OUTPUT, 1)), 1, "sum", ("s",)),
    )
    return Program(
        name=name,
        inputs=(Port('in "x"', TensorType((units, 4), "float32")),),
        outputs=(
            Port("out", TensorType((units, 4), "float32")),
            Port("sum", TensorType((), "float32")),
        ),
        calls=calls,
        weights=weights,
        arena_bytes=64 + size * 4,
        arena_lower_bound_bytes=64 + size * 4,
        scratch_bytes=16,
    )


def toy_reference(x: np.ndarray) -> np.ndarray:
    """What the toy program's first output must be."""
    w = np.arange(x.size, dtype=np.float32).reshape(x.shape)
    return np.tanh(x) * w + x


def toy_source(name: str = "toy", units: int = 10) -> str:
    """C source of the stage functions."""
    return STAGES.format(name=name, size=4 * units)


def toy_object(target: Target, folder: Path, name: str = "toy", units: int = 10) -> bytes:
    """Stage functions compiled for a target."""
    source = folder / f"{name}_stages.c"
    source.write_text(toy_source(name, units))
    out = folder / f"{name}_stages.{target.name}.o"
    zig.clang(
        [
            f"--target={target.clang_target}",
            *("-O2", "-fPIC", "-fno-asynchronous-unwind-tables", "-ffunction-sections"),
            *("-c", str(source), "-o", str(out)),
        ]
    )
    return out.read_bytes()


def native_program(
    folder: Path, programs: Sequence[Program], sources: Sequence[Path], flags: Sequence[str]
) -> Path:
    """Build runtime, generated code, stages and more sources with the system's C compiler.

    Unlike ``effc.link`` this can add sanitizers: everything is compiled from source.

    Args:
        folder: Receives the generated files and the program.
        programs: Toy programs.
        sources: Further C files, one with ``main``.
        flags: Compiler flags.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no system C compiler (cc)")
    core = Path(str(resources.files("effc.runtimes"))) / "core"
    files = [*sources, core / "model.c", core / "pool.c", core / "processor.c"]
    for program in programs:
        for name, text in generate_c(program).items():
            (folder / name).write_text(text)
        program.weights.tofile(folder / weights_file(program))
        stages = folder / f"{program.name}_stages.c"
        stages.write_text(toy_source(program.name, program.inputs[0].type.shape[0]))
        files += [folder / f"{program.name}.c", folder / f"{program.name}_weights.S", stages]
    out = folder / "program"
    warnings = ("-Wall", "-Wextra", "-Werror")
    includes = (f"-I{folder}", f"-I{core}")
    inputs = (*map(str, files), "-lm", "-lpthread")
    done = subprocess.run(
        [compiler, "-std=c11", "-g", "-O1", *warnings, *flags, *includes, *inputs, "-o", str(out)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out
