"""Stage functions printed as C, compiled here and called."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from programs import COMPILERS, STRICT

from effc.c_source.module import KernelSource, print_stages
from effc.kernels.builder import Param, stage_func
from effc.kernels.template import Stage

_UNDEFINED = "-fsanitize=undefined"
_TRAPS = {"gcc": "-fsanitize-undefined-trap-on-error", "clang": "-fsanitize-trap=undefined"}


def stage(params: Sequence[Param], body: Any, extent: int = 1) -> Stage:
    """A stage with those parameters."""
    return Stage(stage_func(params, body), tuple(name for name, _, _ in params), extent)


def whole_text(source: KernelSource) -> str:
    """One file that compiles."""
    includes = "".join(f"#include <{h}>\n" for h in ("stdint.h", *source.headers))
    declared = "".join(f"{d};\n" for d in source.declarations.values())
    return f"{includes}\n{declared}\n{source.helpers}\n" + "\n".join(source.functions.values())


def call(one: Stage, arrays: Sequence[np.ndarray], compiler: str = "gcc") -> str:
    """Run a stage on arrays, undefined behaviour trapped; its C."""
    source = print_stages({"k": one})
    text = whole_text(source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "k.c").write_text(text)
        command = [*COMPILERS[compiler], *STRICT, "-O1", "-fPIC", "-shared", _UNDEFINED]
        command += [_TRAPS[compiler], "-o", str(folder / "k.so"), str(folder / "k.c"), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr[:1500]}\n{text}"
        function = ctypes.CDLL(str(folder / "k.so")).k
        function(*(ctypes.c_void_p(a.ctypes.data) for a in arrays))
    return source.functions["k"]
