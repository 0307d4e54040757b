"""Options and fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from shared_data import SHARED_DATA

_skipped_data: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files instead of comparing"
    )
    parser.addoption(
        "--codegen", choices=["gcc", "clang"], help="run all kernels of tests/kernels as printed C"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)``: text equals the file ``tests/golden/name``."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        assert path.exists(), f"no golden file {path}, run pytest --update-golden"
        assert text == path.read_text("utf-8"), f"{name} changed, see pytest --update-golden"

    return check


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note tests that were skipped for lack of the shared data."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "../shared" in reason or "beside the project" in reason:
            _skipped_data.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, tests that need the shared data must not be skipped where it exists."""
    if os.environ.get("CI") and SHARED_DATA.is_dir() and _skipped_data:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run without a failed test fails."""
    if os.environ.get("CI") and SHARED_DATA.is_dir() and _skipped_data:
        terminalreporter.write_line(f"{SHARED_DATA} is there, but these tests were skipped:")
        for name in _skipped_data:
            terminalreporter.write_line(f"  {name}")
