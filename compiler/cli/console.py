"""What every command prints with: results on stdout, everything else on stderr.

With ``--json`` stdout carries exactly one JSON object; tables, messages and
progress bars never go there.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

    from effc.errors import EffcError
    from effc.options import ProgressCallback

__all__ = ["Console", "results"]


@dataclass
class Console:
    """Output settings of one command.

    Attributes:
        as_json: One JSON object on stdout, everything else on stderr.
        quiet: Only results and errors.
        verbose: Also what every pass and phase did.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        self._out = results()
        level = logging.ERROR if self.quiet else logging.INFO if self.verbose else logging.WARNING
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("effc")
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False

    def result(self, payload: Mapping[str, Any]) -> None:
        """Print the JSON object if ``--json`` was given."""
        if self.as_json:
            self._out.write(json.dumps(_finite(payload), allow_nan=False) + "\n")
            self._out.flush()

    def say(self, text: str = "") -> None:
        """A line of the human-readable result (stdout), nothing with ``--json``."""
        if not self.as_json:
            self._out.write(text + "\n")
            self._out.flush()

    def note(self, text: str) -> None:
        """Commentary on stderr; nothing with ``-q``."""
        if not self.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def fail(self, error: EffcError) -> NoReturn:
        """End with an error whose JSON result was printed already."""
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        title: str = "",
        right: Iterable[str] = (),
    ) -> None:
        """A table on stdout, nothing with ``--json``; columns in ``right`` are numbers."""
        if self.as_json:
            return
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        numbers = set(right)
        table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            justify = "right" if column in numbers else "left"
            table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*(_escape(str(cell)) for cell in row))
        self._rich(self._out).print(table)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """A progress bar with time left on stderr, only where a person watches."""
        if self.quiet or not sys.stderr.isatty():
            yield _log_phases if self.verbose else None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[detail]}"),
            console=self._rich(sys.stderr),
            transient=True,
        )
        tasks: dict[str, Any] = {}

        def update(phase: str, done: int, total: int, detail: str = "") -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=max(total, 1), detail="")
            bar.update(
                tasks[phase],
                completed=done,
                total=max(total, 1),
                detail="" if done >= total else _escape(detail)[:40],
            )

        with bar:
            yield update

    def _rich(self, stream: Any) -> RichConsole:
        from rich.console import Console as RichConsole

        width = None if stream.isatty() else int(os.environ.get("COLUMNS", "160"))
        return RichConsole(file=stream, width=width, highlight=False, soft_wrap=False)


@cache
def results() -> TextIO:
    """Keep stdout for results: whatever libraries print there goes to stderr from now on."""
    try:
        copy = os.dup(sys.stdout.fileno())
        kept = os.fdopen(copy, "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    except (OSError, ValueError):  # not real files, for example captured by a test
        return sys.stdout
    return kept


def _log_phases(phase: str, done: int, total: int, detail: str = "") -> None:
    if done >= total:
        logging.getLogger("effc").info("%s: %d/%d %s", phase, done, total, detail)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: they become ``null``."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
