"""The one exception hierarchy of effc and its exit codes.

This module is a leaf: it imports nothing of ours, so every folder may import it.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "DeviceError",
    "EffcError",
    "InternalError",
    "ModelError",
    "QualityError",
    "ToolError",
    "UnsupportedError",
    "UsageError",
]


class EffcError(Exception):
    """A failure that the user can act on.

    Args:
        what: What went wrong, one sentence without a trailing period.
        where: The node, tensor, file or flag it concerns.
        expected: What would have been accepted.
        got: What was found instead.
        hint: What the user can do about it.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.got is not None:
            text += f"; got {self.got}"
        if self.hint:
            text += f"\n  hint: {self.hint}"
        return text


class QualityError(EffcError):
    """The artifact does not meet its tolerance or budget (exit code 1)."""

    exit_code = 1


class UsageError(EffcError):
    """A flag or an argument is wrong (exit code 2)."""

    exit_code = 2


class ModelError(EffcError):
    """The model or the data is invalid (exit code 3)."""

    exit_code = 3


class UnsupportedError(ModelError):
    """The model is valid, but uses something effc cannot compile (exit code 3)."""


class ToolError(EffcError):
    """A program or package that effc calls is missing or failed (exit code 4)."""

    exit_code = 4


class DeviceError(EffcError):
    """A device cannot be reached or died (exit code 5)."""

    exit_code = 5


class InternalError(EffcError):
    """A bug of ours (exit code 70)."""

    exit_code = 70
