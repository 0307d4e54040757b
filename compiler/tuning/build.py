"""Compile candidates in child processes, so that neither a crash nor a hang ends the tuner.

Each candidate (a layer with a template and a configuration) becomes one object
file in a folder and a :class:`Compiled` record of what its stages take.
Workers are forked: they inherit TVM and the layers' constants without copying.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from effc.devices.target import Target
from effc.errors import EffcError
from effc.kernels.region import Region
from effc.kernels.template import Choice, Kernel
from effc.kernels.versions import ranked_target

__all__ = ["Candidate", "Compiled", "CompiledStage", "Content", "compile_candidates"]

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Candidate:
    """One way to compute one layer."""

    region: Region
    choice: Choice


@dataclass(frozen=True)
class Content:
    """What a buffer holds while it is measured.

    Attributes:
        nbytes: Its size.
        element: Bytes of a float element (random values), 0 for zeros.
        file: Name of a file in the folder that holds the contents; empty if they do not matter.
    """

    nbytes: int
    element: int = 0
    file: str = ""


@dataclass(frozen=True)
class CompiledStage:
    """A stage without its code, see ``Stage``."""

    symbol: str
    args: tuple[str, ...]
    extent: int
    scratch: int
    bounds: tuple[int, ...] | None


@dataclass(frozen=True)
class Compiled:
    """A candidate as object code; ``error`` says why there is none."""

    object: str = ""
    stages: tuple[CompiledStage, ...] = ()
    weights: tuple[tuple[str, Content], ...] = ()
    workspaces: tuple[tuple[str, int], ...] = ()
    error: str = ""


def float_bytes(dtype: str) -> int:
    """Size of a floating point element, 0 for other types."""
    if dtype.startswith(("float", "bfloat")):
        return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return 0


def compile_candidates(
    candidates: Sequence[Candidate], target: Target, folder: Path, workers: int
) -> list[Compiled]:
    """Compile candidates in parallel.

    Args:
        candidates: What to compile.
        target: For which target, ranked for what will be measured (``Context.target``).
        folder: Empty folder for object files and constants.
        workers: Number of processes.

    Returns:
        One record per candidate, in order.
    """
    results: list[Compiled | None] = [None] * len(candidates)
    pending = iter(range(len(candidates)))
    pool: list[_Worker] = []
    try:
        while True:
            busy = [w for w in pool if w.item is not None]
            for worker in [w for w in pool if w.item is None] + [None] * (workers - len(pool)):
                item = next(pending, None)
                if item is None:
                    break
                if worker is None:
                    worker = _Worker(candidates, target, folder)
                    pool.append(worker)
                worker.give(item)
                busy.append(worker)
            if not busy:
                break
            for worker, item, compiled in _collect(busy):
                results[item] = compiled
                if worker.dead:
                    pool.remove(worker)
    finally:
        for worker in pool:
            worker.stop()
    return [r if r is not None else Compiled(error="not compiled") for r in results]


class _Worker:
    """A forked process that compiles one candidate after another."""

    def __init__(self, candidates: Sequence[Candidate], target: Target, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, candidates, target, folder, os.getpid()), daemon=True
        )
        self.process.start()
        theirs.close()
        self.item: int | None = None
        self.deadline = 0.0
        self.dead = False

    def give(self, item: int) -> None:
        self.item = item
        self.deadline = time.monotonic() + _TIMEOUT_S
        self.pipe.send(item)

    def stop(self) -> None:
        self.dead = True
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _collect(busy: Sequence[_Worker]) -> Iterator[tuple[_Worker, int, Compiled]]:
    """Wait until a worker answers, dies or is late."""
    left = min(worker.deadline for worker in busy) - time.monotonic()
    ready = wait([worker.pipe for worker in busy], timeout=max(left, 0.0))
    for worker in busy:
        item = worker.item
        assert item is not None
        if worker.pipe in ready:
            try:
                answer = worker.pipe.recv()
            except (EOFError, OSError):
                worker.stop()
                code = worker.process.exitcode
                answer = Compiled(error=f"the code generator died ({_exit_text(code)})")
        elif time.monotonic() >= worker.deadline:
            worker.stop()
            answer = Compiled(error=f"code generation took more than {_TIMEOUT_S:.0f} s")
        else:
            continue
        worker.item = None
        yield worker, item, answer


def _exit_text(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _serve(
    pipe: Connection[Any, Any],
    candidates: Sequence[Candidate],
    target: Target,
    folder: Path,
    parent: int,
) -> None:
    """Body of a worker process; it leaves without running the parent's exit handlers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    quiet = os.open(os.devnull, os.O_WRONLY)  # TVM and LLVM print a trace when they crash
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        while True:
            while not pipe.poll(1.0):  # siblings hold the pipe open when the parent is killed
                if os.getppid() != parent:
                    os._exit(0)
            item = pipe.recv()
            pipe.send(_compile_safely(candidates[item], target, folder, item))
    except EOFError:
        os._exit(0)
    except BaseException:
        os._exit(1)


def _compile_safely(candidate: Candidate, target: Target, folder: Path, item: int) -> Compiled:
    try:
        return _compile(candidate, target, folder, item)
    except EffcError as error:
        return Compiled(error=str(error))
    except Exception as error:  # a template that fails is a slow candidate, not a failed compile
        return Compiled(error=f"{type(error).__name__}: {error}")


def _compile(candidate: Candidate, target: Target, folder: Path, item: int) -> Compiled:
    from effc.lower import lower

    choice = candidate.choice
    target = ranked_target(choice.template, candidate.region, target)
    kernel = choice.template.build(candidate.region, target, choice.config)
    symbols = [f"c_{item}_{number}" for number in range(len(kernel.stages))]
    path = folder / f"c{item}.o"
    functions = {s: stage.func for s, stage in zip(symbols, kernel.stages, strict=True)}
    path.write_bytes(lower(functions, target))
    return Compiled(
        object=str(path),
        stages=tuple(
            CompiledStage(symbol, stage.args, stage.extent, stage.scratch, stage.bounds)
            for symbol, stage in zip(symbols, kernel.stages, strict=True)
        ),
        weights=_contents(kernel, folder, item),
        workspaces=tuple(kernel.workspaces.items()),
    )


def _contents(kernel: Kernel, folder: Path, item: int) -> tuple[tuple[str, Content], ...]:
    """Packed constants: values of floats do not matter, offsets and the like do."""
    found = []
    for number, (name, array) in enumerate(kernel.weights.items()):
        element = float_bytes(array.dtype.name)
        file = ""
        if not element:
            file = f"c{item}_{number}.bin"
            (folder / file).write_bytes(np.ascontiguousarray(array).tobytes())
        found.append((name, Content(array.nbytes, element, file)))
    return tuple(found)
