"""Sessions on devices: push files, run programs with time limits, pull files, leave nothing behind.

A session has a private folder on the device and a *keeper* there (``remote/keeper.sh``), a shell
process at the end of an open connection. When the connection ends, by :meth:`Session.close`, by a
broken cable or because this process was killed, the keeper ends the session's programs and
removes the folder. So nothing depends on this side being alive. Each program also has its time
limit on the device, for a connection that dies unnoticed.

Files with ``keep`` go to a cache on the device by the SHA-256 of their contents, and are pushed
only if it lacks them; what was not used for a week is removed there. Contents are checked by that
sum after each transfer, so a torn one is never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import secrets
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Self

from effc.devices.links import BROKEN, UNKNOWN, ConnectionLost, Link, command_line
from effc.devices.process import Finished, TimedOut, converse, kill
from effc.errors import DeviceError, InternalError, UsageError

__all__ = ["Content", "OutOfTime", "Session"]

Content = Path | bytes
"""A file's contents: a file of this machine, or the bytes themselves."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_OPEN_S = 30.0
_CLOSE_S = 15.0
_SCRIPT_S = 60.0
_SLOWEST_BYTES_PER_S = 500_000
_GRACE_S = 15.0
"""How much later than here a program's time is up on the device."""

_DAMAGED = 3
"""Code of ``store.sh`` for a content that is not what was sent."""


class OutOfTime(DeviceError):
    """A program did not end within its limit."""


class Session:
    """A private folder on a device.

    Args:
        link: The way there.
        runner: Words before every command: an emulator, where the device needs one.

    Raises:
        DeviceError: The device cannot be reached; :class:`ConnectionLost` if trying again may help.
    """

    def __init__(self, link: Link, runner: Sequence[str] = ()) -> None:
        self.link = link
        self.runner = tuple(runner)
        self._name = secrets.token_hex(8)
        self._pushed: dict[str, str] = {}
        self._keeper = link.open(_script("keeper", [link.base, self._name]))
        try:
            self.folder = self._await_keeper()
        except BaseException:
            self.close()
            raise

    def push(self, files: Mapping[str, Content], *, keep: bool = False) -> None:
        """Put files into the private folder.

        Args:
            files: Contents by name (letters, digits, ``_ . -``). All are executable there.
            keep: They are the same next time, so the device's cache may keep them.

        Raises:
            DeviceError: No storage left, or the transfer failed.
        """
        for name in files:
            if not _FILE_NAME.fullmatch(name):
                raise InternalError("bad name of a file for a device", where=name)
        with tempfile.TemporaryDirectory(prefix="effc-push-") as staged:
            paths = {name: _as_file(files[name], Path(staged) / name) for name in files}
            sums = {name: _sha256(path) for name, path in paths.items()}
            sums = {name: sum_ for name, sum_ in sums.items() if self._pushed.get(name) != sum_}
            sent = {name: paths[name] for name in sums}
            if keep and sent:
                lacking = self._script("missing", dict.fromkeys(sums.values())).out.split()
                by_sum = {sums[name]: paths[name] for name in sums}
                sent = {digest: by_sum[digest] for digest in map(bytes.decode, lacking)}
            if sent:
                size = sum(path.stat().st_size for path in sent.values())
                limit = _SCRIPT_S + size / _SLOWEST_BYTES_PER_S
                self._transfer(lambda: self.link.push(sent, f"{self.folder}/.in", limit))
        if not sums:
            return
        kind = "keep" if keep else "private"
        words = [word for name in sums for word in (kind, sums[name], name)]
        code = self._script("store", words, accept=(_DAMAGED,)).code
        if code == _DAMAGED:
            raise ConnectionLost("a file arrived damaged", where=self.link.device)
        self._pushed.update(sums)

    def run(
        self,
        command: Sequence[str],
        timeout_s: float,
        *,
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Finished:
        """Run a program in the private folder.

        Args:
            command: The name of a pushed file, and its arguments.
            timeout_s: For the program.
            environment: Variables to add.
            stdin: Name of a pushed file for its standard input; it is empty if ``None``.
            on_line: Called with each line that it prints, as it comes.

        Returns:
            Its exit code (128 + number of a signal) and what it printed.

        Raises:
            OutOfTime: It did not end in time and was killed.
            DeviceError: The connection broke.
        """
        if command[0] not in self._pushed or (stdin is not None and stdin not in self._pushed):
            raise InternalError("the program was not pushed", got=[command[0], stdin])
        words = [*self.runner, f"{self.folder}/{command[0]}", *command[1:]]
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        if any(not _VARIABLE.match(word) for word in variables) or "\0" in "".join(words):
            raise UsageError("not an argument for a program", got=[*variables, *words])
        words = ["env", *variables, *words] if variables else words
        limit = str(math.ceil(timeout_s + _GRACE_S))
        try:
            return self._script(
                "run", [limit, stdin or "/dev/null", *words], timeout_s, on_line, accept=None
            )
        except TimedOut:
            self.close()
            raise OutOfTime(
                "the program did not finish",
                where=f"{command[0]} on {self.link.device}",
                expected=f"an end within {timeout_s:g} s",
            ) from None

    def probe(self) -> str:
        """What the system tells about the device, see ``effc.devices.probe``."""
        return self._script("probe", []).out.decode("utf-8", "replace")

    def clean(self) -> None:
        """Forget on the device what was pushed to be kept."""
        self._script("clean", [])

    def pull(self, names: Sequence[str], folder: Path, timeout_s: float = 600.0) -> None:
        """Copy files of the private folder into a folder of this machine.

        Raises:
            DeviceError: A file is missing there, or the transfer failed.
        """
        for name in names:
            if not _FILE_NAME.fullmatch(name):
                raise InternalError("bad name of a file on a device", where=name)
        self._transfer(lambda: self.link.pull(names, self.folder, folder, timeout_s))

    def close(self) -> bool:
        """End what still runs there and remove the private folder. May be called again.

        Returns:
            Whether the device has said that it is done. If not, it does so when it notices, or
            its next session does.
        """
        keeper, done = self._keeper, False
        if keeper.poll() is None and keeper.stdin is not None and keeper.stdout is not None:
            with contextlib.suppress(OSError):
                keeper.stdin.close()
            late = threading.Timer(_CLOSE_S, keeper.kill)
            late.start()
            with contextlib.suppress(OSError, ValueError):
                while line := keeper.stdout.readline():
                    done = line == f"{self._name} closed\n".encode()
            late.cancel()
        kill(keeper)
        self.link.close()
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _await_keeper(self) -> str:
        """The folder that the keeper has made."""
        keeper = self._keeper
        assert keeper.stdout is not None
        assert keeper.stderr is not None
        late = threading.Timer(_OPEN_S, keeper.kill)
        late.start()
        prefix = f"{self._name} ready ".encode()
        lines = []
        while (line := keeper.stdout.readline()) and not line.startswith(prefix):
            lines.append(line)
        late.cancel()
        if line.endswith(b"\n"):
            return line[len(prefix) : -1].decode("utf-8", "surrogateescape")
        code = keeper.wait()
        if code < 0:
            raise ConnectionLost("the device does not answer", where=self.link.device)
        raise self.link.explain(Finished(code, b"".join(lines), keeper.stderr.read()))

    def _script(
        self,
        name: str,
        words: Sequence[str] | Mapping[str, object],
        timeout_s: float | None = None,
        on_line: Callable[[str], None] | None = None,
        accept: Sequence[int] | None = (),
    ) -> Finished:
        """Run one of ours on the device, to its last line, which proves that all has arrived.

        What the device's login shell may say before it (``~/.bashrc``) is left out.

        Args:
            name, words: Of the script, and its further arguments.
            timeout_s: From now to its end; a minute if ``None``.
            on_line: As for :meth:`run`.
            accept: Codes besides 0 that are no failure; ``None``: all.
        """
        last, first = f"{self._name} ".encode(), f"{self._name} begins\n".encode()
        begun = False

        def pass_on(line: bytes) -> None:
            nonlocal begun
            if begun and on_line is not None and line.strip() and not line.startswith(last):
                on_line(line.decode("utf-8", "replace"))
            begun = begun or line == first

        command = _script(name, [self.folder, self._name, *words])
        argv = self.link.argv(f"echo; echo {self._name} begins; {command}")
        try:
            done = converse(argv, timeout_s or _SCRIPT_S, on_line=pass_on)
        except TimedOut:
            if name == "run":
                raise
            raise ConnectionLost("the device does not answer", where=self.link.device) from None
        output, found, code = done.out.partition(first)[2].rpartition(b"\n" + last)
        if not found or not code.strip().isdigit() or not code.endswith(b"\n"):
            raise self._unfinished(done)
        done = Finished(int(code), output, done.err)
        if accept is not None and done.code not in (0, *accept):
            raise self.link.explain(done)
        return done

    def _unfinished(self, done: Finished) -> DeviceError:
        """Why a script's output has no last line: a known complaint, or the connection."""
        error = self.link.explain(done)
        if error.what != UNKNOWN:
            return error
        return ConnectionLost(BROKEN, where=self.link.device, got=done.message or None)

    def _transfer(self, copy: Callable[[], Finished]) -> None:
        try:
            done = copy()
        except TimedOut:
            raise ConnectionLost("a transfer did not finish", where=self.link.device) from None
        if done.code != 0:
            raise self.link.explain(done)


def _script(name: str, words: Sequence[str]) -> str:
    """Command line for the shell of a device that runs one of the scripts."""
    return command_line(["exec", "sh", "-c", _script_text(name), "effc", *words])


@cache
def _script_text(name: str) -> str:
    """A script without its comments."""
    text = (resources.files("effc.devices") / "remote" / f"{name}.sh").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def _as_file(content: Content, place: Path) -> Path:
    """A content as a file; bytes are written to ``place``."""
    if isinstance(content, Path):
        return content
    place.write_bytes(content)
    return place


def _sha256(path: Path) -> str:
    found = path.stat()
    return _sha256_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, changed_ns: int) -> str:
    """Sum of a file, once for each of its states."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
