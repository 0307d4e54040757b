"""From exceptions to exit codes: the only place that ends the process.

0 done, 1 quality not met, 2 wrong usage, 3 invalid or unsupported model or data,
4 a tool is missing, 5 the device is unreachable, 70 a bug of ours (with a report
file), 130 interrupted.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from effc.cli.console import results
from effc.errors import EffcError, InternalError, ModelError, UsageError

__all__ = ["guard", "write_crash_report"]

INTERRUPTED = 130
_AGAIN_S = 0.05


_signals: list[int] = []
"""What has asked this process to stop. Whatever fails from then on is a consequence: imports and
libraries turn KeyboardInterrupt into errors of their own, and programs we wait for die as well."""


def guard() -> NoReturn:
    """Run the command line; print errors without tracebacks; exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = _unraisable
    sys.exit(_run())


def _run() -> int:
    try:
        from effc.cli.app import app

        code = app(sys.argv[1:] or ["--help"], prog_name="effc", standalone_mode=False)
        return _interrupted() if code == INTERRUPTED else code or 0  # typer's answer to Ctrl-C
    except KeyboardInterrupt:
        return _interrupted()
    except EffcError as error:
        return _fail(error)
    except BrokenPipeError:  # the reader of our output has gone, as in `effc targets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), results().fileno())
        return 0
    except OSError as error:
        return _fail(_from_os_error(error))
    except MemoryError:
        return _fail(
            ModelError("out of memory", hint="use a smaller model or --shape, or free memory")
        )
    except Exception as error:
        if hasattr(error, "format_message"):
            return _fail(_from_flag_error(error))
        return _fail(InternalError(f"{type(error).__name__}: {error}"), error)


def _interrupted() -> int:
    _say("interrupted; nothing was left half-written")
    return INTERRUPTED


def _fail(error: EffcError, cause: BaseException | None = None) -> int:
    if _signals:
        return _interrupted()
    text = f"error: {error}"
    if isinstance(error, InternalError):
        path = write_crash_report(cause or error)
        text += f"\n  this is a bug of effc; please report it with the file {path}"
    _say(text)
    if "--json" in sys.argv[1:]:
        stream = results()
        stream.write(json.dumps({"ok": False, "error": _describe(error)}) + "\n")
        stream.flush()
    return error.exit_code


def _describe(error: EffcError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "what": error.what,
        "where": error.where,
        "expected": None if error.expected is None else str(error.expected),
        "got": None if error.got is None else str(error.got),
        "hint": error.hint,
    }


def _from_flag_error(error: Any) -> EffcError:
    """What the command line parser raises; its class has moved between versions of typer."""
    context = getattr(error, "ctx", None)
    command = "effc" if context is None else context.command_path
    return UsageError(error.format_message().rstrip("."), hint=f"see {command} --help")


def _from_os_error(error: OSError) -> EffcError:
    """A file that cannot be read or written is the user's to fix, not a crash."""
    return UsageError(
        (error.strerror or str(error)).lower(),
        where=str(error.filename) if error.filename is not None else None,
        hint="check the path, its permissions and the free disk space",
    )


def write_crash_report(error: BaseException) -> Path:
    """Write what a maintainer needs to know; in the current folder if it is writable."""
    from effc import __version__

    lines = [
        f"effc {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: {' '.join(sys.argv)}",
        "",
        *traceback.format_exception(error),
    ]
    name = time.strftime(f"effc-crash-%Y%m%d-%H%M%S-{os.getpid()}.txt")
    for folder in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            path = folder / name
            path.write_text("\n".join(lines), encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return path
    return Path(os.devnull)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _signals.append(signum)
    raise KeyboardInterrupt


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Finalizers and callbacks can raise nothing: an interrupt there comes again a little later."""
    if lost.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        sys.__unraisablehook__(lost)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
