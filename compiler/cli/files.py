"""The one file that a command writes: as a whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from effc.errors import UsageError

__all__ = ["check_output_file", "output_file"]


def check_output_file(path: Path, flag: str) -> None:
    """Raise if no file can be written at a path, before the work for it begins.

    Raises:
        UsageError: Its folder does not exist or is read-only, or it is a folder or a device.
    """
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError("the folder does not exist", where=f"{flag} {path}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError("the folder is not writable", where=f"{flag} {path}")
    if path.exists() and not path.is_file():
        raise UsageError("in the way: not a file", where=f"{flag} {path}")


@contextmanager
def output_file(path: Path, flag: str) -> Iterator[Path]:
    """Where to write a file, which moves to ``path`` when the block ends well.

    Args:
        path: Where it shall be; what lies there is replaced, through links.
        flag: That named it, for messages.

    Raises:
        UsageError: It cannot be written.
    """
    check_output_file(path, flag)
    place = path.resolve()
    try:
        with tempfile.TemporaryDirectory(prefix=".effc-tmp-", dir=place.parent) as folder:
            part = Path(folder) / place.name
            yield part
            part.replace(place)
    except OSError as error:
        raise UsageError(
            f"cannot write the file: {(error.strerror or str(error)).lower()}",
            where=f"{flag} {path}",
            hint="free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None,
        ) from error
