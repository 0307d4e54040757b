"""Code generation in child processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from processes import running

SLOW = """
import os, time
from types import SimpleNamespace
from effc import lower
lower.lower = lambda functions, target: time.sleep(600)
os.sched_getaffinity = lambda pid: {0, 1}
lower.lower_all({str(i): None for i in range(12)}, SimpleNamespace(name="t"))
"""


def test_killed_compiler_leaves_no_children() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW])
    try:
        children: list[int] = []
        deadline = time.monotonic() + 60
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            children = [int(pid) for pid in tasks.read_text().split()]
        assert len(children) == 2
        time.sleep(0.5)  # until they have run their first lines
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while any(map(running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, children))
