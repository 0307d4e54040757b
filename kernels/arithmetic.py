"""Arithmetic of the product kernels: what their elements are, and the multiply-add.

A product kernel moves *elements*, adds products of two of them to accumulators, and knows no
more of them than what stands here. So one kernel serves every ``Arithmetic``: offsets, sizes,
lanes and lists of kept blocks all count elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import splat
from effc.kernels.region import Op

__all__ = [
    "FLOAT32",
    "Arithmetic",
    "Float16",
    "Float32",
    "HalfWeights",
    "float_arithmetic",
    "float_terms",
    "product_dtypes",
]

Expr = Any  # tvm.tirx expressions have no useful static types


@dataclass(frozen=True)
class Arithmetic(ABC):
    """Elements of a product and what is done with them.

    Attributes:
        dtype: Element type of both operands, of padded copies and of packed panels.
        sums: Type of accumulators and bias, and of sums that wait in scratch.
        channels: Channels of an element: how many are stored together, and how many
            input channels one step adds up.
        steps: Reduction steps that are added up at once: 1, or 2 (``quad_pairs``).
        pinned: Whether operands have to be kept from being loaded ahead of the loop over
            tiles, see ``register_tile.pin``.
        features: Processor features that change the code, see ``Template.features``.
    """

    dtype: ClassVar[str]
    sums: ClassVar[str]
    channels: ClassVar[int] = 1
    steps: ClassVar[int] = 1
    pinned: ClassVar[bool] = False
    features: ClassVar[frozenset[str]] = frozenset()

    @property
    def stored(self) -> str:
        """Element type of weights in the library; they are widened before they are used."""
        return self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.dtype).itemsize

    def lanes(self, target: Target) -> int:
        """Elements of one vector register (1 if there is no vector unit)."""
        return max(target.vector_bits // (8 * self.nbytes), 1)

    def narrowest(self, target: Target) -> int:
        """Fewest lanes that ``multiply_add`` takes; a tile's shorter vectors have idle lanes."""
        return 1

    @property
    def shared(self) -> int:
        """Scalars that share one load where they are lanes of a register (Arm)."""
        return 16 // self.nbytes

    @property
    def fill(self) -> Expr:
        """The element that padding consists of."""
        return tirx.const(0, self.dtype)

    @property
    def zero(self) -> Expr:
        """An accumulator that nothing has been added to."""
        return tirx.const(0, self.sums)

    @abstractmethod
    def multiply_add(
        self, acc: Expr, scalar: Expr, vector: Expr, lanes: int, target: Target, *, swapped: bool
    ) -> Expr:
        """``acc + scalar * vector``.

        Args:
            acc: Accumulators, ``lanes`` of ``sums``.
            scalar: One element.
            vector: ``lanes`` elements.
            lanes: A power of two.
            target: Whose instructions to use.
            swapped: Whether the vector holds weights and the scalar is an activation, for
                arithmetic that treats them differently; otherwise it is the other way round.
        """


@dataclass(frozen=True)
class Float32(Arithmetic):
    """Single precision; LLVM contracts to fused multiply-adds."""

    dtype: ClassVar[str] = "float32"
    sums: ClassVar[str] = "float32"

    def multiply_add(
        self, acc: Expr, scalar: Expr, vector: Expr, lanes: int, target: Target, *, swapped: bool
    ) -> Expr:
        return acc + splat(scalar, lanes) * vector


FLOAT32 = Float32()


@dataclass(frozen=True)
class HalfWeights(Float32):
    """Single precision with weights that are stored as float16."""

    @property
    def stored(self) -> str:
        return "float16"


@dataclass(frozen=True)
class Float16(Arithmetic):
    """Half precision, for targets that compute in it.

    A sum of many terms in 11 bits is inaccurate: its error grows with the square root of their
    number. So ``terms`` products are added up in float16, and such partial sums in float32
    (``half_sums``).

    Attributes:
        terms: Products of a partial sum.
    """

    dtype: ClassVar[str] = "float16"
    sums: ClassVar[str] = "float16"
    terms: int = 64

    def multiply_add(
        self, acc: Expr, scalar: Expr, vector: Expr, lanes: int, target: Target, *, swapped: bool
    ) -> Expr:
        return acc + splat(scalar, lanes) * vector


def product_dtypes(target: Target) -> tuple[str, ...]:
    """Floating point types that product kernels compute in."""
    return ("float32", "float16") if target.half_arithmetic else ("float32",)


def float_arithmetic(op: Op) -> Arithmetic:
    """Arithmetic of a floating point product, by the type of its data."""
    types = {v.dtype for v in op.inputs[:2] if v is not None}
    if types == {"float16"}:
        return Float16(float_terms(op))
    return HalfWeights() if "float16" in types else FLOAT32


def float_terms(op: Op) -> int:
    """Products that a float16 operator adds up in float16."""
    return int(op.attrs.get("terms", Float16.terms))
