"""A whole model as C11 source: kernels, weights, steps, header.

``NAME_kernels.c`` has one function per kind of layer, ``NAME_weights.c`` one constant array per
tensor, ``NAME.c`` the steps that ``effc.bare.codegen`` prints for every microcontroller;
``NAME_kernels.h`` is between them. Nothing else is needed to compile them: no runtime, no
options. The processor must be little-endian and have an ``int`` of 32 bits.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from effc.bare.archive import loaded_bytes, stack_bytes
from effc.bare.codegen import ALIGNMENT, MemorySizes, bare_header, bare_source
from effc.bare.toolchain import compile_source
from effc.c_source.module import KernelSource
from effc.c_source.toolchain import libc_headers
from effc.c_source.types import c_type, constant
from effc.devices.catalog import get_target
from effc.errors import InternalError
from effc.link import LinkReport
from effc.program import Call, Program, StorageClass

__all__ = ["link_source"]

_COLUMNS = 100

_PLATFORM = """\
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "this code is for little-endian processors"
#endif
_Static_assert(sizeof(int) >= 4, "int has at least 32 bits");
"""


_REFERENCE_CORE = "cortex-m4"
_MEASURED = "As Clang -Os makes it for a Cortex-M4: other compilers and processors differ."


def link_source(program: Program, kernels: KernelSource, out: Path) -> LinkReport:
    """Write a model's sources, and check that they compile.

    Args:
        program: What ``run`` does, with the weights.
        kernels: Its stage functions.
        out: ``src/NAME.c``; the other files are written beside it.

    Returns:
        Sizes of the code as compiled for a Cortex-M4, and the header, which says them.

    Raises:
        ToolError: The toolchain is missing or refuses the source.
    """
    name = program.name
    weights = _weights_of(program, kernels)
    texts = {
        f"{name}.c": bare_source(program, _SourceStages(weights)),
        f"{name}_kernels.h": _kernels_header(program, kernels, weights),
        f"{name}_kernels.c": _kernels_source(program, kernels),
        f"{name}_weights.c": _weights_source(program, weights),
    }
    for file, text in texts.items():
        (out.parent / file).write_text(text, "utf-8")
    contents = _reference_objects(program, out.parent)
    code, constants = loaded_bytes(contents)
    sizes = MemorySizes(code, constants, stack_bytes(program, contents, weights.arrays))
    return LinkReport(
        path=out,
        library_bytes=sum(len(text.encode()) for text in texts.values()),
        code_bytes=code,
        runtime_bytes=0,
        weights_bytes=program.weights.nbytes,
        needed=(),
        undefined=(),
        page_bytes=0,
        flash_bytes=code + constants,
        stack_bytes=sizes.stack,
        headers={f"{name}.h": bare_header(program, sizes, _MEASURED)},
    )


def _reference_objects(program: Program, sources: Path) -> list[bytes]:
    """The sources compiled for a small processor: what sizes are given for."""
    target = get_target(_REFERENCE_CORE)
    found = []
    with tempfile.TemporaryDirectory(prefix="effc-c-") as folder:
        work = Path(folder)
        (work / f"{program.name}.h").write_text(bare_header(program, MemorySizes(0, 0, 0)), "utf-8")
        for source in sorted(sources.glob("*.c")):
            out = work / f"{source.stem}.o"
            compile_source(source, target, out, [f"-I{folder}", *libc_headers("arm")], level="-Os")
            found.append(out.read_bytes())
    return found


@dataclass(frozen=True)
class _Weights:
    """Constant arrays, one for each tensor of packed weights.

    Attributes:
        arrays: By C name, in the order of their offsets.
        names: C name by offset in ``Program.weights``.
    """

    arrays: Mapping[str, np.ndarray]
    names: Mapping[int, str]


@dataclass(frozen=True)
class _SourceStages:
    """Stage functions that compute all of their units; see ``bare.codegen.Stages``."""

    arrays: _Weights

    def declarations(self, program: Program) -> Iterable[str]:
        """See ``Stages``."""
        yield f'#include "{program.name}_kernels.h"'

    def call(self, call: Call, arguments: Sequence[str]) -> str:
        """See ``Stages``."""
        return f"{call.symbol}({', '.join(arguments)})"

    def weights(self, offset: int) -> str:
        """See ``Stages``.

        Raises:
            InternalError: No tensor begins there.
        """
        if offset not in self.arrays.names:
            raise InternalError("no tensor of weights begins there", got=offset)
        return self.arrays.names[offset]


def _weights_of(program: Program, kernels: KernelSource) -> _Weights:
    """The weights, each with the element type that the kernels read."""
    dtypes: dict[int, str] = {}
    for call in program.calls:
        for pointer, dtype in zip(call.pointers, kernels.parameters[call.symbol], strict=True):
            if pointer.storage is StorageClass.WEIGHTS:
                known = dtypes.setdefault(pointer.offset, dtype)
                if np.dtype(dtype).itemsize > np.dtype(known).itemsize:
                    dtypes[pointer.offset] = dtype  # bytes may be read of any array
    arrays: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}
    for offset, nbytes in sorted(program.weight_blocks):
        if offset not in dtypes:
            continue
        name = f"{program.name}_w{len(names)}"
        names[offset] = name
        arrays[name] = program.weights[offset : offset + nbytes].view(dtypes[offset])
    return _Weights(arrays, names)


def _kernels_header(program: Program, kernels: KernelSource, weights: _Weights) -> str:
    """``NAME_kernels.h``: declarations that the other files share."""
    guard = f"EFFC_KERNELS_{program.name}_H"
    arrays = (
        f"extern const {c_type(str(array.dtype))} {name}[{array.size}];"
        for name, array in weights.arrays.items()
    )
    return "\n".join(
        [
            f"/* {program.name}_kernels.h - layers and weights of the model '{program.name}'.",
            " * Generated by effc. */",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            "#include <stdint.h>",
            "",
            _PLATFORM,
            *(f"{declaration};" for declaration in kernels.declarations.values()),
            "",
            *arrays,
            "",
            "#endif",
            "",
        ]
    )


def _kernels_source(program: Program, kernels: KernelSource) -> str:
    """``NAME_kernels.c``: the functions, each with what it computes."""
    users: dict[str, list[Call]] = {}
    for call in program.calls:
        users.setdefault(call.symbol, []).append(call)
    parts = [
        f"/* {program.name}_kernels.c - layers of the model. Generated by effc. */",
        f'#include "{program.name}_kernels.h"',
        "",
        *(f"#include <{header}>" for header in kernels.headers),
        *([""] if kernels.headers else []),
    ]
    text = "\n".join(parts) + "\n"
    if kernels.helpers:
        text += kernels.helpers + "\n"
    functions = [
        _comment(users.get(symbol, ())) + function for symbol, function in kernels.functions.items()
    ]
    return text + "\n".join(functions)


def _comment(calls: Iterable[Call]) -> str:
    """Which layers a function computes, by region and ONNX node."""
    names = [
        f"{call.region}: {', '.join(call.nodes)}" if call.nodes else call.region for call in calls
    ]
    lines = [re.sub(r"[^\x20-\x7e]|\*/|/\*|\\|\?\?", "_", name) for name in dict.fromkeys(names)]
    return "/* " + "\n * ".join(line[: _COLUMNS - 3] for line in lines) + " */\n" if lines else ""


def _weights_source(program: Program, weights: _Weights) -> str:
    """``NAME_weights.c``: read-only arrays, each aligned for any kernel."""
    lines = [
        f"/* {program.name}_weights.c - weights of the model. Generated by effc. */",
        f'#include "{program.name}_kernels.h"',
        "",
    ]
    if any(_needs_math(array) for array in weights.arrays.values()):
        lines += ["#include <math.h>", ""]
    for name, array in weights.arrays.items():
        dtype = str(array.dtype)
        lines.append(f"_Alignas({ALIGNMENT}) const {c_type(dtype)} {name}[{array.size}] = {{")
        lines += _rows([constant(v, dtype) for v in array.tolist()])
        lines += ["};", ""]
    return "\n".join(lines)


def _needs_math(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and not np.isfinite(array).all()


def _rows(texts: list[str]) -> Iterable[str]:
    """Elements in rows of equal numbers that fit the line."""
    widest = max(map(len, texts), default=0)
    count = max((_COLUMNS - 4) // (widest + 2), 1)
    for start in range(0, len(texts), count):
        yield f"    {', '.join(texts[start : start + count])},"
