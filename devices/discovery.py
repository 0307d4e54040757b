"""Which target a device is, and catalog entries for devices that none describes yet."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effc.devices.catalog import forget, get_target, list_targets, user_catalog
from effc.devices.cores import llvm_name
from effc.devices.host import x86_vectors
from effc.devices.probe import Facts
from effc.errors import UsageError

__all__ = ["entry_of", "remember", "target_of"]

_FAMILIES = {
    ("android", "aarch64"): "android",
    ("android", "arm"): "android-armv7",
    ("android", "x86_64"): "android-x86_64",
    ("linux", "aarch64"): "linux-arm64",
    ("linux", "arm"): "linux-armv7",
    ("linux", "x86_64"): "linux-x86_64",
}


def target_of(facts: Facts) -> str | None:
    """Name of the catalog's entry for a device, or ``None``."""
    for entry in list_targets():
        if facts.model and any(fnmatch.fnmatchcase(facts.model, m) for m in entry.models):
            return entry.name
    return None


def entry_of(facts: Facts) -> tuple[str, dict[str, Any]] | None:
    """Name and entry for a device, from what it says; ``None`` if no family fits.

    Code is scheduled for the kind of cores that one inference will use: the fastest of which
    there are several. It must run on all, so features are those that all have. Vectors stay
    128 bits wide on Arm: scalable ones have no kernels.
    """
    family = _FAMILIES.get((facts.os, facts.arch))
    if family is None or not facts.model:
        return None
    base = get_target(family)
    clusters = facts.clusters
    main = next((c for c in clusters if c.count > 1), clusters[0] if clusters else None)
    entry: dict[str, Any] = {
        "base": family,
        "summary": f"{facts.title} (probed)",
        "soc": facts.soc,
        "models": [re.sub(r"([*?\[])", r"[\1]", facts.model)],
        "clusters": [vars(cluster) for cluster in clusters],
    }
    if main is not None:
        entry["cores"] = main.count
    if facts.arch == "aarch64" and facts.features:
        entry["cpu"] = (llvm_name(main.core) if main else "") or base.cpu
        usable = [f for f in facts.features if f[1:] not in ("sve", "sve2")]
        entry["features"] = [*usable, "-sve", "-sve2"]
    elif facts.arch == "x86_64" and facts.features:
        entry["features"] = list(facts.features)
        entry["vector_bits"], entry["vector_registers"] = x86_vectors(facts.features)
    for key, value in (("l1_bytes", facts.l1_bytes), ("l2_bytes", facts.l2_bytes)):
        if value:
            entry[key] = value
    entry["l2_bytes"] = max(entry.get("l2_bytes", base.l2_bytes), entry.get("l1_bytes", 0))
    name = re.sub(r"[^a-z0-9]+", "-", facts.title.lower()).strip("-")
    return (name, entry) if name and name not in {e.name for e in list_targets()} else None


def remember(facts: Facts) -> tuple[str, Path] | None:
    """Write an entry for a device to the user's catalog.

    Returns:
        Its name and the file; ``None`` if no family fits.

    Raises:
        UsageError: The file cannot be written.
    """
    found = entry_of(facts)
    if found is None:
        return None
    name, entry = found
    path = user_catalog()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_toml(name, entry))
    except OSError as error:
        raise UsageError(
            "the device catalog cannot be written", where=str(path), got=error.strerror
        ) from error
    forget()
    return name, path


def _toml(name: str, entry: Mapping[str, Any]) -> str:
    lines = [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n\n"


def _value(value: Any) -> str:
    """A value as TOML; its strings are written like JSON's, but for DEL."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
