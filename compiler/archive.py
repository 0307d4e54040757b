"""Zip archives of artifacts (``.effc``): deterministic to write, safe to read.

Written: members sorted, fixed dates and modes, so equal folders give equal bytes.
Read: only plain files listed once, with relative paths that stay inside, bounded in
number, size and ratio. Everything else is a ``ModelError``.
"""

from __future__ import annotations

import errno
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from effc.errors import ModelError

__all__ = ["MANIFEST_LIMIT", "pack", "unpack"]

MANIFEST_LIMIT = 32 << 20
"""Bytes; the manifest of a network with thousands of layers stays far below."""

_MAX_MEMBERS = 1024
_FREE_BYTES = 64 << 20
_MAX_RATIO = 50
"""An archive may unpack to ``_FREE_BYTES + _MAX_RATIO * its own size``. Weights of a
sparse network deflate by 10 at most; a bomb's zeros by 1000."""
_CHUNK = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, archive: Path) -> None:
    """Zip the files below ``folder``, hidden ones left out."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as zipped:
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).as_posix()
            if not file.is_file() or name.startswith("."):
                continue
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            with file.open("rb") as source, zipped.open(info, "w") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)


def unpack(archive: Path, folder: Path) -> None:
    """Extract an untrusted archive into an empty folder.

    Raises:
        ModelError: It is no archive, damaged, or tries anything but plain files.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _checked(zipped, archive)
            for info in members:
                _extract(zipped, info, folder)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
        ValueError,
        FileExistsError,
        IsADirectoryError,
        NotADirectoryError,
    ) as error:
        raise ModelError(
            "not an effc artifact", where=str(archive), expected="a zip archive", got=str(error)
        ) from error
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENAMETOOLONG):
            raise
        raise ModelError(  # offsets before the file's start, names that no file can have
            "the archive is damaged", where=str(archive), got=(error.strerror or "").lower()
        ) from error


def _checked(zipped: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    infos = zipped.infolist()
    if len(infos) > _MAX_MEMBERS:
        raise ModelError(
            "too many files in the archive",
            where=str(archive),
            expected=f"at most {_MAX_MEMBERS}",
            got=len(infos),
        )
    limit = _FREE_BYTES + _MAX_RATIO * archive.stat().st_size
    total = sum(info.file_size for info in infos)
    if total > limit:
        raise ModelError(
            "the archive unpacks to absurdly many bytes",
            where=str(archive),
            expected=f"at most {limit}",
            got=total,
        )
    seen: set[str] = set()
    for info in infos:
        _check_member(info, archive)
        key = info.filename.rstrip("/").casefold()
        if key in seen:
            raise ModelError("a file is twice in the archive", where=f"{archive}: {info.filename}")
        seen.add(key)
    return [info for info in infos if not info.is_dir()]


def _check_member(info: zipfile.ZipInfo, archive: Path) -> None:
    where = f"{archive}: {info.filename!r}"
    path = PurePosixPath(info.filename)
    name = info.orig_filename
    if (
        path.is_absolute()
        or not path.parts
        or any(part in ("..", "") for part in path.parts)
        or any(c in name for c in "\\\0:")
    ):
        raise ModelError("a path leaves the archive", where=where)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ModelError("neither a file nor a folder", where=where, hint="links are not allowed")
    if info.flag_bits & 1:
        raise ModelError("encrypted archives are not supported", where=where)


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, folder: Path) -> None:
    target = folder / PurePosixPath(info.filename)
    target.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with zipped.open(info) as source, target.open("xb") as out:
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise ModelError("a file is longer than the archive says", where=info.filename)
            out.write(chunk)
