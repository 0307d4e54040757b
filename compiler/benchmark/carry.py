"""One executable that carries a model and measures it: the benchmark program of an artifact.

It is the program that ``effc bench`` starts (``runtimes/runner/``), static, with the artifact's
library and weights behind it in the same file. It runs wherever its instructions do, by hand
too: ``adb push``, ``chmod +x``, ``./bench --runs 100 --machine``.
"""

from __future__ import annotations

import struct
from pathlib import Path

from effc.artifact import Artifact
from effc.devices.catalog import get_target
from effc.emulate import loader_program
from effc.errors import UnsupportedError

__all__ = ["carrying_program"]

_PAGE = 1 << 16
"""Largest page of any Linux; mapped parts begin at its multiples."""
_TRAILER = struct.Struct("<8s3Q")


def carrying_program(artifact: Artifact, out: Path) -> int:
    """Write the program; its size in bytes.

    Raises:
        UnsupportedError: The target runs no Linux or Android programs.
        ToolError: The toolchain is missing or failed.
    """
    target = get_target(str(artifact.manifest["target"]))
    if not target.runner_target:
        raise UnsupportedError(
            "no benchmark program can be made for this target",
            where=target.name,
            expected="a target that runs Linux or Android",
        )
    weights_name = artifact.manifest["weights_file"]
    parts = [artifact.library.read_bytes()]
    if weights_name:
        parts.append((artifact.folder / weights_name).read_bytes())
    image = bytearray(loader_program(target).read_bytes())
    offsets = []
    for part in parts:
        image += bytes(-len(image) % _PAGE)
        offsets.append(len(image))
        image += part
    library, weights = (*offsets, 0)[:2]
    size = len(parts[1]) if weights_name else 0
    image += _TRAILER.pack(b"EFFCPACK", library, weights, size)
    out.write_bytes(image)
    out.chmod(0o755)
    return len(image)
