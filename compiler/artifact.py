"""The artifact: a folder (or the same zipped, ``.effc``) that holds a compiled model.

Writing is atomic: files go to a hidden folder beside the target, which is then
renamed into place (exchanged with an older artifact in one step where the system
can). A killed process leaves at most that hidden folder; the next one removes it.

Reading trusts nothing: the manifest is checked field by field, every file it lists
by size and SHA-256. That proves integrity, not origin: an artifact is native code,
load only what you would also execute.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from effc.archive import MANIFEST_LIMIT, pack, unpack
from effc.errors import EffcError, ModelError, UsageError
from effc.schema import check_manifest

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "check_output",
    "library_manifests",
    "load_artifact",
    "staging",
    "with_libraries",
    "write_manifest",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk.

    Attributes:
        path: What the user named: a folder or an ``.effc`` file.
        folder: Folder with the files (a temporary one for an ``.effc`` file).
        manifest: Contents of ``manifest.json``.
    """

    path: Path
    folder: Path
    manifest: dict[str, Any]
    _keep: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """C prefix of the model."""
        return str(self.manifest["name"])

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / str(self.manifest["library"])

    @property
    def libraries(self) -> tuple[dict[str, Any], ...]:
        """One manifest per library, the artifact's first one first."""
        return library_manifests(self.manifest)

    def of_abi(self, abi: str | None) -> Artifact:
        """The artifact as if the library of one ABI were its only one; itself if ``None``.

        Raises:
            UsageError: There is none for this ABI.
        """
        if abi is None:
            return self
        manifests = {manifest["abi"]: manifest for manifest in self.libraries}
        if abi not in manifests:
            raise UsageError(
                f"the artifact has no library for '{abi}'",
                where="--abi",
                expected=", ".join(manifests),
            )
        return Artifact(self.path, self.folder, manifests[abi], self._keep)

    def file(self, name: str) -> Path | None:
        """A listed file by its path in the artifact, ``None`` if there is none."""
        return self.folder / name if name in self.manifest["files"] else None


def load_artifact(path: str | Path) -> Artifact:
    """Open and check an artifact.

    Args:
        path: Folder or ``.effc`` file.

    Raises:
        UsageError: There is nothing at ``path``.
        ModelError: It is no artifact, or damaged, or made by a newer effc.
    """
    path = Path(path)
    if path.is_dir():
        manifest = _read_manifest(path)
        _check_files(path, manifest)
        return Artifact(path, path, manifest)
    if not path.exists():
        raise UsageError("no such artifact", where=str(path), hint="effc compile makes one")
    keep = tempfile.TemporaryDirectory(prefix="effc-")
    folder = Path(keep.name)
    unpack(path, folder)
    manifest = _read_manifest(folder, path)
    _check_files(folder, manifest)
    return Artifact(path, folder, manifest, keep)


def _read_manifest(folder: Path, shown: Path | None = None) -> dict[str, Any]:
    where = str(shown or folder)
    file = folder / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise ModelError("not an effc artifact", where=where, expected=f"a {MANIFEST} in it")
    if file.stat().st_size > MANIFEST_LIMIT:
        raise ModelError(
            f"{MANIFEST} is too large",
            where=where,
            expected=f"at most {MANIFEST_LIMIT} bytes",
            got=file.stat().st_size,
        )
    try:
        manifest = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{MANIFEST} is no valid JSON", where=where, got=str(error)) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema_version"), int):
        raise ModelError(f"{MANIFEST} has no schema version", where=where)
    if manifest["schema_version"] != SCHEMA_VERSION:
        raise ModelError(
            "this artifact has another format",
            where=where,
            expected=f"schema version {SCHEMA_VERSION}",
            got=manifest["schema_version"],
            hint="compile the model again with this version of effc",
        )
    check_manifest(manifest, where)
    return manifest


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest["files"]
    needed = [entry["library"] for entry in library_manifests(manifest)]
    needed += [manifest["weights_file"]] if manifest["weights_file"] else []
    for name in needed:
        if name not in files:
            raise ModelError(f"{name} is not listed", where=f"{folder}/{MANIFEST}")
    for name, entry in files.items():
        where = f"{folder}/{name}"
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
            raise ModelError("a path leaves the artifact", where=where)
        file = folder / relative
        inside = [folder.joinpath(*relative.parts[: i + 1]) for i in range(len(relative.parts))]
        if any(part.is_symlink() for part in inside) or not file.is_file():
            raise ModelError("a file of the artifact is missing or a link", where=where)
        if not isinstance(entry, dict) or file.stat().st_size != entry.get("bytes"):
            raise ModelError("a file of the artifact has the wrong size", where=where)
        digest = _sha256(file)
        if digest != entry.get("sha256"):
            raise ModelError(
                "a file of the artifact was changed",
                where=where,
                expected=f"sha256 {entry.get('sha256')}",
                got=digest,
                hint="copy or compile the artifact again",
            )


def library_manifests(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The manifest as if each library were the only one; see :func:`with_libraries`."""
    first = {**manifest, "further_abis": []}
    return (first, *({**first, **entry} for entry in manifest["further_abis"]))


def with_libraries(manifests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One manifest of an artifact with several libraries.

    Args:
        manifests: Of each library; the fields of the first one stand for the artifact, of the
            others ``further_abis`` holds what differs.
    """
    first, *others = manifests
    further = [
        {key: value for key, value in other.items() if value != first[key]} for other in others
    ]
    return {**first, "further_abis": further}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``manifest.json`` with size and SHA-256 of every other file in ``folder``."""
    files = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": _sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    complete = {"schema_version": SCHEMA_VERSION, **manifest, "files": files}
    text = json.dumps(complete, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return complete


def check_output(output: Path) -> None:
    """Refuse early what :func:`staging` would refuse after minutes of compiling.

    Raises:
        UsageError: The parent is missing or not writable, or something that is
            no artifact is in the way.
    """
    parent = output.absolute().parent
    if not parent.is_dir():
        raise UsageError("the output's folder does not exist", where=f"-o {output}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError("the output's folder is not writable", where=f"-o {output}")
    if not output.is_symlink() and not output.exists():
        return
    if _is_archive(output):
        if not output.is_file():
            raise UsageError("in the way: not a file", where=f"-o {output}")
    elif output.is_symlink() or not output.is_dir():
        raise UsageError("in the way: not a folder", where=f"-o {output}")
    elif any(output.iterdir()) and not (output / MANIFEST).is_file():
        raise UsageError(
            "the folder exists and is no effc artifact",
            where=f"-o {output}",
            hint="effc only replaces its own artifacts; choose another name",
        )


def _is_archive(path: Path) -> bool:
    return path.suffix == ".effc"


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A hidden folder beside ``output`` that becomes ``output`` when the block ends well.

    Args:
        output: Folder, or a file that ends in ``.effc``.

    Raises:
        UsageError: ``output`` cannot be written (permissions, disk full, in the way).
    """
    check_output(output)
    output = output.absolute()
    _remove_stale(output)
    try:
        folder = Path(
            tempfile.mkdtemp(prefix=f"{_prefix(output)}{os.getpid()}-", dir=output.parent)
        )
    except OSError as error:
        raise _unwritable(output, error) from error
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        _publish(folder, output)
    except OSError as error:
        raise _unwritable(output, error) from error
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(output: Path) -> str:
    return f".{output.name}.effc-tmp-"


def _publish(folder: Path, output: Path) -> None:
    folder.chmod(0o755)
    if _is_archive(output):
        packed = folder / ".packed"
        pack(folder, packed)
        packed.replace(output)
    elif not output.exists():
        folder.rename(output)
    elif not _exchange(folder, output):
        aside = folder.with_name(folder.name + "-old")
        output.rename(aside)
        folder.rename(output)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one atomic step; ``False`` where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_cwd, exchange = -100, 2
    return bool(
        renameat2(at_cwd, os.fsencode(left), at_cwd, os.fsencode(right), ctypes.c_uint(exchange))
        == 0
    )


def _remove_stale(output: Path) -> None:
    """Remove hidden folders of processes that were killed."""
    for folder in output.parent.glob(f"{_glob_escape(_prefix(output))}*"):
        pid = folder.name.removeprefix(_prefix(output)).split("-")[0]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # another process, perhaps in another container, still writes it
        finally:
            os.close(lock)


def _glob_escape(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _unwritable(output: Path, error: OSError) -> EffcError:
    hint = None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space or choose another disk; nothing was left half-written"
    file = str(error.filename or "")
    elsewhere = file and not Path(file).absolute().is_relative_to(output.absolute().parent)
    return UsageError(
        f"cannot write the artifact: {(error.strerror or str(error)).lower()}",
        where=f"-o {output}",
        got=file if elsewhere else None,
        hint=hint,
    )
