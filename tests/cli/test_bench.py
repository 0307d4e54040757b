"""``effc bench`` as a user calls it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

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


def test_bench_on_cores(effc: Effc, artifact: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    result = effc("bench", artifact, "--runs", 20, "--cores", cpu, "--json").json
    assert result["cpus"] == [cpu]
    assert result["ran_on"] == {str(cpu): 20}
    refused = effc("bench", artifact, "--cores", "700")
    assert refused.code == 2
    assert "does not let the benchmark use these cores" in refused.err


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
    refused = effc("bench", artifact, "--answers", "lines", "--runs", 3, "--cool-down", 1)
    assert refused.code == 2
    assert "--runs, --cool-down" in refused.err
    (tmp_path / "other").write_text('{"times_ns": [3]}')
    damaged = effc("bench", artifact, "--answers", "other")
    assert damaged.code == 3
    assert "run it with --machine" in damaged.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs", 5, "--sustain", "1s"], "exclude each other"),
        (["--sustain", "1 week"], "cannot read a duration"),
        (["--duration", "0s"], "cannot read a duration"),
        (["--fps", "0"], "bad pace"),
        (["--fps", "nan"], "bad pace"),
        (["--threads", "0"], "bad number of threads"),
        (["--threads", "1,,2"], "bad number of threads"),
        (["--against", "missing.json"], "cannot read the report"),
        (["--report", "no/such/folder.html"], "cannot write there"),
        (["--device", "tin-can"], "unknown device"),
    ],
)
def test_bench_refuses(effc: Effc, artifact: Path, flags: list[object], message: str) -> None:
    answer = effc("bench", artifact, *flags)
    assert answer.code == 2
    assert message in answer.err
    assert answer.out == ""
