"""The catalog of targets: families and devices, read from the TOML files beside this module,
and devices that were probed, from the user's own file (``user_catalog``).

A family (``android``, ``linux-arm64`` ...) is complete; a device names its family as
``base`` and overrides what is known about it. ``host`` is detected on the spot. Variants
belong to families: a device's processor is known.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from effc.devices.target import BASE, Target, Variant
from effc.errors import InternalError, UsageError

__all__ = [
    "Cluster",
    "Entry",
    "forget",
    "get_target",
    "list_targets",
    "targets_of",
    "user_catalog",
]

_DESCRIPTIVE = frozenset({"base", "summary", "soc", "clusters", "detect", "models"})
_FIELDS = frozenset(f.name for f in fields(Target)) - {"name", "shared", "optimize"}


@dataclass(frozen=True)
class Cluster:
    """Equal cores of a chip."""

    core: str
    count: int
    ghz: float


@dataclass(frozen=True)
class Entry:
    """One line of ``effc targets``.

    Attributes:
        name: What ``--target`` takes.
        summary: One sentence.
        base: Family of a device, ``None`` for a family.
        soc: Chip of a device, empty for a family.
        clusters: Its cores, fastest first.
        models: Patterns for what it calls itself.
    """

    name: str
    summary: str
    base: str | None = None
    soc: str = ""
    clusters: tuple[Cluster, ...] = ()
    models: tuple[str, ...] = ()


def user_catalog() -> Path:
    """The user's file of devices: ``$XDG_CONFIG_HOME/effc/devices.toml``."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "effc" / "devices.toml"


def forget() -> None:
    """Read the files again when they are needed next."""
    _tables.cache_clear()
    get_target.cache_clear()


@cache
def _tables() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(resources.files("effc.devices").iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        for name, table in tomllib.loads(file.read_text("utf-8")).items():
            unknown = table.keys() - _FIELDS - _DESCRIPTIVE
            if unknown or name in found:
                raise InternalError(
                    "device catalog entry is malformed",
                    where=f"{file.name}: {name}",
                    expected="one entry per name, known keys",
                    got=sorted(unknown) or "a second entry of this name",
                )
            found[name] = table
    return {**_user_tables(found), **found}


def _user_tables(known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Devices of the user's file.

    Raises:
        UsageError: The file is malformed.
    """
    path = user_catalog()
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError("the device catalog cannot be read", where=str(path), got=error) from error
    for name, table in tables.items():
        unknown = table.keys() - _FIELDS - _DESCRIPTIVE
        if unknown or table.get("base") not in known or not isinstance(table.get("summary"), str):
            raise UsageError(
                "a device's entry is malformed",
                where=f"{path}: {name}",
                expected="base (a family), summary, and keys that shipped entries have",
                got=sorted(unknown) or None,
                hint="remove the entry; 'effc devices' writes it anew",
            )
    return tables


def list_targets() -> tuple[Entry, ...]:
    """All names that ``get_target`` accepts: families first, then devices by name."""
    entries = [
        Entry(
            name=name,
            summary=table["summary"],
            base=table.get("base"),
            soc=table.get("soc", ""),
            clusters=tuple(Cluster(**c) for c in table.get("clusters", ())),
            models=tuple(table.get("models", ())),
        )
        for name, table in _tables().items()
    ]
    families = [e for e in entries if e.base is None]
    devices = sorted((e for e in entries if e.base is not None), key=lambda e: e.name)
    return (*families, *devices)


@cache
def get_target(name: str) -> Target:
    """Look a target up by family or device name.

    Args:
        name: ``host``, ``android``, ``linux-arm64``, ``pixel-8`` ...

    Raises:
        UsageError: The name is unknown; near matches are listed.
    """
    tables = _tables()
    if name not in tables:
        near = difflib.get_close_matches(name, tables, n=3, cutoff=0.5)
        raise UsageError(
            f"unknown target '{name}'",
            where="--target",
            hint=f"did you mean {', '.join(near)}?" if near else "see 'effc targets'",
        )
    table = tables[name]
    if table.get("detect"):
        from effc.devices.host import detect_host

        return detect_host(name)
    base = tables[table["base"]] if "base" in table else {}
    merged = {**{k: v for k, v in base.items() if k not in ("variants", "common")}, **table}
    values = {key: value for key, value in merged.items() if key in _FIELDS}
    values["features"] = tuple(values["features"])
    values["variants"] = tuple(
        Variant(**{**variant, "features": tuple(variant["features"])})
        for variant in values.get("variants", ())
    )
    return _checked(Target(name=name, **values))


def _checked(target: Target) -> Target:
    """Refuse variants that nobody could name or detect.

    Raises:
        InternalError: The catalog is wrong.
    """
    names = [variant.name for variant in target.variants]
    if BASE in names or len(set(names)) < len(names) or target.common not in (BASE, *names):
        raise InternalError("variants are malformed", where=target.name, got=names)
    return target


def targets_of(name: str, abis: Sequence[str]) -> tuple[Target, ...]:
    """Targets for several ABIs of one system.

    Args:
        name: Of a target; it serves its own ABI.
        abis: Folder names of ABIs, in the wanted order; the target's own if empty. Others than the
            target's get the family of the same system.

    Raises:
        UsageError: The target is unknown, or its system has no such ABI.
    """
    own = get_target(name)
    families = {
        target.abi: target
        for entry in list_targets()
        if entry.base is None and not _tables()[entry.name].get("detect")
        for target in [get_target(entry.name)]
        if target.os == own.os
    }
    families[own.abi] = own
    unknown = [abi for abi in abis if abi not in families]
    if unknown:
        raise UsageError(
            f"target '{name}' has no such ABI",
            where="--abi",
            expected=", ".join(families),
            got=", ".join(unknown),
        )
    return tuple(families[abi] for abi in abis) or (own,)
