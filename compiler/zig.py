"""The C toolchain: Clang, LLD and C runtime parts that come with the ``ziglang`` package.

Clang and LLD are called directly (`zig clang`, `zig ld.lld`): a few milliseconds each, no
cache of zig's own involved. What is the same for every model (the runtime's objects, stub
libraries, musl's start files) is built once per target into a user cache directory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from effc.errors import ToolError

__all__ = [
    "build_object",
    "cached",
    "clang",
    "clang_each",
    "lld",
    "run_tool",
    "zig_path",
    "zig_version",
]

_TIMEOUT_S = 600.0


@cache
def zig_path() -> Path:
    """The zig executable.

    Raises:
        ToolError: The package ``ziglang`` is not installed.
    """
    try:
        import ziglang
    except ImportError as error:
        raise ToolError(
            "the C toolchain is missing",
            where="ziglang",
            hint="python -m pip install ziglang==0.17.0",
        ) from error
    path = Path(ziglang.__file__).parent / "zig"
    if not path.exists():
        raise ToolError(
            "the package ziglang holds no zig executable",
            where=str(path),
            hint="python -m pip install --force-reinstall ziglang==0.17.0",
        )
    return path


@cache
def zig_version() -> str:
    """Version of the toolchain, part of every cache key."""
    return run_tool([str(zig_path()), "version"]).strip()


def run_tool(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a tool and return what it printed.

    Raises:
        ToolError: It could not be started, failed or hung.
        OSError: The disk is full.
    """
    env = {**os.environ, "LC_ALL": "C"}
    if "ZIG_GLOBAL_CACHE_DIR" not in env:
        env["ZIG_GLOBAL_CACHE_DIR"] = str(_cache_root() / "zig")
    env["ZIG_LOCAL_CACHE_DIR"] = env["ZIG_GLOBAL_CACHE_DIR"]
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise ToolError("cannot start a tool", where=command[0], got=error) from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(
            "a tool did not finish", where=command[0], expected=f"an end within {_TIMEOUT_S} s"
        ) from error
    if done.returncode != 0:
        if os.strerror(errno.ENOSPC) in done.stderr:  # of temporary files; the output's is checked
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
        raise ToolError(
            "a tool failed",
            where=" ".join(Path(part).name for part in command[:2]),
            got=f"exit code {done.returncode}: {(done.stderr or done.stdout)[-2000:].strip()}",
        )
    return done.stdout + done.stderr


def clang(arguments: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run Clang with no headers but its own (``stdint.h``, ``stdatomic.h`` ...)."""
    zig = zig_path()
    headers = str(zig.parent / "lib" / "include")
    run_tool([str(zig), "clang", "-nostdlibinc", "-isystem", headers, *arguments], cwd=cwd)


def clang_each(flags: Sequence[str], sources: Sequence[Path], folder: Path) -> None:
    """Compile many files side by side, each into an object of its name in ``folder``."""

    def compile_one(source: Path) -> None:
        clang([*flags, "-c", str(source), "-o", f"{source.stem}.o"], cwd=folder)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources))


def build_object(source: str, triple: str, out: Path, *flags: str) -> None:
    """Compile a source file of zig's own library into one object.

    Without knowledge of builtins: a ``memset`` compiled with it would call itself.
    """
    command = [str(zig_path()), "build-obj", str(zig_path().parent / "lib" / source)]
    command += ["-target", triple, "-fstrip", "-fno-builtin", "-ffunction-sections"]
    run_tool([*command, *flags, "--name", out.stem, f"-femit-bin={out}"])


def lld(arguments: Sequence[str], out: Path) -> None:
    """Run the ELF linker in the folder of ``out``, so paths among the arguments are absolute.

    Clang and LLD put random digits in place of every ``%`` in the path of their output, so
    that path must not contain the folder.
    """
    run_tool([str(zig_path()), "ld.lld", "-o", out.name, *arguments], cwd=out.parent)


def cached(key: Sequence[str], build: Callable[[Path], None]) -> Path:
    """A folder of the user's cache, built when it is not there yet.

    Args:
        key: Everything that the content depends on, besides the toolchain's version.
        build: Fills an empty folder. Concurrent builders do not disturb each other: the
            first to finish wins.

    Raises:
        ToolError: The cache folder cannot be written.
    """
    text = "\0".join((zig_version(), *key))
    folder = _cache_root() / "link" / hashlib.sha256(text.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    except OSError as error:
        raise ToolError(
            "the cache folder cannot be written",
            where=str(folder.parent),
            got=error,
            hint="set XDG_CACHE_HOME to a writable folder",
        ) from error
    try:
        build(work)
        work.chmod(0o755)
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "effc"
