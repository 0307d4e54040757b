"""``effc bench`` as a user calls it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from effc.cli.bench import BenchFlags, _thread_counts, bench_command
from effc.cli.bench_tables import say_benchmark
from effc.cli.console import Console
from effc.errors import ModelError, UsageError

from .conftest import Effc


def test_bench_with_profile(effc: Effc, artifact: Path) -> None:
    answer = effc("bench", artifact, "--runs", 5, "--warmup", 1, "--profile", "--json")
    result = answer.json
    assert answer.code == 0
    assert {"median", "min", "p90", "p99", "mean", "std"} == result["latency_ms"].keys()
    assert (result["runs"], result["warmup"], result["threads"]) == (5, 1, 1)
    assert result["device"] == "local"
    nodes = {node for layer in result["per_layer"] for node in layer["nodes"]}
    assert {"conv1", "conv2", "dense", "softmax"} <= nodes


def test_bench_compares(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    """Artifacts and settings in turn; what was printed serves a later comparison."""
    answer = effc("bench", artifact, artifact, "--runs", 40, "--rounds", 4, "--json")
    assert answer.code == 0
    first, second = answer.json["artifacts"]
    assert first["label"] != second["label"]
    assert first["runs"] == second["runs"] == 40
    assert len(first["rounds_ms"]) == 4
    (ratio,) = answer.json["ratios"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert (ratio["method"], ratio["pairs"], ratio["confidence"]) == ("paired", 4, 0.95)
    (tmp_path / "old.json").write_text(json.dumps(answer.json))
    flags = ["--against", "old.json", "--report", "page.html", "--duration", "200ms"]
    again = effc("bench", artifact, "--threads", "1,2", "--rounds", 3, *flags)
    assert again.code == 0
    assert re.search(r"2 threads takes [0-9.e+]+ times as long as .*, 1 thread \(", again.out)
    assert again.out.count("(report) (") == 2
    page = (tmp_path / "page.html").read_text()
    assert "Compared" in page
    assert page.count("(report)") > 2


@pytest.mark.parametrize(
    ("text", "usable", "counts"),
    [
        (None, 0, [3]),
        ("2", 8, [2]),
        ("4,1", 8, [4, 1]),
        ("auto", 1, [1]),
        ("auto", 4, [1, 2, 4]),
        ("auto", 7, [1, 2, 4, 7]),
        ("auto", 128, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_numbers_of_threads(text: str | None, usable: int, counts: list[int]) -> None:
    assert _thread_counts(text, 3, usable) == counts


def test_bench_finds_the_number_of_threads(effc: Effc, artifact: Path) -> None:
    cpus = len(os.sched_getaffinity(0))
    answer = effc("bench", artifact, "--threads", "auto", "--runs", 20, "--rounds", 2, "--json")
    entries = answer.json.get("artifacts", [answer.json])
    threads = [entry["threads"] for entry in entries]
    assert threads == sorted(set(threads))
    assert (threads[0], threads[-1]) == (1, min(cpus, 64))


def test_bench_on_cores(effc: Effc, artifact: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    result = effc("bench", artifact, "--runs", 20, "--cores", cpu, "--json").json
    assert result["cpus"] == [cpu]
    assert result["ran_on"] == {str(cpu): 20}


def test_bench_paced_and_sustained(effc: Effc, artifact: Path) -> None:
    answer = effc("bench", artifact, "--fps", 50, "--sustain", "1s", "--json")
    result = answer.json
    assert (result["mode"], result["fps"]) == ("paced", 50.0)
    assert result["runs"] + result["skipped"] <= 51
    assert len(result["series"]) > 1
    assert sum(row["runs"] for row in result["series"]) == result["runs"]
    assert (
        effc("bench", artifact, "--fps", 50, "--sustain", "1s").out.count("at the beginning") == 1
    )


def console_text(payload: dict[str, Any]) -> str:
    """What people see of a result."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        say_benchmark(Console(), [payload], payload)
    return out.getvalue()


def test_bench_program(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    """The executable needs neither the artifact nor anything else."""
    result = effc("bench", artifact, "--program", "bench", "--json").json
    program = tmp_path / "bench"
    assert result["bytes"] == program.stat().st_size < 400_000
    moved = program.rename(tmp_path / "elsewhere")
    done = subprocess.run(
        [moved, "--runs", "7", "--machine"], env={}, capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert len(answer["times_ns"]) == 7
    assert answer["before"]["allowed"] == sorted(os.sched_getaffinity(0))


def test_bench_of_answers(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    """What was measured by hand gets the same report, and can be compared with."""
    effc("bench", artifact, "--program", "bench")
    lines = [
        subprocess.run(
            [tmp_path / "bench", "--machine", "--runs", "30", "--warmup", "2", *flags],
            capture_output=True, text=True, check=True,
        ).stdout
        for flags in ([], [], ["--profile"])
    ]  # fmt: skip
    (tmp_path / "lines").write_text("\n".join(lines))
    result = effc("bench", artifact, "--answers", "lines", "--json").json
    assert (result["runs"], result["warmup"], result["device"]) == (60, 2, "by hand")
    assert len(result["rounds_ms"]) == 2
    assert {"conv1", "conv2"} <= {n for layer in result["per_layer"] for n in layer["nodes"]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runs": 5, "sustain": "1s"}, "exclude each other"),
        ({"sustain": "1 week"}, "cannot read a duration"),
        ({"duration": "0s"}, "cannot read a duration"),
        ({"fps": 0.0}, "bad pace"),
        ({"fps": math.nan}, "bad pace"),
        ({"threads": "0"}, "bad number of threads"),
        ({"threads": "1,,2"}, "bad number of threads"),
        ({"device": "tin-can"}, "unknown device"),
        ({"cores": ("700",)}, "does not let the benchmark use these cores"),
    ],
)
def test_bench_refuses(artifact: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench_command(Console(quiet=True), [artifact], BenchFlags(**flags), None, None, None)


@pytest.mark.parametrize(
    ("against", "report", "answers", "flags", "message"),
    [
        ("missing.json", None, None, {}, "cannot read the report"),
        (None, "no/such/folder.html", None, {}, "the folder does not exist"),
        (None, None, "missing", {}, "cannot read the file"),
        (None, None, "lines", {"runs": 3, "cool_down": 1.0}, "--runs, --cool-down"),
    ],
)
def test_bench_refuses_files(
    artifact: Path,
    tmp_path: Path,
    against: str | None,
    report: str | None,
    answers: str | None,
    flags: dict[str, Any],
    message: str,
) -> None:
    paths = [tmp_path / name if name else None for name in (against, report, answers)]
    with pytest.raises(UsageError, match=message):
        bench_command(Console(quiet=True), [artifact], BenchFlags(**flags), *paths)


def test_bench_of_nonsense(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text('{"times_ns": [3]}')
    with pytest.raises(ModelError, match="run it with --machine"):
        bench_command(Console(), [artifact], BenchFlags(), None, None, tmp_path / "other")
