"""Artifacts on devices through the command line: this machine's and 64-bit Arm's code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adb_double import AdbDouble
from benchmark import sysfs
from places import Place, make_phone, processes

import effc
from effc.devices.address import parse_device
from effc.devices.probe import facts_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits example, with weights in a file for Android."""
    folder = tmp_path_factory.mktemp("artifacts")
    found = {}
    for target, weights in (
        ("host", "embedded"),
        ("linux-arm64", "embedded"),
        ("android", "file"),
        ("pixel-7", "embedded"),
    ):
        found[target] = folder / target
        effc.compile(
            EXAMPLE / "digits.onnx", target, found[target], name="digits", weights=weights,
            verify=False,
        )  # fmt: skip
    return found


def call(code: int, *words: object) -> dict[str, Any]:
    """Run ``effc`` with ``--json``."""
    done = subprocess.run(
        [sys.executable, "-c", "from effc.cli import main; main()", *map(str, words), "--json"],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("kind", "target"), [("ssh", "host"), ("arm_ssh", "linux-arm64"), ("arm_adb", "android")]
)
def test_commands(
    kind: str,
    target: str,
    artifacts: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place: Place = request.getfixturevalue(f"{kind}_place")
    artifact, on = artifacts[target], ("--device", place.device)
    data = np.load(EXAMPLE / "digits_test.npz")["x"][:3]
    np.savez(tmp_path / "x.npz", x=data)

    answer = call(0, "verify", artifact, "--model", EXAMPLE / "digits.onnx", *on)
    assert answer["ok"]
    assert answer["device"] == place.device

    if kind == "ssh":
        model = EXAMPLE / "digits.onnx"
        compared = call(0, "compare", model, artifact, "--input", tmp_path / "x.npz", *on)
        assert compared["device"] == place.device
        assert len(compared["layers"]) >= 3

    call(0, "run", artifact, "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz", *on)
    if place.phone is not None:  # all samples in one visit: inputs there, outputs back
        assert place.phone.services[-7:].count("sync:") == 2
    call(0, "run", artifacts["host"], "--input", tmp_path / "x.npz", "-o", tmp_path / "z.npz")
    y, z = (np.load(tmp_path / name)["probabilities"] for name in ("y.npz", "z.npz"))
    np.testing.assert_allclose(y, z, atol=1e-5)

    bench = call(0, "bench", artifact, "--runs", 3, "--warmup", 1, "--profile", *on)
    assert bench["device"] == place.device
    assert bench["latency_ms"]["median"] > 0
    assert len(bench["per_layer"]) >= 5
    place.assert_clean()


@pytest.mark.parametrize(("kind", "target"), [("ssh", "host"), ("arm_adb", "android")])
def test_benchmarks(
    kind: str, target: str, artifacts: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    """Artifacts in turn on chosen cores, with what the device tells of its clocks and heat."""
    place: Place = request.getfixturevalue(f"{kind}_place")
    cpu = min(os.sched_getaffinity(0))
    if place.phone is not None:
        place.phone.environment["EFFC_ROOT"] = str(place.phone.path("/"))
        sysfs.phone(place.phone.path("/"))
    artifact = artifacts[target]
    flags = ["--rounds", 2, "--runs", 6, "--cores", cpu, "--device", place.device]
    answer = call(0, "bench", artifact, artifact, *flags)
    assert [entry["runs"] for entry in answer["artifacts"]] == [6, 6]
    assert answer["ratios"][0]["pairs"] == 2
    entry = answer["artifacts"][1]
    assert entry["ran_on"] == {str(cpu): 6}
    assert entry["device"] == place.device
    assert not entry["emulated"]
    if place.phone is not None:
        before = entry["machine"]["before"]
        assert [cluster["name"] for cluster in before["clusters"]] == ["little", "mid", "big"]
        assert before["celsius"]["cpu-little (0)"] == 41.5
        assert "governor" in {warning["code"] for warning in entry["warnings"]}
    place.assert_clean()


@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_interrupt(kind: str, artifacts: dict[str, Path], request: pytest.FixtureRequest) -> None:
    """Ctrl-C ends the benchmark there as well; exit code 130."""
    place: Place = request.getfixturevalue(f"{kind}_place")
    words = ["bench", str(artifacts["host"]), "--runs", "10000000", "--device", place.device]
    process = subprocess.Popen(
        [sys.executable, "-c", "from effc.cli import main; main()", *words],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    limit = time.monotonic() + 60
    while not processes("run.", "/loader") and time.monotonic() < limit:
        time.sleep(0.05)
    assert processes("run.", "/loader")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130, process.stderr.read()
    process.stderr.close()
    place.assert_clean()
    assert processes("run.", "/loader") == []


def test_another_processor(arm_adb_place: Place, artifacts: dict[str, Path]) -> None:
    error = call(5, "bench", artifacts["host"], "--device", arm_adb_place.device)["error"]
    assert error["what"] == "the device cannot run the artifact"
    assert error["got"] == "aarch64"
    arm_adb_place.assert_clean()


def test_missing_features(arm_adb_place: Place, artifacts: dict[str, Path]) -> None:
    """Code with instructions that the processor lacks is refused."""
    assert arm_adb_place.phone is not None
    cpuinfo = arm_adb_place.phone.path("/proc/cpuinfo")
    cpuinfo.write_text(cpuinfo.read_text().replace(" asimddp", "", 1))  # one core is enough
    error = call(5, "bench", artifacts["pixel-7"], "--device", arm_adb_place.device)["error"]
    assert error["got"] == "aarch64 without dotprod"
    arm_adb_place.assert_clean()


def test_an_unknown_phone_becomes_a_target(
    arm_adb_place: Place,
    adb_double: AdbDouble,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Listed, described, tuned for, compiled for with its times."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    other = make_phone(tmp_path / "other", "OTHER")
    other.state = "unauthorized"
    adb_double.phones.append(other)
    first, again = call(0, "devices"), call(0, "devices", "--clean")
    listed = {device["name"]: device for device in first["devices"]}
    catalog = tmp_path / "config" / "effc" / "devices.toml"
    mine = listed[arm_adb_place.device]
    assert (mine["available"], mine["target"]) == (True, "effc-double-7")
    assert mine["written"] == str(catalog)
    assert listed["adb:OTHER"]["available"] is False
    assert "accept this computer's key" in listed["adb:OTHER"]["hint"]
    assert {d["name"]: d["written"] for d in again["devices"]}[mine["name"]] == ""
    assert "effc-double-7" in {entry["name"] for entry in call(0, "targets")["targets"]}

    db = ("--tuning-db", tmp_path / "db.jsonl")
    model, target = EXAMPLE / "digits.onnx", ("--target", "effc-double-7")
    tuned = call(0, "tune", model, *target, "--device", mine["name"], "--tune", 8, *db)
    assert tuned["measured_candidates"] == 8
    assert arm_adb_place.phone is not None
    assert arm_adb_place.phone.services.count("sync:") == 1
    call(0, "compile", model, *target, "-o", tmp_path / "digits", "--no-verify", *db)
    manifest = json.loads((tmp_path / "digits" / "manifest.json").read_text())
    assert manifest["tuning"]["measured_on"].startswith("effc Double 7 (Google GS201)")
    assert manifest["tuning"]["measured_candidates"] == 8
    arm_adb_place.assert_clean()


def test_facts(arm_adb_place: Place) -> None:
    facts = facts_of(parse_device(arm_adb_place.device))
    assert (facts.arch, facts.os, facts.title) == ("aarch64", "android", "effc Double 7")
    assert (facts.soc, facts.release, facts.api) == ("Google GS201", "15", 35)
    assert [(c.core, c.count, c.ghz) for c in facts.clusters] == [
        ("Cortex-X1", 1, 2.85),
        ("Cortex-A78", 3, 2.35),
        ("Cortex-A55", 4, 1.8),
    ]
    assert {"+dotprod", "+fullfp16", "-i8mm", "-sve"} <= set(facts.features)
    assert facts.gpu == "Mali-G710 7 cores"
    assert facts.ram_bytes == 7741316 << 10
    assert facts.free_bytes > 0
    assert (facts.l1_bytes, facts.l2_bytes) == (65536, 1 << 20)
    assert facts.runs("arm")
    assert not facts.runs("x86_64")
