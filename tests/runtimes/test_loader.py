"""The Python loader: results, zero copies, errors, measuring."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import toy_object, toy_program, toy_reference

from effc.codegen import DTYPES
from effc.devices.catalog import get_target
from effc.errors import DeviceError, UsageError
from effc.link import link_library
from effc.runtimes import c_api
from effc.runtimes.loader import BenchStats, Runner

UNITS = 10
X = 'in "x"'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    target = get_target("host")
    program = toy_program(units=UNITS, bounds=True)
    link_library(program, [toy_object(target, folder, units=UNITS)], target, folder / "libtoy.so")
    return folder / "libtoy.so"


def check(outputs: dict[str, np.ndarray], x: np.ndarray) -> None:
    """tanh is good to 2 ulp; the sum of n terms to n ulp of the sum of magnitudes."""
    expected = toy_reference(x)
    eps = np.finfo(np.float32).eps
    bound = 4 * eps * (np.abs(expected) + np.abs(x) + np.arange(x.size).reshape(x.shape))
    assert outputs["out"].dtype == np.float32
    assert np.all(np.abs(outputs["out"] - expected) <= bound)
    assert abs(outputs["sum"] - outputs["out"].sum()) <= x.size * eps * np.abs(expected).sum()
    assert outputs["sum"].shape == ()


@settings(deadline=None, max_examples=20, derandomize=True)
@given(threads=st.integers(1, 12), seed=st.integers(0, 99))
def test_any_number_of_threads_gives_the_same(library: Path, threads: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((UNITS, 4), dtype=np.float32)
    with Runner(library, {"name": "toy"}, threads=threads) as runner:
        first, second = runner.run({X: x}), runner.run({X: x})
    check(first, x)
    assert all(np.array_equal(first[k], second[k]) for k in first)


def test_awkward_arrays(library: Path) -> None:
    """Not contiguous, not aligned to 64 bytes, read-only: all are taken."""
    rng = np.random.default_rng(1)
    with Runner(library, {"name": "toy"}) as runner:
        transposed = rng.standard_normal((4, UNITS), dtype=np.float32).T
        check(runner.run({X: transposed}), transposed)
        buffer = np.zeros(UNITS * 16 + 4, np.uint8)
        odd = buffer[4:].view(np.float32).reshape(UNITS, 4)
        odd[:] = rng.standard_normal((UNITS, 4))
        check(runner.run({X: odd}), odd)
        misaligned = buffer[1:-3].view(np.float32).reshape(UNITS, 4)
        misaligned[:] = 0.5
        check(runner.run({X: misaligned}), misaligned)
        odd.setflags(write=False)
        check(runner.run({X: odd}), odd)


def test_outputs_are_not_shared_between_runs(library: Path) -> None:
    with Runner(library, {"name": "toy"}) as runner:
        first = runner.run({X: np.ones((UNITS, 4), np.float32)})["out"]
        kept = first.copy()
        runner.run({X: np.zeros((UNITS, 4), np.float32)})
        assert np.array_equal(first, kept)


def test_runners_in_many_threads(library: Path) -> None:
    failures = []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((UNITS, 4), dtype=np.float32)
        with Runner(library, {"name": "toy"}, threads=2) as runner:
            for _ in range(50):
                try:
                    check(runner.run({X: x}), x)
                except AssertionError as error:
                    failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({}, "not those of the model"),
        ({"y": np.zeros((UNITS, 4), np.float32)}, "expected 'in \"x\"'"),
        ({X: np.zeros((UNITS, 4), np.float64)}, "expected float32"),
        ({X: np.zeros((4, UNITS), np.float32)}, r"got float32 \[4, 10\]"),
        ({X: np.zeros(UNITS * 4, np.float32)}, r"got float32 \[40\]"),
    ],
)
def test_wrong_inputs(library: Path, inputs: dict[str, np.ndarray], match: str) -> None:
    with Runner(library, {"name": "toy"}) as runner, pytest.raises(UsageError, match=match):
        runner.run(inputs)


def test_wrong_settings(library: Path, tmp_path: Path) -> None:
    for threads in (0, -1, 65):
        with pytest.raises(UsageError, match="threads"):
            Runner(library, {"name": "toy"}, threads=threads)
    with pytest.raises(UsageError, match="no function other_"):
        Runner(library, {"name": "other"})
    with pytest.raises(UsageError, match="affinity"):
        Runner(library, {"name": "toy"}, threads=2, affinity=1 << 63)
    with pytest.raises(DeviceError, match="cannot load"):
        Runner(tmp_path / "missing.so", {"name": "toy"})
    junk = tmp_path / "junk.so"
    junk.write_bytes(b"no library")
    with pytest.raises(DeviceError, match="cannot load"):
        Runner(junk, {"name": "toy"})
    with Runner(library, {"name": "toy"}) as runner:
        for arguments in ({"runs": 0}, {"warmup": -1}):
            with pytest.raises(UsageError, match="runs"):
                runner.bench(**arguments)
    with pytest.raises(UsageError, match="closed"):
        runner.run({X: np.zeros((UNITS, 4), np.float32)})


def test_library_replaced_while_loaded(tmp_path: Path) -> None:
    """Compiling again into the same folder: the new runner must not get the old code."""
    target = get_target("host")
    out = tmp_path / "libtoy.so"
    stages = toy_object(target, tmp_path, units=UNITS)
    x = np.ones((UNITS, 4), np.float32)
    runners = []
    for scale in (1.0, 2.0):
        program = toy_program(units=UNITS)
        program.weights = (program.weights.view(np.float32) * scale).view(np.uint8)
        link_library(program, [stages], target, tmp_path / "new.so")
        (tmp_path / "new.so").rename(out)
        runners.append(Runner(out, {"name": "toy"}))
    first, second = (r.run({X: x})["out"] - x for r in runners)
    assert np.any(first != 0)
    assert np.allclose(second, 2 * first)
    for runner in runners:
        runner.close()
        runner.close()


def test_one_runner_in_many_threads(library: Path) -> None:
    x = np.random.default_rng(3).standard_normal((UNITS, 4), dtype=np.float32)
    with (
        Runner(library, {"name": "toy"}, threads=2) as runner,
        ThreadPoolExecutor(4) as pool,
    ):
        for outputs in pool.map(lambda _: runner.run({X: x}), range(50)):
            check(outputs, x)


def test_bench_and_profile(library: Path) -> None:
    with Runner(library, {"name": "toy"}) as runner:
        stats = runner.bench(runs=5, warmup=1, threads=2)
        assert (stats.runs, stats.warmup, stats.threads) == (5, 1, 2)
        assert 0 < stats.min_ms <= stats.median_ms <= stats.p90_ms <= stats.p99_ms
        layers = runner.profile(runs=3)
        assert [layer.name for layer in layers] == ["mul", "add", "sum"]
        assert layers[1].nodes == ("a", "b")
        assert all(layer.ms > 0 for layer in layers)
        assert runner.arena_bytes == 64 + UNITS * 16


def test_numbers_are_those_of_the_header() -> None:
    header = (Path(str(resources.files("effc.runtimes"))) / "core" / "effc.h").read_text()

    def define(name: str) -> int:
        found = re.search(rf"#define {name} (\d+)", header)
        assert found
        return int(found[1])

    assert define("EFFC_ABI_VERSION") == c_api.ABI_VERSION
    assert define("EFFC_MAX_THREADS") == c_api.MAX_THREADS
    enumerators = dict(re.findall(r"(EFFC_\w+) = (\d+)", header))
    assert {int(enumerators[e]): name for name, e in DTYPES.items()} == c_api._DTYPES
    messages = re.findall(r'case (EFFC_\w+): return "([^"]+)"', header)
    assert {int(enumerators[e]): text for e, text in messages if e != "EFFC_OK"} == c_api._STATUS


def test_statistics() -> None:
    stats = BenchStats.from_nanoseconds([1_000_000, 3_000_000, 2_000_000], warmup=0, threads=1)
    assert (stats.min_ms, stats.median_ms, stats.mean_ms) == (1.0, 2.0, 2.0)
    assert stats.std_ms == pytest.approx(np.sqrt(2 / 3))
