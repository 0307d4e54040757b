"""The C runtime: sanitizers, thread pool stress, misuse, work split, header in C++."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pytest
from toy_model import native_program, toy_program

from effc.link import library_headers

HERE = Path(__file__).parent
CORE = Path(str(resources.files("effc.runtimes"))) / "core"


def execute(program: Path, *arguments: str) -> None:
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stderr[-3000:]}"
    assert not done.stderr, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("flags", "repeats", "threads"),
    [
        (["-fsanitize=address,undefined", "-fno-sanitize-recover=all"], 200, 4),
        (["-fsanitize=thread"], 200, 4),
        (["-fsanitize=thread", "-DEFFC_FUTEX=0"], 40, 4),
        (["-O2"], 1000, 7),
        (["-DEFFC_THREADS=0", "-fsanitize=undefined"], 20, 1),
    ],
    ids=["asan+ubsan", "tsan", "tsan-condvar", "plain", "one-thread-build"],
)
def test_two_models_four_instances_at_once(
    tmp_path: Path, flags: Sequence[str], repeats: int, threads: int
) -> None:
    programs = [toy_program("first", 37), toy_program("second", 37, bounds=True)]
    built = native_program(tmp_path, programs, [HERE / "stress.c"], flags)
    execute(built, str(repeats), str(threads))


def test_misuse_gives_the_documented_status(tmp_path: Path) -> None:
    programs = [toy_program("first", 5), toy_program("second", 5)]
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    execute(native_program(tmp_path, programs, [HERE / "misuse.c"], flags))


def test_work_split(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no system C compiler (cc)")
    out = tmp_path / "split"
    sources = [str(HERE / "split.c"), str(CORE / "pool.c")]
    subprocess.run([compiler, "-O1", f"-I{CORE}", *sources, "-o", out, "-lpthread"], check=True)
    execute(out)


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_headers_compile_as_cpp(tmp_path: Path, standard: str) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    for name, text in library_headers([toy_program()]).items():
        (tmp_path / name).write_text(text)
    source = tmp_path / "use.cpp"
    source.write_text(
        '#include "toy.h"\n'
        "int use(effc_model *m, const effc_tensor *i, const effc_tensor *o) {\n"
        "  static char arena[toy_ARENA_BYTES(2)];\n"
        "  effc_options options{}; options.arena = arena; options.arena_bytes = sizeof arena;\n"
        "  return toy_create(&options, &m) == EFFC_OK && toy_run(m, i, o) == EFFC_OK;\n}\n"
    )
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-std={standard}"]
    subprocess.run([compiler, *flags, "-c", source, "-o", tmp_path / "use.o"], check=True)
