"""Opened artifacts: in this process, or in the static loader on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from effc.devices.execution import Execution, OnDevice, Piece, Process, execute, run_program
from effc.runtimes.loader import BenchStats, Runner
from effc.samples import Arrays, Tensor

__all__ = ["Executor", "LoaderExecutor", "LocalExecutor", "Tracer", "run_all", "weights_beside"]


class Executor(Protocol):
    """An opened artifact on some device.

    Attributes:
        device: ``local``, ``qemu`` ...
        threads: Threads of one inference.
        variant: Version of the code that runs, known after the first inference.
    """

    device: str
    threads: int
    variant: str

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays: ...

    def bench(self, runs: int, warmup: int) -> BenchStats: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Tracer(Executor, Protocol):
    """An executor that can look at the tensors of an artifact."""

    def trace(
        self, inputs: Mapping[str, np.ndarray], pieces: Sequence[Piece]
    ) -> tuple[Arrays, Arrays]:
        """Run once: the outputs, and tensors by name as they are after their steps."""


def weights_beside(library: Path, manifest: Mapping[str, Any]) -> Path | None:
    """The file of weights of a library that lies where its manifest says, if it has one."""
    root = library.parents[len(Path(manifest["library"]).parts) - 1]
    return root / manifest["weights_file"] if manifest["weights_file"] else None


class LocalExecutor:
    """The library in this process."""

    device = "local"

    def __init__(
        self, library: Path, manifest: Mapping[str, Any], threads: int, variant: str | None
    ) -> None:
        self.threads = threads
        weights = weights_beside(library, manifest)
        self._runner = Runner(library, manifest, threads=threads, variant=variant, weights=weights)
        self.variant = self._runner.variant

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return self._runner.run(inputs)

    def bench(self, runs: int, warmup: int) -> BenchStats:
        return self._runner.bench(runs=runs, warmup=warmup)

    def close(self) -> None:
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Ports:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


_TOGETHER = 64
_TOGETHER_BYTES = 64 << 20


class LoaderExecutor:
    """The library in the static loader, on any device; one process per call."""

    def __init__(
        self,
        place: Process | OnDevice,
        manifest: Mapping[str, Any],
        threads: int,
        device: str,
        variant: str | None,
    ) -> None:
        self.device = device
        self.threads = threads
        self.variant = variant or ""
        self._asked = variant
        self._place = place
        self._ports = _Ports(
            tuple(Tensor.of(entry) for entry in manifest["inputs"]),
            tuple(Tensor.of(entry) for entry in manifest["outputs"]),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return self._execute([inputs]).outputs[0]

    def run_together(self, samples: Sequence[Mapping[str, np.ndarray]]) -> tuple[Arrays, ...]:
        """Several inferences in one process."""
        return self._execute(samples).outputs

    @property
    def together(self) -> int:
        """How many samples to run in one process: another machine is visited once for all."""
        if not isinstance(self._place, OnDevice):
            return 1
        ports = (*self._ports.inputs, *self._ports.outputs)
        size = sum(math.prod(port.shape) * np.dtype(port.dtype).itemsize for port in ports)
        return min(max(_TOGETHER_BYTES // max(size, 1), 1), _TOGETHER)

    def trace(
        self, inputs: Mapping[str, np.ndarray], pieces: Sequence[Piece]
    ) -> tuple[Arrays, Arrays]:
        """Run once: the outputs, and tensors by name as they are after their steps."""
        done = self._execute([inputs], trace=pieces)
        return done.outputs[0], done.traced[0] if pieces else {}

    def bench(self, runs: int, warmup: int) -> BenchStats:
        times = self._execute([], runs=runs, warmup=warmup).times_ns
        return BenchStats.from_nanoseconds(times, warmup=warmup, threads=self.threads)

    def _execute(self, samples: Sequence[Mapping[str, np.ndarray]], **options: Any) -> Execution:
        done = execute(
            self._place,
            samples,
            self._ports.inputs,
            self._ports.outputs,
            threads=self.threads,
            variant=self._asked,
            **options,
        )
        self.variant = done.variant
        return done

    def ask(self, arguments: Sequence[str], timeout_s: float = 3600.0) -> dict[str, Any]:
        """Run the program with arguments of ``runtimes/runner/main.c``; what it printed.

        Raises:
            DeviceError: It could not be started, died, hung or answered nonsense.
        """
        return run_program(self._place, arguments, timeout_s)

    def close(self) -> None:
        """End the session on another machine."""
        if isinstance(self._place, OnDevice):
            self._place.device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def run_all(
    executor: Executor, samples: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[Mapping[str, np.ndarray]]:
    """Outputs of samples, in order."""
    if not isinstance(executor, LoaderExecutor):
        yield from map(executor.run, samples)
        return
    count = executor.together
    for begin in range(0, len(samples), count):
        yield from executor.run_together(samples[begin : begin + count])
