"""Intermediate results on disk, so that an interrupted compression continues where it was.

One file each, called after a digest of all that determines its content. So a file is either right
or not asked for. Of removal traces there is one per layer, by the dense model, the samples, the
layer, the scheme and the damping: another sparsity uses the same ones. Files are written under
another name and renamed; a damaged file counts as missing. In the user's own cache the oldest files
go when it grows beyond 2 GiB.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from effc.errors import UsageError
from effc.passes.pruning.layers import Layer
from effc.passes.pruning.project import grid_of
from effc.passes.pruning.scheme import Scheme
from effc.passes.pruning.surgeon import DAMPING, Trace

__all__ = ["ArrayStore", "Slot", "TraceStore", "default_folder", "digest_of"]

VERSION = 1
"""Of the traces' meaning; another one makes old files useless."""

_CACHE_BYTES = 2 << 30

_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/effc/compress``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "effc" / "compress"


def digest_of(model: ir.Model, samples: Iterable[Mapping[str, Any]]) -> str:
    """Digest of a model with its weights, and of samples."""
    hasher = hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True))
    for sample in samples:
        for name, array in sorted(sample.items()):
            hasher.update(f"{name} {array.dtype} {array.shape}".encode())
            hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


class ArrayStore:
    """Arrays of one model and one set of samples, by a text that says what they are.

    Args:
        folder: Where the files are; made if missing. None: the user's cache.
        digest: As :func:`digest_of` gives it.

    Raises:
        UsageError: The folder cannot be written.
    """

    def __init__(self, folder: Path | None, digest: str) -> None:
        self.folder = default_folder() if folder is None else folder
        self._own_cache = folder is None
        self._digest = digest
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UsageError(
                "the work folder cannot be written",
                where=str(self.folder),
                got=error.strerror,
                hint="choose another one with --work",
            ) from error

    def load_arrays(self, key: str) -> dict[str, Any] | None:
        """What is kept under a text, or None."""
        try:
            with np.load(self._path(key), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except _DAMAGED:
            return None

    def save_arrays(self, key: str, arrays: Mapping[str, Any]) -> None:
        """Keep arrays; the file appears as a whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)  # caches may be emptied at any time
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
            Path(name).replace(self._path(key))
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def trim(self) -> None:
        """Remove the oldest files of the user's cache beyond its limit."""
        if not self._own_cache:
            return
        files = [(p.stat().st_mtime, p.stat().st_size, p) for p in self.folder.glob("*.npz")]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= _CACHE_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _path(self, key: str) -> Path:
        text = f"{VERSION}\n{self._digest}\n{key}"
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"


@dataclass(frozen=True)
class Slot:
    """The place of one set of arrays in a store."""

    store: ArrayStore
    key: str

    def load(self) -> dict[str, Any] | None:
        """What is there, or None."""
        return self.store.load_arrays(self.key)

    def save(self, arrays: Mapping[str, Any]) -> None:
        """Replace it."""
        self.store.save_arrays(self.key, arrays)


class TraceStore(ArrayStore):
    """Traces of layers."""

    def load(self, layer: Layer, scheme: Scheme) -> Trace | None:
        """The trace of a layer, or None if there is none."""
        arrays = self.load_arrays(_key(layer, scheme))
        if arrays is None:
            return None
        try:
            grid = grid_of((*layer.shape[:2], _positions(layer)), scheme, layer.groups)
            if arrays["costs"].shape != (len(grid.bands), grid.units):
                return None
            return Trace(
                scheme,
                grid,
                arrays["costs"].astype(np.float64),
                arrays["losses"].astype(np.float64),
                float(arrays["energy"]),
                arrays.get("patterns"),
                float(arrays["pattern_loss"]),
            )
        except _DAMAGED:
            return None

    def save(self, layer: Layer, trace: Trace) -> None:
        """Keep a trace."""
        arrays: dict[str, Any] = {
            "costs": trace.costs.astype(np.float32),
            "losses": trace.losses.astype(np.float32),
            "energy": np.float64(trace.energy),
            "pattern_loss": np.float64(trace.pattern_loss),
        }
        if trace.patterns is not None:
            arrays["patterns"] = trace.patterns
        self.save_arrays(_key(layer, trace.scheme), arrays)


def _key(layer: Layer, scheme: Scheme) -> str:
    return f"{layer.name}\n{scheme}\n{DAMPING}"


def _positions(layer: Layer) -> int:
    return int(np.prod(layer.kernel, dtype=np.int64))
