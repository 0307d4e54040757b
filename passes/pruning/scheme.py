"""Pruning schemes: which weights of a layer are removed together.

A weight is seen as ``[Cout, Cin / groups, positions]``, positions = KH * KW (Gemm, MatMul: 1).

* ``block-punched`` (YOLObile, Cai et al., AAAI 2021): a block is ``bf`` filters x ``bc`` input
  channels; the unit is one kernel position of a block, all its weights. ``1x1`` is unstructured.
* ``n:m`` (2:4, 1:4, 4:8 ...): of every ``m`` consecutive input channels at most ``n`` are kept,
  separately per kernel position; ``bf`` filters share the choice.
* ``pattern`` (PatDNN, Niu et al., ASPLOS 2020): each 3x3 kernel keeps the centre and three more
  entries, one of at most 8 patterns per layer; beyond 5/9 whole kernels go. A block shares both.
* ``channel``: whole channels, see ``effc.passes.pruning.remove_channels``.

Ragged sizes: the last block is smaller. Blocks never cross the groups of a grouped convolution.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from effc.errors import UsageError

__all__ = ["SCHEMES", "Kind", "Scheme", "check_sparsity", "parse_block", "parse_scheme"]

Kind = Literal["block-punched", "n:m", "pattern", "channel"]

SCHEMES = ("block-punched", "unstructured", "2:4", "4:8", "1:4", "pattern", "channel")
"""What ``--prune`` takes; any ``n:m`` is possible."""

PATTERN_SPARSITY = 5 / 9
"""Zeros that patterns alone give: 4 of 9 entries stay."""

_BLOCK_LIMIT = 256


@dataclass(frozen=True)
class Scheme:
    """What is removed together.

    Attributes:
        kind: The rule.
        block: ``(bf, bc)``, filters x input channels that share a choice; of ``n:m`` only ``bf``.
        keep: ``n`` of ``n:m``, else 0.
        window: ``m`` of ``n:m``, else 0.
    """

    kind: Kind
    block: tuple[int, int] = (8, 4)
    keep: int = 0
    window: int = 0

    def __str__(self) -> str:
        if self.kind == "channel":
            return self.kind
        name = f"{self.keep}:{self.window}" if self.kind == "n:m" else self.kind
        return f"{name} {self.block[0]}x{self.block[1]}"

    @property
    def name(self) -> str:
        """As ``--prune`` takes it, without the block."""
        return f"{self.keep}:{self.window}" if self.kind == "n:m" else self.kind

    @property
    def own_sparsity(self) -> float | None:
        """Zeros without a request (``n:m``, ``pattern``), or None."""
        return PATTERN_SPARSITY if self.kind == "pattern" else self.fixed_sparsity

    @property
    def fixed_sparsity(self) -> float | None:
        """Zeros that the rule itself prescribes (``n:m``), or None."""
        return 1 - self.keep / self.window if self.kind == "n:m" else None


def parse_block(text: str) -> tuple[int, int]:
    """``"8x4"`` as (filters, input channels).

    Raises:
        UsageError: Another form, or sizes out of range.
    """
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text.strip().lower())
    sizes = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= size <= _BLOCK_LIMIT for size in sizes):
        raise UsageError(
            "cannot read a block shape",
            where="block",
            expected=f"FILTERSxCHANNELS, each 1 to {_BLOCK_LIMIT}, for example 8x4",
            got=repr(text),
        )
    return sizes


def parse_scheme(text: str, block: str | tuple[int, int] | None = None) -> Scheme:
    """A scheme from its name and block.

    Args:
        text: ``block-punched``, ``unstructured`` (block-punched 1x1), ``n:m`` such as ``2:4``,
            ``pattern`` or ``channel``.
        block: ``"8x4"`` or ``(8, 4)``; default 8x4, for ``n:m`` and ``pattern`` 1x1.

    Raises:
        UsageError: Unknown name, or a block that does not go with it.
    """
    name = text.strip().lower()
    shape = parse_block(block) if isinstance(block, str) else block
    numbers = re.fullmatch(r"(\d{1,3}):(\d{1,3})", name)
    if numbers:
        return _n_of_m(int(numbers[1]), int(numbers[2]), shape or (1, 1), text)
    if name == "block-punched":
        return Scheme("block-punched", shape or (8, 4))
    if name == "unstructured":
        if shape not in (None, (1, 1)):
            raise _odd_block(name, "1x1", shape)
        return Scheme("block-punched", (1, 1))
    if name == "pattern":
        return Scheme("pattern", shape or (1, 1))
    if name == "channel":
        if shape is not None:
            raise _odd_block(name, "no block", shape)
        return Scheme("channel", (1, 1))
    near = difflib.get_close_matches(name, SCHEMES, 1)
    raise UsageError(
        "unknown pruning scheme",
        where="prune",
        expected=", ".join(SCHEMES) + " (any n:m)",
        got=repr(text),
        hint=f"did you mean {near[0]}?" if near else None,
    )


def _n_of_m(keep: int, window: int, block: tuple[int, int], text: str) -> Scheme:
    if not 1 <= keep < window <= 64:
        raise UsageError(
            "cannot keep so many of so many",
            where="prune",
            expected="n:m with 1 <= n < m <= 64",
            got=repr(text),
        )
    if block[1] != 1:
        raise _odd_block(text, "bf x 1 (filters that share the choice)", block)
    return Scheme("n:m", block, keep, window)


def _odd_block(name: str, expected: str, block: tuple[int, int] | None) -> UsageError:
    got = None if block is None else f"{block[0]}x{block[1]}"
    return UsageError(
        "this block does not go with the scheme",
        where=f"prune {name}",
        expected=expected,
        got=got,
    )


def check_sparsity(scheme: Scheme, sparsity: float | None) -> float:
    """The sparsity to reach: what was asked for, or what the scheme prescribes.

    Args:
        scheme: The rule.
        sparsity: Fraction of zeros in a layer, 0 to 1; None only where the scheme has a default.

    Raises:
        UsageError: Missing, out of range, or impossible with this scheme.
    """
    fixed, own = scheme.fixed_sparsity, scheme.own_sparsity
    if sparsity is None:
        if own is not None:
            return own
        raise UsageError(
            "pruning needs a sparsity", where=str(scheme), expected="a number from 0 to below 1"
        )
    if not 0 <= sparsity < 1:
        raise UsageError(
            "sparsity out of range", where="sparsity", expected="0 to below 1", got=sparsity
        )
    if sparsity and fixed is not None and abs(sparsity - fixed) > 1e-6:
        raise UsageError(
            f"{scheme.name} has a sparsity of its own",
            where="sparsity",
            expected=f"{fixed:g}, or none given",
            got=sparsity,
        )
    if sparsity and scheme.kind == "pattern" and sparsity < PATTERN_SPARSITY - 1e-2:
        raise UsageError(
            "patterns alone give more zeros than that",
            where="sparsity",
            expected=f"at least {PATTERN_SPARSITY:.3f} (5 of 9)",
            got=sparsity,
        )
    return sparsity
