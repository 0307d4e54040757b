"""C compilers of this machine, as strict as printed C has to stand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from effc.c_source.module import KernelSource

__all__ = ["COMPILERS", "SANITIZERS", "STRICT", "compile_c", "whole_text"]

STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror")
COMPILERS = {"gcc": ["gcc"], "clang": [sys.executable, "-m", "ziglang", "cc"]}
SANITIZERS = {  # zig brings no AddressSanitizer
    "gcc": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "clang": ("-fsanitize=undefined", "-fno-sanitize-recover=all"),
}


def whole_text(source: KernelSource) -> str:
    """Printed stages as one file that compiles."""
    includes = "".join(f"#include <{h}>\n" for h in ("stdint.h", *source.headers))
    declared = "".join(f"{d};\n" for d in source.declarations.values())
    return f"{includes}\n{declared}\n{source.helpers}\n" + "\n".join(source.functions.values())


def compile_c(compiler: str, files: list[Path], out: Path, *flags: str) -> Path:
    """Compile and link, warnings as errors.

    Args:
        compiler: One of ``COMPILERS``.
        files: Sources.
        out: What to write.
        flags: Further options.
    """
    command = [*COMPILERS[compiler], *STRICT, *flags, "-o", str(out), *map(str, files), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return out
