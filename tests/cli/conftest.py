"""Fixtures of the command-line tests: a compiled example, and a way to call ``effc``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        value: dict[str, Any] = json.loads(self.out)
        return value


Effc = Callable[..., Answer]


def call(*arguments: object, cwd: Path | None = None, **environment: str) -> Answer:
    """Run ``effc`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from effc.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **environment},
        timeout=300,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def effc(tmp_path: Path) -> Effc:
    """``effc(*arguments)`` runs in an empty folder."""

    def run(*arguments: object, **environment: str) -> Answer:
        return call(*arguments, cwd=tmp_path, **environment)

    return run


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits example compiled for this machine."""
    path = tmp_path_factory.mktemp("artifact") / "digits"
    answer = call("compile", EXAMPLE / "digits.onnx", "--target", "host", "-o", path, "-q")
    assert answer.code == 0, answer.err
    return path
