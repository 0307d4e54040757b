"""The command line: ``effc``.

``main`` is the entry point. Nothing heavy (NumPy, onnx, TVM) is imported until
a command needs it, so that ``effc --help`` answers at once.
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and exit with a documented code."""
    try:
        from effc.cli.failure import guard

        guard()
    except KeyboardInterrupt:  # so early that nothing has begun, or while Python ends
        raise SystemExit(130) from None
