"""The shape of ``manifest.json``, and a checker for it.

A schema is written with the value it describes: a type, a tuple of types, a list with the
schema of its items, or a dictionary of the keys that must be there (others may be).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from effc.errors import ModelError

__all__ = ["check_manifest"]

_ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64"), 8),
}

_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))

_PORT: dict[str, Any] = {"name": str, "dtype": str, "shape": [int], "bytes": int}
_LAYER: dict[str, Any] = {
    "name": str,
    "op": str,
    "kernel": str,
    "macs": int,
    "sparsity": _NUMBER,
    "pattern": str,
    "units": {},
    "config": {},
    "why": str,
    "seconds": _OPTIONAL_NUMBER,
    "variants": [str],
    "nodes": [str],
    "inputs": [[int]],
    "outputs": [[int]],
    "reads": [str],
    "writes": [str],
    "alternatives": [
        {"kernel": str, "config": {}, "seconds": _OPTIONAL_NUMBER, "predicted_cycles": _NUMBER}
    ],
    "refused": [{"kernel": str, "why": str}],
}
_VALUE: dict[str, Any] = {
    "name": str,
    "onnx": (str, type(None)),
    "real": (str, type(None)),
    "dtype": str,
    "shape": [int],
    "layout": str,
    "scale": _OPTIONAL_NUMBER,
    "zero_point": (int, type(None)),
    "step": _NUMBER,
    "place": [(str, int)],
}
_OUTPUT_ERROR: dict[str, Any] = {
    "name": str,
    "ok": bool,
    "max_abs_error": _NUMBER,
    "max_rel_error": _NUMBER,
    "snr_db": _NUMBER,
    "snr_limit_db": _OPTIONAL_NUMBER,
    "limit_steps": int,
}

_MANIFEST: dict[str, Any] = {
    "effc_version": str,
    "name": str,
    "target": str,
    "abi": str,
    "machine": {
        "arch": str,
        "os": str,
        "triple": str,
        "cpu": str,
        "features": [str],
        "android_api": (int, type(None)),
    },
    "variants": [{"name": str, "features": [str], "functions": int}],
    "library": str,
    "weights_file": (str, type(None)),
    "further_abis": [{"target": str, "abi": str, "library": str}],
    "entry": str,
    "symbols": [str],
    "inputs": [_PORT],
    "outputs": [_PORT],
    "arena_bytes": int,
    "arena_lower_bound_bytes": int,
    "scratch_bytes_per_thread": int,
    "weights_bytes": int,
    "code_bytes": int,
    "runtime_bytes": int,
    "library_bytes": int,
    "flash_bytes": int,
    "stack_bytes": int,
    "needed_libraries": [str],
    "segment_alignment": int,
    "macs": int,
    "threads": int,
    "layers": [_LAYER],
    "steps": [str],
    "values": [_VALUE],
    "memory_peak": (dict, type(None)),
    "passes": [{"name": str, "applied": [str], "refused": [str]}],
    "options": {"shapes": {}, "constants": {}},
    "verification": (dict, type(None)),
    "files": {},
}

_VERIFICATION: dict[str, Any] = {"device": str, "against": str, "outputs": [_OUTPUT_ERROR]}


def check_manifest(manifest: Any, where: str) -> None:
    """Check everything that the rest of effc relies on, for every library.

    Raises:
        ModelError: The first field that is missing, has another type or makes no sense.
    """
    _check_library(manifest, where)
    for number, entry in enumerate(manifest["further_abis"]):
        place = f"{where}: further_abis[{number}]"
        _require(not {"name", "further_abis"} & entry.keys(), entry, "one library", place)
        _check_library({**manifest, **entry}, place)


def _check_library(manifest: Any, where: str) -> None:
    _check(manifest, _MANIFEST, where)
    for key in ("target", "abi"):  # they become names of files
        text = manifest[key]
        _require(bool(re.fullmatch(r"\w[\w.-]*", text, re.A)), text, "a name", f"{where}: {key}")
    if manifest["verification"] is not None:
        _check(manifest["verification"], _VERIFICATION, f"{where}: verification")
        _require(bool(manifest["verification"]["outputs"]), [], "outputs", f"{where}: verification")
    name, threads = manifest["name"], manifest["threads"]
    _require(bool(re.fullmatch(r"[A-Za-z]\w*", name, re.A)), name, "a C name", f"{where}: name")
    _require(1 <= threads <= 64, threads, "1 to 64", f"{where}: threads")
    _require(bool(manifest["outputs"]), [], "at least one", f"{where}: outputs")
    for port in (*manifest["inputs"], *manifest["outputs"]):
        dtype = port["dtype"]
        _require(dtype in _ITEM_BYTES, dtype, "a type of C", f"{where}: {port['name']}")
        size = prod(port["shape"]) * _ITEM_BYTES[dtype]
        _require(port["bytes"] == size, port["bytes"], f"{size} bytes", f"{where}: {port['name']}")
    for port, shape in manifest["options"]["shapes"].items():
        _check(shape, [int], f"{where}: options: shape of {port}")


def _check(value: Any, schema: Any, where: str) -> None:
    """Check a JSON value.

    Raises:
        ModelError: The first part that does not fit.
    """
    if isinstance(schema, dict):
        _require(isinstance(value, Mapping), type(value).__name__, "an object", where)
        for key, part in schema.items():
            if key not in value:
                raise ModelError(
                    "the manifest is damaged", where=where, expected=f"a field '{key}'"
                )
            _check(value[key], part, f"{where}: {key}")
    elif isinstance(schema, list):
        _require(isinstance(value, list), type(value).__name__, "a list", where)
        for number, item in enumerate(value):
            _check(item, schema[0], f"{where}[{number}]")
    else:
        types = schema if isinstance(schema, tuple) else (schema,)
        fits = isinstance(value, types) and (bool in types or not isinstance(value, bool))
        _require(fits, type(value).__name__, " or ".join(kind.__name__ for kind in types), where)
        if schema is int:
            _require(0 <= value < 2**63, value, "a sensible number", where)


def _require(fits: bool, found: object, expected: str, where: str) -> None:
    if not fits:
        raise ModelError(
            "the manifest is damaged", where=where, expected=expected, got=str(found)[:100]
        )
