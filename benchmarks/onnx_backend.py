"""ONNX's backend node tests through real artifacts; writes docs/COVERAGE.md.

Each case is compiled (``effc.compile``, no tuning, no verification) for a target and run
on the case's inputs, and its outputs are compared with the case's: in this process for ``host``,
on the board that QEMU emulates for a microcontroller. C source is compiled by GCC and by Clang with
sanitizers, warnings as errors, and both programs are run. Cases run in worker processes with a time
limit each, so that a crash or a hang is one case's result.

Operands that an operator needs while compiling (the target shape of Reshape, the
k of TopK ...) are run-time inputs in these tests. A case that is refused is tried a
second time with exactly those bound (``constants=``) and counted separately.

    python benchmarks/onnx_backend.py                  # everything, prints a summary
    python benchmarks/onnx_backend.py --write          # and writes docs/COVERAGE.md
    python benchmarks/onnx_backend.py --match lstm,gru # some
    python benchmarks/onnx_backend.py --target c --write --json FILE [--resume]
    python benchmarks/onnx_backend.py --target cortex-m4 --per-operator 2 --write
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from backend_cases import Array, Case, cases, difference, sample
from coverage_page import BAD, BOUND, COLUMNS, CRASH, INVALID, PASS, UNSUPPORTED, WRONG, Outcome
from coverage_page import write as write_page

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "c_source")]

TIMEOUT_S = 300.0


def run_case(case: Case, target: str = "host") -> Outcome:
    """Compile, run and compare one case."""
    from effc.errors import EffcError

    start = time.perf_counter()

    def outcome(status: str, detail: str = "", what: str = "") -> Outcome:
        seconds = time.perf_counter() - start
        return Outcome(case.name, case.operator, status, detail, what, seconds)

    status = PASS
    try:
        found = _attempt(case, (), target)
    except EffcError as error:
        if not case.bindable or case.inputs is None:
            return outcome(*_refusal(error))
        try:
            found, status = _attempt(case, case.bindable, target), BOUND
        except EffcError as second:
            return outcome(*_refusal(second))
        except Exception as second:
            return outcome(CRASH, f"{type(second).__name__}: {second}")
    except Exception as error:  # anything else is a bug of ours and counts as a crash
        return outcome(CRASH, f"{type(error).__name__}: {error}")
    if case.outputs is None:
        return outcome(CRASH, "compiled although its operands are no tensors")
    for who, got in found.items():
        problem = difference(case, got)
        if problem:
            return outcome(WRONG, f"{who}: {problem}")
    return outcome(status)


def _refusal(error: Exception) -> tuple[str, str, str]:
    from effc.errors import EffcError, ModelError, UnsupportedError

    assert isinstance(error, EffcError)
    if isinstance(error, UnsupportedError):
        if error.where is None:
            return CRASH, f"this error does not say where: {error}", error.what
        return UNSUPPORTED, str(error), error.what
    status = INVALID if isinstance(error, ModelError) else CRASH
    return status, f"{type(error).__name__}: {error}", error.what


def _attempt(case: Case, bound: Sequence[str], target: str) -> dict[str, list[Array]]:
    """Outputs by what computed them."""
    import effc

    inputs = case.inputs or {}
    constants = {name: inputs[name] for name in bound}
    feeds = {name: array for name, array in inputs.items() if name not in constants}
    artifact = effc.compile(
        case.model, target=target, name="probe", constants=constants, verify=False
    )
    names = [value.name for value in case.model.graph.output]
    return {who: [got[n] for n in names] for who, got in _run(artifact, feeds).items()}


def _run(artifact: Any, feeds: dict[str, Array]) -> dict[str, dict[str, Array]]:
    from effc.execute import open_executor

    if artifact.manifest["machine"]["arch"] != "c":
        with open_executor(artifact, None, None) as executor:
            return {executor.device: executor.run(feeds)}
    from c_compilers import SANITIZERS
    from programs import build, run

    found = {}
    for compiler, flags in SANITIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            program = build(artifact, compiler, Path(folder), "-O2", *flags)
            (found[compiler],) = run(program, artifact, [feeds])
    return found


def run_all(todo: Sequence[Case], workers: int, target: str = "host") -> Iterator[Outcome]:
    """Run cases in worker processes; yields outcomes as they come."""
    context = multiprocessing.get_context("fork")
    pending = list(range(len(todo)))[::-1]
    pool = [_Worker(context, todo, target) for _ in range(min(workers, len(todo)))]
    while True:
        for worker in pool:
            if worker.current is None and pending:
                worker.give(pending.pop())
        busy = [worker for worker in pool if worker.current is not None]
        if not busy:
            break
        ready = wait([worker.pipe for worker in busy], timeout=1.0)
        for worker in busy:
            result = worker.collect(worker.pipe in ready)
            if result is not None:
                yield result
    for worker in pool:
        worker.close()


class _Worker:
    """A child process that runs one case after the other."""

    def __init__(self, context: Any, todo: Sequence[Case], target: str) -> None:
        self.context, self.todo, self.target = context, todo, target
        self.current: int | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, child = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(child, self.todo, self.target))
        self.process.start()
        child.close()

    def give(self, index: int) -> None:
        self.current, self.since = index, time.perf_counter()
        self.pipe.send(index)

    def collect(self, ready: bool) -> Outcome | None:
        """The outcome of the current case, if it has one by now."""
        assert self.current is not None
        case = self.todo[self.current]
        if ready:
            try:
                outcome: Outcome = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                outcome = Outcome(
                    case.name, case.operator, CRASH, f"process died ({self.process.exitcode})"
                )
                self._start()
        elif time.perf_counter() - self.since > TIMEOUT_S:
            self.process.kill()
            self.process.join()
            outcome = Outcome(case.name, case.operator, CRASH, f"no result in {TIMEOUT_S:.0f} s")
            self._start()
        else:
            return None
        self.current = None
        return outcome

    def close(self) -> None:
        self.pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()


def _serve(pipe: Connection, todo: Sequence[Case], target: str) -> None:
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        pipe.send(run_case(todo[index], target))


def main() -> int:
    """Run, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="host", help="what to compile for")
    parser.add_argument("--match", default="", help="comma-separated parts of case names")
    parser.add_argument("--per-operator", type=int, help="at most this many cases per operator")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/COVERAGE.md")
    parser.add_argument("--json", type=Path, help="write every outcome to this file, one a line")
    parser.add_argument("--resume", action="store_true", help="keep the outcomes that are there")
    args = parser.parse_args()
    todo = cases([part for part in args.match.split(",") if part])
    if args.per_operator:
        todo = sample(todo, args.per_operator)
    outcomes = _earlier(args.json, todo) if args.resume else []
    known = {outcome.name for outcome in outcomes}
    if args.json is not None:
        args.json.write_text("".join(_line(outcome) for outcome in outcomes))
    start = time.perf_counter()
    for outcome in run_all([c for c in todo if c.name not in known], args.workers, args.target):
        outcomes.append(outcome)
        if args.json is not None:
            with args.json.open("a") as file:
                file.write(_line(outcome))
        if outcome.status in BAD:
            print(f"{outcome.status}: {outcome.name}: {outcome.detail[:300]}", flush=True)
        if len(outcomes) % 100 == 0:
            print(f"{len(outcomes)}/{len(todo)} {time.perf_counter() - start:.0f} s", flush=True)
    counts = Counter(outcome.status for outcome in outcomes)
    for status in COLUMNS:
        print(f"{status:20} {counts[status]:5}")
    print(f"{'seconds':20} {time.perf_counter() - start:5.0f}")
    if args.write and not args.match:
        write_page(ROOT / "docs" / "COVERAGE.md", args.target, outcomes, args.per_operator)
    return 1 if any(counts[status] for status in BAD) else 0


def _line(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome)) + "\n"


def _earlier(path: Path, todo: Sequence[Case]) -> list[Outcome]:
    """Outcomes of these cases that an earlier run left."""
    names = {case.name for case in todo}
    lines = path.read_text().splitlines() if path.exists() else []
    return [o for line in lines if (o := Outcome(**json.loads(line))).name in names]


if __name__ == "__main__":
    sys.exit(main())
