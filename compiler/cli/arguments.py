"""Values of flags that need more than typer: shapes, constants, tuning modes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effc.compression.options import CompressOptions
from effc.errors import UsageError
from effc.options import CompileOptions, byte_count

__all__ = ["parse_compression", "parse_constants", "parse_options", "parse_shapes", "parse_tune"]


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """``["x:1,3,224,224"]`` to ``{"x": (1, 3, 224, 224)}``; names may hold colons.

    Raises:
        UsageError: A text has another form, or a name comes twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, numbers = text.rpartition(":")
        parts = [part.strip() for part in numbers.split(",")] if numbers.strip() else []
        if not separator or not name or not all(p.isascii() and p.isdigit() for p in parts):
            raise UsageError(
                "cannot read a shape", where="--shape", expected="NAME:1,3,224,224", got=text
            )
        if name in shapes:
            raise UsageError("a shape is given twice", where=f"--shape {name}")
        shapes[name] = tuple(map(int, parts))
    return shapes


def parse_constants(texts: Sequence[str]) -> dict[str, Any]:
    """``["sr=16000", "scale=1,2.5"]`` to arrays by name.

    Raises:
        UsageError: A text has another form, or a name comes twice.
    """
    import numpy as np

    constants: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.rpartition("=")
        try:
            numbers = [_number(part.strip()) for part in value.split(",")]
        except ValueError:
            numbers = []
        if not separator or not name or not numbers:
            raise UsageError(
                "cannot read a constant", where="--constant", expected="NAME=VALUE", got=text
            )
        if name in constants:
            raise UsageError("a constant is given twice", where=f"--constant {name}")
        constants[name] = np.array(numbers if len(numbers) > 1 else numbers[0])
    return constants


def _number(text: str) -> int | float | bool:
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return float(text)


def parse_tune(text: str) -> str | int:
    """A mode, or a number of measurements."""
    return int(text) if text.isascii() and text.isdigit() else text


def parse_compression(
    *, shapes: Sequence[str] | None, constants: Sequence[str] | None, **flags: Any
) -> CompressOptions:
    """Compression options from flags that are called like their fields."""
    return CompressOptions(
        shapes=parse_shapes(shapes or []), constants=parse_constants(constants or []), **flags
    )


def parse_options(
    *,
    threads: int | None,
    tune: str,
    shapes: Sequence[str] | None = None,
    constants: Sequence[str] | None = None,
    ram: str | None = None,
    flash: str | None = None,
    **flags: Any,
) -> CompileOptions:
    """Options of a compilation from flags that are called like their fields."""
    return CompileOptions(
        shapes=parse_shapes(shapes or []),
        constants=parse_constants(constants or []),
        threads=threads or 1,
        tune=parse_tune(tune),
        ram=None if ram is None else byte_count(ram, "--ram"),
        flash=None if flash is None else byte_count(flash, "--flash"),
        **flags,
    )
