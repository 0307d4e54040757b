"""The example of the C API compiles without warnings and runs against a library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from toy_model import toy_object, toy_program

from effc.devices.catalog import get_target
from effc.link import library_headers, link_library

EXAMPLE = Path(__file__).parents[2] / "examples" / "c_api" / "main.c"


def test_example(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no system C compiler (cc)")
    program = toy_program("digits")
    for name, text in library_headers([program]).items():
        (tmp_path / name).write_text(text)
    target = get_target("host")
    stages = toy_object(target, tmp_path, "digits")
    link_library(program, [stages], target, tmp_path / "libdigits.so")
    out = tmp_path / "main"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{tmp_path}"]
    link = [f"-L{tmp_path}", "-ldigits", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([compiler, *flags, EXAMPLE, *link, "-o", out], check=True)
    done = subprocess.run([out], capture_output=True, text=True, check=True)
    assert 'input in "x": [10, 4], 160 bytes' in done.stdout
    assert done.stdout.count(" us\n") == len(program.calls)
