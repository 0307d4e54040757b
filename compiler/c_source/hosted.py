"""A model's C source as a library for this machine, for ``effc run``, ``verify`` and ``bench``.

The sources are compiled as they are in the artifact; around them a small program is linked, whose
steps are the model's own steps, so that the usual runtime times and looks at each of them. The
library is kept in the user's cache under a digest of the sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effc import zig
from effc.c_source.toolchain import C11_FLAGS, libc_headers
from effc.devices.catalog import get_target
from effc.kernels.region import TensorType
from effc.link import link_library
from effc.program import Call, Pointer, Port, Program, StorageClass

__all__ = ["Hosted", "hosted_library"]

_FLAGS = ("-O2", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections")


@dataclass(frozen=True)
class Hosted:
    """A library for this machine and the manifest that describes it."""

    library: Path
    manifest: Mapping[str, Any]


def hosted_library(source: Path, manifest: Mapping[str, Any]) -> Hosted:
    """Compile an artifact's C source for this machine.

    Args:
        source: The artifact's ``library``, ``src/NAME.c``.
        manifest: Its manifest.

    Raises:
        ToolError: The compiler is missing or refuses the source.
    """
    target = get_target("host")
    name = str(manifest["name"])
    sources = sorted(source.parent.glob("*.c"))
    include = source.parent.parent / "include"
    files = [*sources, *sorted(source.parent.glob("*.h")), *sorted(include.glob("*.h"))]
    texts = [part for file in files for part in (file.name, file.read_text("utf-8"))]
    program = _program(manifest)

    def build(folder: Path) -> None:
        adapter = folder / f"{name}_adapter.c"
        adapter.write_text(_adapter(program, len(manifest["steps"])), "utf-8")
        renamed = [f"-D{name}_{f}={name}_source_{f}" for f in ("run", "step")]
        flags = [f"--target={target.clang_target}", *C11_FLAGS, *_FLAGS, *renamed]
        paths = [f"-I{source.parent}", f"-I{include}", *libc_headers(target.arch)]
        objects = []
        for file in (*sources, adapter):
            objects.append(folder / f"{file.stem}.o")
            command = [*flags, *paths, "-c", str(file), "-o", objects[-1].name]
            zig.clang(command, cwd=folder)
        link_library(program, objects, target, folder / f"lib{name}.so")

    key = ("hosted", target.clang_target, *C11_FLAGS, *_FLAGS, *texts)
    folder = zig.cached(key, build)
    described = {**manifest, "target": target.name, "machine": _machine(target), "threads": 1}
    return Hosted(folder / f"lib{name}.so", described)


def _machine(target: Any) -> dict[str, Any]:
    return {
        "arch": target.arch,
        "os": target.os,
        "triple": target.triple,
        "cpu": "",
        "features": [],
        "android_api": None,
    }


def _program(manifest: Mapping[str, Any]) -> Program:
    """One call per step of the source; each is given all inputs, outputs and the arena."""
    inputs, outputs = (
        tuple(Port(p["name"], TensorType(tuple(p["shape"]), p["dtype"])) for p in manifest[kind])
        for kind in ("inputs", "outputs")
    )
    pointers = (
        *(Pointer(StorageClass.INPUT, i) for i in range(len(inputs))),
        *(Pointer(StorageClass.OUTPUT, i) for i in range(len(outputs))),
        Pointer(StorageClass.ARENA),
    )
    name = manifest["name"]
    calls = tuple(
        Call(f"{name}_source_{i}", pointers, 1, region, ())
        for i, region in enumerate(manifest["steps"])
    )
    arena = int(manifest["arena_bytes"])
    return Program(name, inputs, outputs, calls, np.zeros(0, np.uint8), arena, arena, 0)


def _adapter(program: Program, steps: int) -> str:
    """C source: a function per step with pointers one by one."""
    inputs = [f"i{i}" for i in range(len(program.inputs))]
    outputs = [f"o{i}" for i in range(len(program.outputs))]
    lines = [f'#include "{program.name}.h"', ""]
    names = ", ".join(f"void *{name}" for name in (*inputs, *outputs, "arena"))
    for number in range(steps):
        head = f"void {program.name}_source_{number}({names}, int32_t begin, int32_t end)"
        lines += [
            f"{head};",
            head,
            "{",
            f"    const void *const in[] = {{{_list(inputs)}}};",
            f"    void *const out[] = {{{_list(outputs)}}};",
            "    (void)begin;",
            "    (void)end;",
            f"    (void){program.name}_step({number}, in, out, arena);",
            "}",
        ]
    return "\n".join(lines) + "\n"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "0"
