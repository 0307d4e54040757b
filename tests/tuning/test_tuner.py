"""The tuner measures, survives bad candidates, keeps results and replays them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scale_template import scale_choices, scale_region

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels import registry
from effc.tuning import build, tuner
from effc.tuning.build import Candidate, compile_candidates
from effc.tuning.measure import Harness
from effc.tuning.search import Effort
from effc.tuning.testbed import ThisMachine


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Target:
    """This machine, with one template."""
    monkeypatch.setattr(registry, "choices", scale_choices)
    target = get_target("host")
    if ThisMachine().refusal(target) is not None:
        pytest.skip(f"this machine cannot measure: {ThisMachine().refusal(target)}")
    return target


def test_measured_time_beats_prediction_and_replays(host: Target, tmp_path: Path) -> None:
    same = [scale_region(1, 40, name=name) for name in "ab"]
    regions = [*same, scale_region(3, name="c")]
    database = tmp_path / "db.jsonl"
    seen: list[tuple[int, int, str]] = []
    default, _ = tuner.tune(regions, host, "none", None, 1)
    assert default[regions[0].key][0].config == {"repeat": 40}
    chosen, info = tuner.tune(
        regions, host, "quick", database, 1, lambda *state: seen.append(state)
    )
    assert chosen[regions[0].key][0].config == {"repeat": 1}
    assert chosen[regions[2].key][0].config == {"repeat": 3}
    fast, slow = chosen[regions[0].key]
    assert fast.seconds is not None
    assert slow.seconds is not None
    assert fast.seconds < slow.seconds
    assert info["measured_layers"] == 1
    assert seen[-1][:2] == (2, 2)
    assert "s left" in seen[-1][2]
    before = database.read_bytes()
    again, same = tuner.tune(regions, host, "quick", database, 1)
    assert {k: c[0].config for k, c in again.items()} == {k: c[0].config for k, c in chosen.items()}
    assert same == info
    replayed, _ = tuner.tune(regions, host, "none", database, 1)
    assert replayed[regions[0].key][0].config == {"repeat": 1}
    assert database.read_bytes() == before


def test_bad_candidates_lose(host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_TIMEOUT_S", 3.0)
    region = scale_region(2, 13, 14, 15, 16)
    chosen, info = tuner.tune([region], host, 5, tmp_path / "db.jsonl", 1)
    assert chosen[region.key][0].config == {"repeat": 2}
    assert info["failed_candidates"] == 4
    text = (tmp_path / "db.jsonl").read_text()
    for reason in ("an unlucky number", "generator died", "more than 3 s", "exit code -11"):
        assert reason in text


def test_two_threads_share_the_work(host: Target, tmp_path: Path) -> None:
    region = scale_region(30)
    (choice,) = registry.choices(region, host)
    compiled = compile_candidates([Candidate(region, choice)], host, tmp_path, 1)
    harness = Harness(host, tmp_path, 2, cold=True, testbed=ThisMachine())
    harness.link(compiled)
    (timing,) = harness.run(region, compiled, 0.05, 10)
    assert timing.error == ""
    assert timing.seconds is not None
    assert timing.rounds >= 8


def test_interrupt_keeps_results(host: Target, tmp_path: Path) -> None:
    regions = [scale_region(*range(1 + i, 8 + i), name=f"r{i}") for i in range(4)]
    database = tmp_path / "db.jsonl"

    def stop(done: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuner.tune(regions, host, "full", database, 1, stop)
    _, info = tuner.tune(regions, host, "none", database, 1)
    assert info["measured_layers"] == 1


def test_killed_tuner_leaves_no_workers(
    host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFC_TEST_PIDS", str(tmp_path))
    region = scale_region(17)
    candidates = [Candidate(region, c) for c in registry.choices(region, host)] * 2
    process = multiprocessing.get_context("fork").Process(
        target=compile_candidates, args=(candidates, host, tmp_path, 2)
    )
    process.start()
    _wait(lambda: len(list(tmp_path.glob("[0-9]*"))) == 2)
    process.kill()
    process.join()
    pids = [int(file.name) for file in tmp_path.glob("[0-9]*")]
    _wait(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in pids))


def _wait(done: Callable[[], bool]) -> None:
    """Poll for a state that must come, for at most half a minute."""
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_full_continues_after_quick_but_not_the_reverse(host: Target) -> None:
    quick, full, some = Effort.of("quick"), Effort.of("full"), Effort.of(9)
    assert quick.covered_by("quick")
    assert quick.covered_by("full")
    assert not full.covered_by("quick")
    assert not quick.covered_by("9")
    assert some.covered_by("10")
    assert not some.covered_by("8")


def test_foreign_targets_use_the_prediction(host: Target, tmp_path: Path) -> None:
    target = get_target("android-armv7")
    chosen, info = tuner.tune([scale_region(1, 40)], target, "quick", tmp_path / "db", 1)
    assert [c[0].config for c in chosen.values()] == [{"repeat": 40}]
    assert "does not run natively" in str(info["not_measured"])


def test_layer_without_kernel_is_an_error(host: Target) -> None:
    region = scale_region(1)
    region.ops[0].op_type = "Unheard"
    with pytest.raises(UnsupportedError):
        tuner.tune([region], host, "none", None, 1)
