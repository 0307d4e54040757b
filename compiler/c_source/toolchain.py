"""The flags that printed C source compiles with, without a warning."""

from __future__ import annotations

__all__ = ["C11_FLAGS"]

C11_FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")
"""For GCC and Clang alike."""
