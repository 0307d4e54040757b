"""The tuning database: measured times of kernel configurations, in one file.

Format: JSON lines, append only. A record is written with one ``write`` under an
exclusive lock, so concurrent compilations may share a file; a process that is
killed in the middle leaves at most one torn line, which the next writer closes
and every reader skips. Two databases merge by concatenation.

A record belongs to a *context*: target, device, thread count and toolchain. Times of
one context say nothing about another, so a lookup never crosses contexts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effc.errors import UsageError
from effc.kernels.template import Config

try:
    import fcntl
except ImportError:  # not a POSIX system: appends of one line are not locked there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Database", "Measurement", "default_path"]

SCHEMA = 1


@dataclass(frozen=True)
class Measurement:
    """Time of one configuration of one layer.

    Attributes:
        context: Digest of target, device, threads and toolchain.
        key: ``Region.key``.
        template: Name of the kernel template.
        config: Its knobs.
        seconds: Time of the fastest run; ``None`` if it failed. Whatever else happens on
            the machine only makes runs slower, so the fastest one is the best estimate.
        quartile: Lower quartile of all runs in seconds.
        rounds: Number of rounds.
        error: Why there is no time.
    """

    context: str
    key: str
    template: str
    config: Config
    seconds: float | None
    quartile: float | None = None
    rounds: int = 0
    error: str = ""

    @property
    def name(self) -> str:
        """Template and configuration as text; equal texts mean equal code."""
        return candidate_name(self.template, self.config)


def candidate_name(template: str, config: Config) -> str:
    """Template and configuration as text, independent of the order of the knobs."""
    return f"{template} {json.dumps(dict(config), sort_keys=True)}"


def default_path() -> Path:
    """The user's database: ``$XDG_DATA_HOME/effc/tuning.jsonl``."""
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "effc" / "tuning.jsonl"


class Database:
    """Measurements in a file.

    Args:
        path: The file; it and its folder are created by the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def measurements(self, context: str) -> dict[str, dict[str, Measurement]]:
        """Best measurement of each candidate, by layer key and candidate name.

        Raises:
            UsageError: The file cannot be read, or is no tuning database.
        """
        found: dict[str, dict[str, Measurement]] = {}
        for record in self._records(context):
            if record["kind"] != "time":
                continue
            fields = {k: v for k, v in record.items() if k not in ("kind", "schema")}
            new = Measurement(**fields)
            layer = found.setdefault(new.key, {})
            layer[new.name] = _better(layer.get(new.name), new)
        return found

    def finished(self, context: str) -> dict[str, str]:
        """Thoroughness to which each layer has been searched, by layer key."""
        return {
            record["key"]: record["effort"]
            for record in self._records(context)
            if record["kind"] == "done"
        }

    def contexts(self) -> dict[str, dict[str, Any]]:
        """What contexts stand for, by digest, in the order in which they were first measured."""
        records = (json.loads(line) for line in self._lines() if '"details"' in line)
        return {r["context"]: r["details"] for r in records if r["kind"] == "context"}

    def notes(self, context: str, kind: str) -> dict[str, dict[str, Any]]:
        """Records of another kind (``levels``, ``network``) by their key; the first one counts."""
        found: dict[str, dict[str, Any]] = {}
        for record in self._records(context):
            if record["kind"] == kind:
                found.setdefault(record["key"], record)
        return found

    def note(self, context: str, kind: str, key: str, fields: Mapping[str, object]) -> None:
        """Append a record that :meth:`notes` finds."""
        self._append([{"kind": kind, "context": context, "key": key, **fields}])

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Append measurements; they are on disk when this returns."""
        self._append({"kind": "time", **vars(m), "config": dict(m.config)} for m in measurements)

    def finish(self, context: str, efforts: Mapping[str, str]) -> None:
        """Note that layers (by key) need no further search at the given effort."""
        self._append(
            {"kind": "done", "context": context, "key": key, "effort": effort}
            for key, effort in efforts.items()
        )

    def describe(self, context: str, details: Mapping[str, object]) -> None:
        """Note once what a context stands for, for people who read the file."""
        if not any(record["kind"] == "context" for record in self._records(context)):
            self._append([{"kind": "context", "context": context, "details": details}])

    def merge(self, other: Path) -> int:
        """Append every record of another database that this one lacks.

        Returns:
            How many were appended.
        """
        mine = set(self._lines())
        missing = [line for line in dict.fromkeys(Database(other)._lines()) if line not in mine]
        self._write("".join(line + "\n" for line in missing))
        return len(missing)

    def _records(self, context: str) -> Iterable[dict[str, Any]]:
        for line in self._lines():
            if context in line:  # cheaper than parsing the records of every other device
                record = json.loads(line)
                if record.get("context") == context and record.get("schema") == SCHEMA:
                    yield record

    def _lines(self) -> list[str]:
        """Complete records as text; torn ones (a killed writer) are skipped."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable("the tuning database cannot be read", error) from error
        lines = []
        for raw in text.split(b"\n"):
            try:
                record = json.loads(raw) if raw.strip() else None
            except ValueError:
                continue
            if isinstance(record, dict) and "kind" in record:
                lines.append(raw.decode("utf-8"))
        if text.strip() and not lines and not text.startswith(b"{"):
            raise UsageError(
                "the file is no tuning database",
                where=str(self.path),
                expected="JSON lines written by effc",
                hint="give --tuning-db another file",
            )
        return lines

    def _append(self, records: Iterable[Mapping[str, Any]]) -> None:
        self._write(
            "".join(
                json.dumps({"schema": SCHEMA, **r}, sort_keys=True, separators=(",", ":")) + "\n"
                for r in records
            )
        )

    def _write(self, text: str) -> None:
        if not text:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b", buffering=0) as file, _locked(file.fileno()):
                size = file.seek(0, os.SEEK_END)
                if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    text = "\n" + text  # the last writer was killed within its line
                data = text.encode("utf-8")
                while data:
                    data = data[file.write(data) or 0 :]
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unusable("the tuning database cannot be written", error) from error

    def _unusable(self, what: str, error: OSError) -> UsageError:
        return UsageError(
            what,
            where=str(self.path),
            got=error.strerror or str(error),
            hint="give --tuning-db a file in a folder you may write to",
        )


@contextmanager
def _locked(descriptor: int) -> Any:
    """Hold an exclusive advisory lock on an open file."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _better(old: Measurement | None, new: Measurement) -> Measurement:
    """The faster of two measurements of one candidate; a time beats a failure."""
    if old is None or old.seconds is None:
        return new
    if new.seconds is None or old.seconds <= new.seconds:
        return old
    return new
