"""ONNX's backend node tests through real host artifacts; writes docs/COVERAGE.md.

Each case is compiled (``effc.compile``, no tuning, no verification), loaded and run
on the case's inputs, and its outputs are compared with the case's. Cases run in
worker processes with a time limit each, so that a crash or a hang is one case's
result.

Operands that an operator needs while compiling (the target shape of Reshape, the
k of TopK ...) are run-time inputs in these tests. A case that is refused is tried a
second time with exactly those bound (``constants=``) and counted separately.

    python benchmarks/onnx_backend.py                  # everything, prints a summary
    python benchmarks/onnx_backend.py --write          # and writes docs/COVERAGE.md
    python benchmarks/onnx_backend.py --match lstm,gru # some
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["COMPILE_TIME", "Case", "Outcome", "cases", "run_case"]

Array = np.ndarray[Any, Any]

TIMEOUT_S = 60.0

PASS, BOUND, UNSUPPORTED, INVALID, WRONG, CRASH = (
    "pass",
    "pass, operand bound",
    "unsupported",
    "invalid",
    "wrong",
    "crash",
)
GOOD = (PASS, BOUND)
BAD = (WRONG, CRASH)

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

COMPILE_TIME: dict[str, tuple[int, ...]] = {
    **{f"Reduce{name}": (1,) for name in _REDUCTIONS},
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (2,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Operands that decide shapes or structure, by position."""


@dataclass(frozen=True)
class Case:
    """One backend test.

    Attributes:
        operator: Operator under test (of the unexpanded form).
        inputs, outputs: First data set; None where an element is no numeric tensor.
        bindable: Names of inputs that an operator needs at compile time.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: dict[str, Array] | None
    outputs: tuple[Array, ...] | None
    rtol: float
    atol: float
    bindable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    name: str
    operator: str
    status: str
    detail: str = ""
    seconds: float = field(default=0.0, compare=False)


def cases(match: Sequence[str] = ()) -> list[Case]:
    """Collect the node tests whose name contains one of ``match`` (all, if empty)."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    models = {test.name: test.model for test in tests}
    found = []
    for test in tests:
        if match and not any(part in test.name for part in match):
            continue
        plain = models.get(test.name.split("_expanded")[0]) or test.model
        found.append(_case(test, plain))
    return found


def _case(test: Any, plain: onnx.ModelProto) -> Case:
    model = test.model
    operator = "+".join(sorted({node.op_type for node in plain.graph.node}))
    names = [value.name for value in model.graph.input]
    feeds, results = test.data_sets[0]
    inputs, outputs = _tensors(feeds), _tensors(results)
    bindable = [
        node.input[index]
        for node in plain.graph.node
        for index in COMPILE_TIME.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in names
    ]
    return Case(
        test.name,
        operator,
        model,
        None if inputs is None else dict(zip(names, inputs, strict=True)),
        None if outputs is None else tuple(outputs),
        test.rtol,
        test.atol,
        tuple(bindable),
    )


def _tensors(values: Iterable[Any]) -> list[Array] | None:
    """Arrays, or None if a value is a sequence, optional or string tensor."""
    arrays = []
    for value in values:
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        if not isinstance(value, np.ndarray | np.generic | int | float):
            return None
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            return None
        arrays.append(array)
    return arrays


def run_case(case: Case) -> Outcome:
    """Compile, load, run and compare one case in this process."""
    from effc.errors import EffcError

    start = time.perf_counter()

    def outcome(status: str, detail: str = "") -> Outcome:
        return Outcome(case.name, case.operator, status, detail, time.perf_counter() - start)

    status = PASS
    try:
        got = _attempt(case, ())
    except EffcError as error:
        if not case.bindable or case.inputs is None:
            return outcome(*_refusal(error))
        try:
            got, status = _attempt(case, case.bindable), BOUND
        except EffcError as second:
            return outcome(*_refusal(second))
    except Exception as error:  # anything else is a bug of ours and counts as a crash
        return outcome(CRASH, f"{type(error).__name__}: {error}")
    if case.outputs is None:
        return outcome(CRASH, "compiled although its operands are no tensors")
    problem = _difference(case, got)
    return outcome(WRONG, problem) if problem else outcome(status)


def _refusal(error: Exception) -> tuple[str, str]:
    from effc.errors import ModelError, UnsupportedError

    if isinstance(error, UnsupportedError):
        return UNSUPPORTED, str(error)
    return (INVALID if isinstance(error, ModelError) else CRASH), f"{type(error).__name__}: {error}"


def _attempt(case: Case, bound: Sequence[str]) -> list[Array]:
    import effc

    inputs = case.inputs or {}
    constants = {name: inputs[name] for name in bound}
    feeds = {name: array for name, array in inputs.items() if name not in constants}
    artifact = effc.compile(
        case.model, target="host", name="probe", constants=constants, verify=False
    )
    with effc.load(artifact) as runner:
        results = runner.run(feeds)
    return [results[value.name] for value in case.model.graph.output]


_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def _difference(case: Case, got: Sequence[Array]) -> str:
    """Why the outputs differ, or an empty string.

    The tests' absolute tolerance is widened to four units in the last place of the
    largest element: some expect the rounding noise of one implementation, and their
    relative tolerance is below a unit in the last place of float16.
    """
    assert case.outputs is not None
    for index, (mine, expected) in enumerate(zip(got, case.outputs, strict=True)):
        if mine.shape != expected.shape or mine.dtype != expected.dtype:
            return (
                f"output {index} is {mine.dtype}{mine.shape}, "
                f"expected {expected.dtype}{expected.shape}"
            )
        if expected.dtype.kind in "biu":
            if not np.array_equal(mine, expected):
                return f"output {index}: {int((mine != expected).sum())} of {expected.size} differ"
            continue
        exact = expected.astype(np.float64)
        finite = np.abs(exact[np.isfinite(exact)])
        noise = 4 * _EPSILON.get(expected.dtype.name, 0.0) * float(finite.max(initial=0.0))
        try:
            np.testing.assert_allclose(
                mine.astype(np.float64), exact, rtol=case.rtol, atol=max(case.atol, noise)
            )
        except AssertionError as error:
            return f"output {index}: " + " ".join(str(error).split()[:24])
    return ""


def run_all(todo: Sequence[Case], workers: int) -> Iterator[Outcome]:
    """Run cases in worker processes; yields outcomes as they come."""
    context = multiprocessing.get_context("fork")
    pending = list(range(len(todo)))[::-1]
    pool = [_Worker(context, todo) for _ in range(min(workers, len(todo)))]
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

    def __init__(self, context: Any, todo: Sequence[Case]) -> None:
        self.context, self.todo = context, todo
        self.current: int | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, child = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(child, self.todo))
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


def _serve(pipe: Connection, todo: Sequence[Case]) -> None:
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        pipe.send(run_case(todo[index]))


def table(outcomes: Sequence[Outcome]) -> str:
    """docs/COVERAGE.md."""
    total = Counter(outcome.status for outcome in outcomes)
    good = sum(total[status] for status in GOOD)
    bad = sum(total[status] for status in BAD)
    lines = [
        "# Coverage: ONNX's backend node tests",
        "",
        f"Made by `python benchmarks/onnx_backend.py --write` with onnx {onnx.__version__}. Every",
        "case is compiled for `host`, loaded and run; nothing is simulated. Operands that decide",
        "a shape or the structure of the code (the target shape of Reshape, the k of TopK ...) are",
        "run-time inputs in these tests; a case that is refused for that is compiled again with",
        "them bound to their values (`constants=`), and counted on its own.",
        "",
        f"**{good} of {len(outcomes)} pass** ({total[PASS]} as they are, {total[BOUND]} with a",
        f'bound operand); {total[UNSUPPORTED]} end in the typed error "unsupported",',
        f'{total[INVALID]} in "invalid"; {bad} are wrong or crash.',
        "",
        "| operator | " + " | ".join(_COLUMNS) + " |",
        "|---|" + "---|" * len(_COLUMNS),
    ]
    by_operator: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        by_operator[outcome.operator][outcome.status] += 1
    for operator, counts in sorted(by_operator.items()):
        row = " | ".join(str(counts[status] or "") for status in _COLUMNS)
        lines.append(f"| {operator} | {row} |")
    lines += [
        "",
        "## What does not pass, and why",
        "",
        "| case | outcome | reason |",
        "|---|---|---|",
    ]
    lines += [
        f"| {o.name} | {o.status} | {_reason(o.detail)} |"
        for o in sorted(outcomes, key=lambda o: (o.operator, o.name))
        if o.status not in GOOD
    ]
    return "\n".join(lines) + "\n"


_COLUMNS = (PASS, BOUND, UNSUPPORTED, INVALID, WRONG, CRASH)


def _reason(detail: str) -> str:
    """One line; of many templates' refusals the one that names the operator."""
    text = " ".join(detail.split("\n  hint:")[0].replace("|", "/").split())
    first = re.search(r"got (\w+) \(node ", text)
    if first is not None:
        named = text.rfind(f" {first.group(1)}: ")
        named = named if named >= 0 else text.rfind(f" {first.group(1)} on ")
        text = text[max(named, first.start()) :].strip()
    return text[:160].split("; the anchor")[0].split("; not a")[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--match", default="", help="comma-separated parts of case names")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write docs/COVERAGE.md")
    parser.add_argument("--json", type=Path, help="write every outcome to this file, one a line")
    args = parser.parse_args()
    todo = cases([part for part in args.match.split(",") if part])
    outcomes = []
    start = time.perf_counter()
    for outcome in run_all(todo, args.workers):
        outcomes.append(outcome)
        if args.json is not None:
            with args.json.open("a" if len(outcomes) > 1 else "w") as file:
                print(json.dumps(asdict(outcome)), file=file)
        if outcome.status in BAD:
            print(f"{outcome.status}: {outcome.name}: {outcome.detail[:300]}", flush=True)
        if len(outcomes) % 100 == 0:
            print(f"{len(outcomes)}/{len(todo)} {time.perf_counter() - start:.0f} s", flush=True)
    counts = Counter(outcome.status for outcome in outcomes)
    for status in _COLUMNS:
        print(f"{status:20} {counts[status]:5}")
    print(f"{'seconds':20} {time.perf_counter() - start:5.0f}")
    if args.write and not args.match:
        folder = Path(__file__).resolve().parents[1] / "docs"
        (folder / "COVERAGE.md").write_text(table(outcomes))
    return 1 if any(counts[status] for status in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
