"""What the user asked ``effc compile`` for, checked, and nothing else.

This module imports only ``effc.errors``: the command line builds options
without loading onnx or TVM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from effc.errors import UsageError

__all__ = [
    "OPTIMIZE",
    "PHASES",
    "PRECISIONS",
    "TUNE_MODES",
    "WEIGHT_PLACES",
    "CompileOptions",
    "ProgressCallback",
    "byte_count",
    "c_identifier",
]

TUNE_MODES = ("none", "quick", "full")
WEIGHT_PLACES = ("embedded", "file")
OPTIMIZE = ("balanced", "size", "speed")
PHASES = ("import", "passes", "regions", "kernels", "storage", "lower")
"""Phases after which a compilation can stop, in order."""

PRECISIONS = ("f32", "f16")

_RESERVED = """
alignas alignof auto bool break case char class const continue default delete do double effc else
enum extern false float for goto if inline int long main namespace new nullptr operator private
protected public register restrict return short signed sizeof static struct switch template this
throw true try typedef typename union unsigned using virtual void volatile while
"""
"""Words that cannot prefix a C or C++ name, and the prefix of the common runtime."""


class ProgressCallback(Protocol):
    """Called while a compilation runs, from the thread that called ``compile``.

    ``done`` counts up to ``total`` within one ``phase`` (``import``, ``passes``,
    ``regions``, ``kernels``, ``tune``, ``storage``, ``lower``, ``link``,
    ``verify``; when compressing before that ``calibrate``, ``prune``, ``refit``, ``correct``, and
    with a goal ``levels``, ``sensitivity``, ``probe``); phases come one after another, some more
    than once. ``detail`` names the current item.
    """

    def __call__(self, phase: str, done: int, total: int, detail: str = "") -> None: ...


def c_identifier(text: str) -> str:
    """Turn any text into a valid C identifier that is no C or C++ keyword.

    Args:
        text: For example the stem of a file name, ``my-model.v2``.

    Returns:
        At most 48 characters, ``my_model_v2``.
    """
    name = re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_")[:48].rstrip("_") or "model"
    if name[0].isdigit() or name in _RESERVED.split():
        name = f"m_{name}"
    return name


def byte_count(text: str | int, where: str) -> int:
    """``64k``, ``1M`` or a number of bytes; k and M are 1,024 and 1,048,576.

    Raises:
        UsageError: It is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d+)([kKmM]?)", str(text).strip(), re.ASCII)
    count = int(match[1]) << {"": 0, "k": 10, "m": 20}[match[2].lower()] if match else 0
    if not 0 < count < 2**32:
        raise UsageError(
            "cannot read a size", where=where, expected="bytes, as in 64k, 2M or 65536", got=text
        )
    return count


@dataclass(frozen=True)
class CompileOptions:
    """Options of one compilation; the fields mirror the flags of ``effc compile``.

    Attributes:
        target: Target or device name of the catalog.
        name: C identifier prefix of the model; derived from the file name if ``None``.
        shapes: Static shapes per model input, for inputs with dynamic dimensions.
        constants: Scalar values of model inputs that become constants of the
            program and no longer are inputs (``sr=16000``).
        threads: Threads to optimise for, and the default of the artifact.
        tune: ``none``, ``quick``, ``full``, or the number of measurements to spend.
        tuning_db: Tuning database file; ``None`` means the user's default one.
        verify: Whether the artifact is run against ONNX Runtime before it is written.
        precision: ``f32``, or ``f16``: half precision, see docs/PRECISION.md.
        layer_precision: (node name or pattern, precision) of exceptions, later ones win.
        calibration: Samples (``.npz`` file, or arrays as in one) that ``f16`` takes the ranges
            and errors of values from; at most ``samples`` of them.
        abis: One library for each of these, the first one's figures first; the target's own if
            empty. Other ABIs than the target's get the generic family of its system.
        weights: ``embedded`` in the library, or in a ``file`` beside it that all libraries share.
        ram, flash: Bytes that the model may use on a microcontroller; the board's if ``None``.
        optimize: What its code is chosen for: ``balanced``, ``size`` or ``speed``.
        dump: Folder for what every phase makes, see ``effc.dump``.
        stop_after: Phase that is the last one; ``effc.dump.Stopped`` is raised behind it.
    """

    target: str = "host"
    name: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, int | float | bool] = field(default_factory=dict)
    threads: int = 1
    tune: str | int = "none"
    tuning_db: Path | None = None
    verify: bool = True
    precision: str = "f32"
    layer_precision: tuple[tuple[str, str], ...] = ()
    calibration: Path | Mapping[str, Any] | None = None
    samples: int | None = None
    abis: tuple[str, ...] = ()
    weights: str = "embedded"
    ram: int | None = None
    flash: int | None = None
    optimize: str = "balanced"
    dump: Path | None = None
    stop_after: str | None = None

    def __post_init__(self) -> None:
        for where, precision in (("--precision", self.precision), *self.layer_precision):
            if precision not in PRECISIONS:
                raise UsageError(
                    "unknown precision",
                    where=where,
                    expected=" or ".join(PRECISIONS),
                    got=repr(precision),
                )
        if self.name is not None and c_identifier(self.name) != self.name:
            raise UsageError(
                "the name is not a C identifier",
                where="--name",
                expected="letters, digits and underscores, at most 48, no C keyword",
                got=repr(self.name),
                hint=f"use --name {c_identifier(self.name)}",
            )
        if not 1 <= self.threads <= 64:
            raise UsageError(
                "thread count out of range",
                where="--threads",
                expected="1 to 64",
                got=self.threads,
            )
        if isinstance(self.tune, int):
            if self.tune < 1:
                raise UsageError(
                    "number of measurements out of range",
                    where="--tune",
                    expected="a positive number",
                    got=self.tune,
                )
        elif self.tune not in TUNE_MODES:
            raise UsageError(
                "unknown tuning mode",
                where="--tune",
                expected="none, quick, full or a number of measurements",
                got=repr(self.tune),
            )
        if self.weights not in WEIGHT_PLACES:
            raise UsageError(
                "unknown place for weights",
                where="--weights",
                expected=" or ".join(WEIGHT_PLACES),
                got=repr(self.weights),
            )
        if self.optimize not in OPTIMIZE:
            raise UsageError(
                "unknown goal of optimization",
                where="--optimize",
                expected=" or ".join(OPTIMIZE),
                got=repr(self.optimize),
            )
        if self.stop_after is not None and self.stop_after not in PHASES:
            raise UsageError(
                "unknown phase",
                where="--stop-after",
                expected=", ".join(PHASES),
                got=repr(self.stop_after),
            )
        if self.dump is not None and len(self.abis) > 1:
            raise UsageError("phases of one ABI at a time are written", where="--dump with --abi")
        if len(set(self.abis)) < len(self.abis):
            raise UsageError("an ABI is given twice", where="--abi", got=",".join(self.abis))
        for name, shape in self.shapes.items():
            if any(d < 1 for d in shape):
                raise UsageError(
                    "a dimension is not positive",
                    where=f"--shape {name}",
                    expected="positive numbers",
                    got=",".join(map(str, shape)),
                )

    def model_name(self, source: Path | None) -> str:
        """The C prefix: ``name``, or one made from the file name of the model."""
        if self.name is not None:
            return self.name
        return c_identifier(source.stem) if source is not None else "model"
