"""The tuning database survives kills and concurrent writers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from effc.errors import UsageError
from effc.tuning.database import Database, Measurement, candidate_name, default_path


def _measurement(key: str = "layer", tile: int = 1, seconds: float | None = 1.0) -> Measurement:
    return Measurement("ctx", key, "conv", {"tile": tile}, seconds, rounds=4)


def test_round_trip_keeps_the_faster_time(tmp_path: Path) -> None:
    store = Database(tmp_path / "deep" / "db.jsonl")
    assert store.measurements("ctx") == {}
    store.add([_measurement(seconds=2.0), _measurement(tile=2, seconds=None)])
    store.add([_measurement(seconds=1.5), _measurement(tile=2, seconds=3.0)])
    store.add([_measurement(seconds=9.0), _measurement(tile=2, seconds=None)])
    found = store.measurements("ctx")["layer"]
    assert {m.config["tile"]: m.seconds for m in found.values()} == {1: 1.5, 2: 3.0}
    assert store.measurements("other") == {}


def test_names_do_not_depend_on_the_order_of_knobs() -> None:
    assert candidate_name("t", {"a": 1, "b": 2}) == candidate_name("t", {"b": 2, "a": 1})


def test_effort_and_description(tmp_path: Path) -> None:
    store = Database(tmp_path / "db.jsonl")
    store.describe("ctx", {"device": "x"})
    store.describe("ctx", {"device": "x"})
    store.finish("ctx", {"layer": "quick"})
    store.finish("ctx", {"layer": "full"})
    assert store.finished("ctx") == {"layer": "full"}
    assert store.path.read_text().count('"kind":"context"') == 1


@pytest.mark.parametrize("cut", [1, 7, 40, 100])
def test_torn_last_record_is_skipped_and_closed(tmp_path: Path, cut: int) -> None:
    store = Database(tmp_path / "db.jsonl")
    store.add([_measurement("a"), _measurement("b")])
    store.path.write_bytes(store.path.read_bytes()[:-cut])
    expected = {"a"} if cut > 1 else {"a", "b"}
    assert store.measurements("ctx").keys() == expected
    store.add([_measurement("c")])
    assert store.measurements("ctx").keys() == {*expected, "c"}


def test_merge_appends_only_what_is_missing(tmp_path: Path) -> None:
    one, two = Database(tmp_path / "1"), Database(tmp_path / "2")
    one.add([_measurement("a"), _measurement("b")])
    two.add([_measurement("b"), _measurement("c"), _measurement("c")])
    assert one.merge(two.path) == 1
    assert one.merge(two.path) == 0
    assert one.measurements("ctx").keys() == {"a", "b", "c"}


def test_unwritable_and_foreign_files_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        Database(tmp_path / "file").add([]) or Database(Path("/proc/nowhere/db")).add(
            [_measurement()]
        )
    foreign = tmp_path / "model.onnx"
    foreign.write_bytes(os.urandom(10_000))
    with pytest.raises(UsageError, match="no tuning database"):
        Database(foreign).measurements("ctx")
    with pytest.raises(UsageError, match="cannot be read"):
        Database(tmp_path).measurements("ctx")


def test_default_path_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "effc" / "tuning.jsonl"


def _write_many(path: Path, writer: int, count: int) -> None:
    store = Database(path)
    for i in range(count):
        store.add([_measurement(f"w{writer}_{i}_{j}") for j in range(3)])


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, w, 20)) for w in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
        assert process.exitcode == 0
    assert len(Database(path).measurements("ctx")) == 4 * 20 * 3


def test_killed_writers_leave_a_usable_file(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    context = multiprocessing.get_context("fork")
    for attempt in range(6):
        writers = [
            context.Process(target=_write_many, args=(path, 10 * attempt + w, 10_000))
            for w in range(2)
        ]
        for process in writers:
            process.start()
        time.sleep(0.03 + 0.01 * attempt)
        assert writers[0].pid is not None
        os.kill(writers[0].pid, signal.SIGKILL)
        before = len(Database(path).measurements("ctx"))
        Database(path).add([_measurement(f"after{attempt}")])  # the lock died with its holder
        writers[1].kill()
        for process in writers:
            process.join()
        found = Database(path).measurements("ctx")
        assert f"after{attempt}" in found
        assert len(found) > before
