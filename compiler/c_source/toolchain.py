"""How printed C source is compiled here."""

from __future__ import annotations

from effc import zig

__all__ = ["C11_FLAGS", "libc_headers"]

C11_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
"""For GCC and Clang alike: not one warning."""


def libc_headers(arch: str) -> list[str]:
    """Flags for the headers of a C library (musl's): float models include ``<math.h>``."""
    headers = zig.zig_path().parent / "lib" / "libc" / "include"
    folders = [headers / f"{arch}-linux-musl", headers / "generic-musl"]
    return [flag for folder in folders for flag in ("-isystem", str(folder))]
