"""What a kernel template offers, and what it builds.

A template turns a region and a configuration (one value per knob) into a
``Kernel``: stage functions in TIR over raw pointers, packed weights and the
workspaces it needs. Templates hold no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.region import Region

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

__all__ = ["Choice", "Config", "Kernel", "Overlap", "Stage", "Template"]

Config = Mapping[str, int | str | bool]


@dataclass(frozen=True)
class Stage:
    """One function of a kernel: ``f(pointer per arg..., int32 begin, int32 end)``.

    Attributes:
        func: PrimFunc built by ``effc.kernels.builder.stage_func``.
        args: One reference per pointer parameter: the name of a region input or
            output, ``w:NAME`` (key of ``Kernel.weights``), ``t:NAME`` (key of
            ``Kernel.workspaces``) or ``scratch``.
        extent: Number of parallel units. Workers call the function with
            disjoint ranges ``[begin, end)`` that cover ``[0, extent)``; any
            split must give the same result.
        scratch: Bytes of private memory that one worker needs (``scratch`` arg).
        bounds: Cumulative work per unit when units differ, see ``Call.bounds``.
    """

    func: PrimFunc
    args: tuple[str, ...]
    extent: int = 1
    scratch: int = 0
    bounds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Overlap:
    """How the result of a kernel may lie over an input that dies there.

    Attributes:
        source, result: Names of a region input and output.
        shifts: Closed ranges of ``address(result) - address(source)`` in bytes at which the kernel
            still reads every element of the input before it writes over it
            (``effc.kernels.overlap`` computes them from the order of access). Places where
            the two share no byte are allowed anyway.
    """

    source: str
    result: str
    shifts: tuple[tuple[int, int], ...]


@dataclass
class Kernel:
    """What a template builds for one region.

    Attributes:
        stages: Run in order with a barrier after each.
        weights: Packed constants (read-only data), without their ``w:`` prefix.
        workspaces: Bytes of arena alive during this region only, without ``t:``.
        inplace: Pairs (input name, output name) that may share memory when the
            input dies here: every element of the input is read before (or by the
            same vector operation as) the output element that overwrites it, for
            any split of the work.
        overlaps: Further pairs, at other distances. They hold for any split of the work; for
            serial targets (``Target.serial``), where one worker runs all units in ascending
            order, only for that.
    """

    stages: tuple[Stage, ...]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    workspaces: dict[str, int] = field(default_factory=dict)
    inplace: tuple[tuple[str, str], ...] = ()
    overlaps: tuple[Overlap, ...] = ()

    @property
    def sharing(self) -> tuple[Overlap, ...]:
        """All pairs that may share memory."""
        pairs = tuple(Overlap(source, result, ((0, 0),)) for source, result in self.inplace)
        return pairs + self.overlaps


@dataclass(frozen=True)
class Choice:
    """A template with one configuration.

    Attributes:
        template, config: What to build.
        cost: Predicted cycles, for ranking only.
        seconds: Measured time of one run, ``None`` if the tuner has none.
    """

    template: Template
    config: Config
    cost: float
    seconds: float | None = None


class Template(ABC):
    """One kernel family."""

    name: ClassVar[str]

    @abstractmethod
    def refuse(self, region: Region, target: Target) -> str | None:
        """Say in one sentence why this template cannot compute the region, or ``None``."""

    def features(self, region: Region) -> frozenset[str]:
        """Processor features (LLVM names) that, beyond its target's own, change the code.

        A target with variants gets one version of the functions per variant that adds any of
        them. All versions are built with one configuration and must have the same stages,
        weights and workspaces; so a feature that wants other layouts is not listed. By default
        none is: there is one version.
        """
        return frozenset()

    @abstractmethod
    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        """Valid configurations with predicted cost (cycles, rough), best first, never empty."""

    @abstractmethod
    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        """Build the kernel. The functions depend on signature, target and config only;
        weights depend on the constants as well."""
