"""The functions of a model: kernels of its regions, and the versions of them for variants.

Equal functions are built and kept once. What a variant is, and which functions have more than
one version: ``effc.kernels.versions``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effc.devices.target import BASE, Target
from effc.kernels.region import Region
from effc.kernels.template import Choice, Kernel, Stage
from effc.kernels.versions import require_same, versions_of
from effc.program import CodeVariant

__all__ = ["Functions", "build_functions", "code_variants", "lower_functions"]


@dataclass
class Functions:
    """Kernels of all regions; equal functions are kept once.

    Attributes:
        name: C prefix of the model.
        kernels: By region name.
        symbols: C symbol per (region name, stage number).
        functions: Stage by C symbol, by the version that it belongs to.
        versions: By variant: C symbol of what it runs, by the base's.
        scratch_bytes: The most that a version for a variant needs.
    """

    name: str
    kernels: dict[str, Kernel]
    symbols: dict[tuple[str, int], str]
    functions: dict[str, dict[str, Stage]]
    versions: dict[str, dict[str, str]]
    scratch_bytes: int = 0


def build_functions(
    name: str, regions: Sequence[Region], chosen: Mapping[str, Choice], target: Target
) -> Functions:
    """Build the kernels of all regions, for the target and for its variants.

    Args:
        name: C prefix of the model.
        regions: What needs kernels.
        chosen: Template and configuration by ``Region.key``.
        target: What to build for.

    Raises:
        InternalError: Versions of a kernel differ in more than code.
    """
    names = [variant.name for variant in target.variants]
    built = Functions(name, {}, {}, {BASE: {}, **{n: {} for n in names}}, {n: {} for n in names})
    symbols_of: dict[str, list[str]] = {}
    for region in regions:
        choice = chosen[region.key]
        kernel = choice.template.build(region, target, choice.config)
        built.kernels[region.name] = kernel
        if region.key not in symbols_of:
            symbols_of[region.key] = []
            for stage in kernel.stages:
                symbol = f"{name}_f{len(built.functions[BASE])}"
                built.functions[BASE][symbol] = stage
                symbols_of[region.key].append(symbol)
            _build_versions(built, region, kernel, symbols_of[region.key], choice, target)
        for number, symbol in enumerate(symbols_of[region.key]):
            built.symbols[region.name, number] = symbol
    return built


def _build_versions(
    built: Functions,
    region: Region,
    kernel: Kernel,
    symbols: Sequence[str],
    choice: Choice,
    target: Target,
) -> None:
    """Build a kernel for the variants that run code of their own."""
    for variant, version in versions_of(choice.template, region, target).items():
        if version == BASE:
            continue
        built.versions[variant] |= {symbol: f"{symbol}_{version}" for symbol in symbols}
        if version == variant:
            other = choice.template.build(region, target.version(variant), choice.config)
            require_same(kernel, other, f"region {region.name}, variant {variant}")
            for symbol, stage in zip(symbols, other.stages, strict=True):
                built.functions[variant][f"{symbol}_{variant}"] = stage
            built.scratch_bytes = max([built.scratch_bytes, *(s.scratch for s in other.stages)])


def code_variants(built: Functions, target: Target) -> tuple[CodeVariant, ...]:
    """The variants that run other code than the less demanding ones, best first."""
    kept: list[CodeVariant] = []
    for variant in reversed(target.variants):
        features = tuple(f[1:] for f in variant.features)
        symbols = built.versions[variant.name]
        less = [v.symbols for v in kept if set(v.features) <= set(features)]
        if symbols and symbols not in less:
            kept.insert(0, CodeVariant(variant.name, features, symbols))
    return tuple(kept)


def lower_functions(built: Functions, target: Target) -> list[bytes]:
    """Object files that define every function, each version with its variant's instructions."""
    from effc.lower import lower_all

    return [
        code
        for version, stages in built.functions.items()
        if stages
        for code in lower_all({s: f.func for s, f in stages.items()}, target.version(version))
    ]
