"""What the user asked of compression, checked, and nothing else.

Imports neither NumPy nor onnx, so that a wrong flag is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from effc.compression.goal import parse_goal
from effc.errors import UsageError
from effc.options import CompileOptions
from effc.passes.pruning.scheme import check_sparsity, parse_block, parse_scheme

__all__ = [
    "CORRECTIONS",
    "METHODS",
    "MODES",
    "RANGES",
    "ROUNDINGS",
    "WIDE",
    "CompressOptions",
    "CompressionArguments",
    "check_drop",
    "check_used",
]

METHODS = ("obs", "magnitude")
CORRECTIONS = ("refit", "statistics", "bias", "none")
MODES = ("int8", "int8-weights", "int4-weights")
RANGES = ("minmax", "percentile", "mse", "entropy")
ROUNDINGS = ("obq", "nearest")
WIDE = ("float", "int16")

_WITHOUT_DATA = {
    "--method obs": "--method magnitude",
    "--correct": "--correct none",
    "--quantize int8": "--quantize int8-weights",
}

_PRUNING = ("prune",)
_ZEROS = ("prune", "regroup")
_INT8 = ("quantize int8",)
_WEIGHTS = ("quantize int8-weights", "quantize int4-weights")

_USERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("sparsity", "speedup", "latency_ms", "block", "method"), _PRUNING),
    "correct": _ZEROS,
    "rounding": (*_INT8, *_WEIGHTS),
    **dict.fromkeys(("ranges", "equalize", "refine", "max_drop", "widen"), _INT8),
    "group": _WEIGHTS,
}
"""What has a use for a setting; for all others there is always one."""


class CompressionArguments(TypedDict, total=False):
    """Keyword arguments of ``effc.compress``, which ``effc.compile`` takes as well."""

    prune: str | None
    sparsity: float | None
    speedup: float | None
    latency_ms: float | None
    block: str | None
    method: str | None
    calibration: str | Path | Mapping[str, Any] | None
    samples: int | None
    correct: str | None
    regroup: str | None
    quantize: str | None
    ranges: str | None
    rounding: str | None
    equalize: bool | None
    refine: bool | None
    max_drop: float | None
    widen: str | None
    group: int | None
    recipe: str | Path | None
    work: str | Path | None


@dataclass(frozen=True)
class CompressOptions:
    """Options of one compression; the fields mirror the flags of ``effc compress``.

    What is None is decided by the recipe, or else by default.

    Attributes:
        prune: Scheme: ``block-punched``, ``unstructured``, ``n:m``, ``pattern``, ``channel``.
        sparsity: Fraction of zeros, or of channels removed, in every pruned layer.
        speedup, latency_ms: Instead of a sparsity: how fast the network shall be, see
            ``effc.compression.goal``.
        block: ``"8x4"``: filters x input channels.
        method: ``obs`` or ``magnitude``; by default ``obs`` if there is calibration data.
        calibration: ``.npz`` file, or arrays by name as in one.
        samples: How many calibration samples to use at most.
        correct: ``refit``, ``statistics``, ``bias`` or ``none``: what makes up for the zeros.
        regroup: Block shape to turn masks made elsewhere into.
        quantize: ``int8``: weights and activations; ``int8-weights``, ``int4-weights``: weights.
        ranges: How ranges of activations are chosen from histograms.
        rounding: How weights are rounded.
        equalize: Whether channels between layers are evened out first.
        refine: Whether ranges are refined by what reading layers make of errors.
        max_drop: Most that may be lost, see ``effc.compression.precision``; operators are widened
            until no more is.
        widen: What those then have, ``float`` or ``int16`` values.
        group: Of integer weights alone: consecutive weights with one scale.
        recipe: TOML file with these settings and exceptions per layer.
        work: Folder for intermediate results, to continue an interrupted run.
        shapes, constants: As for ``compile``.
        timing: What the network will be compiled with, for ``speedup`` and ``latency_ms``.
    """

    prune: str | None = None
    sparsity: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    block: str | None = None
    method: str | None = None
    calibration: Path | Mapping[str, Any] | None = None
    samples: int | None = None
    correct: str | None = None
    regroup: str | None = None
    quantize: str | None = None
    ranges: str | None = None
    rounding: str | None = None
    equalize: bool | None = None
    refine: bool | None = None
    max_drop: float | None = None
    widen: str | None = None
    group: int | None = None
    recipe: Path | None = None
    work: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    timing: CompileOptions = field(default_factory=CompileOptions)

    def __post_init__(self) -> None:
        goal = parse_goal(self.speedup, self.latency_ms, self.sparsity)
        if self.prune is not None:
            scheme = parse_scheme(self.prune, self.block)
            if self.sparsity is not None or (self.recipe is None and goal is None):
                check_sparsity(scheme, self.sparsity)
        elif self.block is not None:
            parse_block(self.block)
        if self.regroup is not None:
            parse_block(self.regroup)
        _one_of(self.method, METHODS, "--method")
        _one_of(self.correct, CORRECTIONS, "--correct")
        _one_of(self.quantize, MODES, "--quantize")
        _one_of(self.ranges, RANGES, "--ranges")
        _one_of(self.rounding, ROUNDINGS, "--rounding")
        _one_of(self.widen, WIDE, "--widen")
        check_drop(self.max_drop, "--max-drop")
        check_group(self.group, "--group")
        if self.samples is not None and self.samples < 1:
            raise UsageError(
                "number of samples out of range",
                where="--samples",
                expected="a positive number",
                got=self.samples,
            )
        if self.calibration is None:
            self._require_no_data()
        if self.recipe is None:  # what a recipe adds is known when it is read
            given = {key: getattr(self, key) for key in _USERS}
            check_used(
                {**given, "prune": self.prune, "regroup": self.regroup, "quantize": self.quantize},
                lambda key: f"--{key.replace('_', '-')}",
            )

    def _require_no_data(self) -> None:
        for flag, value in (
            ("--method obs", self.method == "obs"),
            ("--correct", self.correct),
            ("--quantize int8", self.quantize == "int8"),
        ):
            if value and value != "none":
                raise UsageError(
                    "calibration data is needed",
                    where=flag,
                    expected="--calibration X.npz with samples of real inputs",
                    hint=f"without data: {_WITHOUT_DATA[flag]}",
                )

    @property
    def active(self) -> bool:
        """Whether anything is to be done."""
        return any((self.prune, self.regroup, self.quantize, self.recipe))

    def require_use_of_samples(self) -> None:
        """Raise if there are calibration samples that nothing looks at.

        Raises:
            UsageError: There are.
        """
        if self.calibration is not None and not self.active:
            raise UsageError(
                "nothing looks at the samples",
                where="--calibration",
                expected="with --prune, --regroup, --quantize, --recipe or --precision f16",
            )

    def require_active(self) -> None:
        """Raise if there is nothing to do.

        Raises:
            UsageError: Neither scheme, nor recipe, nor regrouping, nor quantization was asked for.
        """
        if not self.active:
            raise UsageError(
                "nothing to do",
                where="compress",
                expected="--prune SCHEME with --sparsity S, --speedup X or --latency-ms L, "
                "--recipe R.toml, --regroup BLOCK or --quantize int8",
            )


def check_used(settings: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """Raise if there is a setting that nothing uses.

    Args:
        settings: All of them by name; None for what was not given.
        where: Place of a setting, for the message.

    Raises:
        UsageError: There is one.
    """
    given = {key for key, value in settings.items() if value is not None}
    given.add(f"quantize {settings.get('quantize')}")
    for key, users in _USERS.items():
        if key in given and not given.intersection(users):
            raise UsageError(f"this setting needs {' or '.join(users)}", where=where(key))


def check_drop(value: float | None, where: str) -> None:
    """Raise if a largest loss is no percentage.

    Raises:
        UsageError: It is not.
    """
    if value is not None and not 0 <= value <= 100:
        raise UsageError("out of range", where=where, expected="0 to 100", got=value)


def check_group(value: int | None, where: str) -> None:
    """Raise if this is no size of groups.

    Raises:
        UsageError: It is not.
    """
    if value is not None and value < 2:
        raise UsageError("out of range", where=where, expected="2 or more", got=value)


def _one_of(value: str | None, known: tuple[str, ...], flag: str) -> None:
    if value is not None and value not in known:
        raise UsageError("unknown choice", where=flag, expected=" or ".join(known), got=repr(value))
