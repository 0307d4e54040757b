"""Stage functions printed as C, compiled here and called."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from c_compilers import compile_c, whole_text

from effc.c_source.module import print_stages
from effc.kernels.builder import Param, stage_func
from effc.kernels.template import Stage

_UNDEFINED = "-fsanitize=undefined"
_TRAPS = {"gcc": "-fsanitize-undefined-trap-on-error", "clang": "-fsanitize-trap=undefined"}


def stage(params: Sequence[Param], body: Any, extent: int = 1) -> Stage:
    """A stage with those parameters."""
    return Stage(stage_func(params, body), tuple(name for name, _, _ in params), extent)


def call(one: Stage, arrays: Sequence[np.ndarray], compiler: str = "gcc") -> str:
    """Run a stage on arrays, undefined behaviour trapped; its C."""
    source = print_stages({"k": one})
    text = whole_text(source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "k.c").write_text(text)
        flags = ("-O1", "-fPIC", "-shared", _UNDEFINED, _TRAPS[compiler])
        compile_c(compiler, [folder / "k.c"], folder / "k.so", *flags)
        function = ctypes.CDLL(str(folder / "k.so")).k
        function(*(ctypes.c_void_p(a.ctypes.data) for a in arrays))
    return source.functions["k"]
