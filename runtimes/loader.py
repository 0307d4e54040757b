"""Runs a compiled library from Python: ctypes over the C API of ``runtimes/core/effc.h``.

Arrays that already have the right dtype, order and alignment are passed as they are;
outputs are written straight into the arrays that are returned. Needs NumPy only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from effc.errors import UsageError
from effc.runtimes.c_api import (
    ABI_VERSION,
    MAX_THREADS,
    Library,
    MappedFile,
    ModelInfo,
    Options,
    ProfileFn,
    TensorInfo,
    check_status,
    tensor_infos,
    tensors,
)

__all__ = ["BenchStats", "LayerTime", "Runner", "TensorInfo"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class BenchStats:
    """Latencies in milliseconds over ``runs`` timed inferences."""

    median_ms: float
    min_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    runs: int
    warmup: int
    threads: int

    @classmethod
    def from_nanoseconds(cls, times: Sequence[int], *, warmup: int, threads: int) -> BenchStats:
        """Summarise measured times.

        Raises:
            UsageError: There are none.
        """
        if not times:
            raise UsageError("a benchmark needs at least one run", where="--runs", got=0)
        ms = np.asarray(times, dtype=np.float64) / 1e6
        return cls(
            median_ms=float(np.median(ms)),
            min_ms=float(ms.min()),
            p90_ms=float(np.percentile(ms, 90)),
            p99_ms=float(np.percentile(ms, 99)),
            mean_ms=float(ms.mean()),
            std_ms=float(ms.std()),
            runs=len(times),
            warmup=warmup,
            threads=threads,
        )


@dataclass(frozen=True)
class LayerTime:
    """Median time of one layer (all its steps) in milliseconds.

    Attributes:
        name: The layer's name.
        nodes: ONNX nodes it computes.
        ms: Median over the profiled runs.
        instructions: Of one run, where they were counted.
    """

    name: str
    nodes: tuple[str, ...]
    ms: float
    instructions: int | None = None


class Runner:
    """A loaded library with one instance of its model.

    Safe to use from several threads, one inference at a time; make one runner per thread to
    run them in parallel.

    Args:
        library: The shared library.
        manifest: The artifact's manifest; only ``name`` (prefix of the C functions) is read.
        threads: Threads for one inference, the caller's included.
        affinity: Bit i set: helper threads may use CPU i; 0 means any.
        variant: Version of the code; the best that this processor runs if ``None``.
        weights: File of weights, for a library that has none of its own.

    Attributes:
        inputs, outputs: What the model takes and gives.
        threads: As given.
        variant: The version of the code that runs.
        arena_bytes: Working memory of one instance, without its threads' scratch.

    Raises:
        DeviceError: This machine cannot load the library.
        UsageError: A bad number of threads or mask, a variant that is not there, or weights of
            another model.
    """

    def __init__(
        self,
        library: str | os.PathLike[str],
        manifest: Mapping[str, Any],
        *,
        threads: int = 1,
        affinity: int = 0,
        variant: str | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self._model = ctypes.c_void_p()
        self._name = str(manifest["name"])
        self._path = Path(library).resolve()
        self._lock = threading.Lock()
        self._library = Library(self._path)
        self._run = self._function("run", ctypes.c_int)
        self._create = self._function("create", ctypes.c_int)
        self._destroy = self._function("destroy", None)
        get_info = self._function("info", ctypes.POINTER(ModelInfo))
        info = get_info().contents
        if info.abi_version != ABI_VERSION:
            raise UsageError(
                "the library was made by another version of effc",
                where=str(self._path),
                expected=f"runtime ABI {ABI_VERSION}",
                got=info.abi_version,
                hint="compile the model again",
            )
        self.arena_bytes = int(info.arena_bytes)
        self._steps = [
            (info.steps[i].layer.decode(), info.steps[i].nodes.decode())
            for i in range(info.step_count)
        ]
        self.inputs = tensor_infos(info.inputs, info.input_count)
        self.outputs = tensor_infos(info.outputs, info.output_count)
        self._affinity = affinity
        self.threads = threads
        self._variant = None if variant is None else variant.encode()
        self._weights = None if weights is None else MappedFile(Path(weights))
        self._model = self._instance(threads)
        get_variant = self._function("variant", ctypes.c_char_p)
        self.variant = str(get_variant(self._model).decode())

    def run(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """Run one inference.

        Args:
            inputs: One array per input, of exactly its shape and dtype.

        Returns:
            One new array per output.

        Raises:
            UsageError: A name, shape or dtype is wrong.
        """
        arrays = self._check_inputs(inputs)
        outputs = [np.empty(t.shape, t.dtype) for t in self.outputs]
        with self._borrowed(None) as model:
            self._call(model, tensors(arrays), tensors(outputs))
        return {t.name: a for t, a in zip(self.outputs, outputs, strict=True)}

    def bench(
        self,
        runs: int = 50,
        warmup: int = 10,
        threads: int | None = None,
        *,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
    ) -> BenchStats:
        """Measure the latency of ``run`` on this machine.

        Args:
            runs: Timed inferences.
            warmup: Untimed inferences before them.
            threads: Defaults to the runner's own number.
            inputs: Defaults to small random numbers (integers: zeros).
        """
        if runs < 1 or warmup < 0:
            raise UsageError(
                "bad number of runs", expected="runs >= 1, warmup >= 0", got=(runs, warmup)
            )
        arrays, ins, outs = self._bench_tensors(inputs)
        with self._borrowed(threads) as model:
            call, clock = self._run, time.perf_counter_ns
            for _ in range(warmup):
                self._call(model, ins, outs)
            times = []
            for _ in range(runs):
                start = clock()
                call(model, ins, outs)
                times.append(clock() - start)
        del arrays
        return BenchStats.from_nanoseconds(
            times, warmup=warmup, threads=self.threads if threads is None else threads
        )

    def profile(
        self,
        runs: int = 20,
        warmup: int = 3,
        threads: int | None = None,
        *,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
    ) -> tuple[LayerTime, ...]:
        """Median time of each layer, in execution order, through the profiling hook."""
        times = np.zeros((runs, max(len(self._steps), 1)), dtype=np.int64)
        current = -1

        def record(_user: object, step: int, nanoseconds: int) -> None:
            if current >= 0:
                times[current, step] = nanoseconds

        hook = ProfileFn(record)
        arrays, ins, outs = self._bench_tensors(inputs)
        with self._borrowed(threads, hook) as model:
            for i in range(-warmup, runs):
                current = i
                self._call(model, ins, outs)
        del arrays
        layers: dict[str, tuple[tuple[str, ...], npt.NDArray[np.int64]]] = {}
        for step, (name, nodes) in enumerate(self._steps):
            known = layers.get(name)
            total = times[:, step] + (known[1] if known else 0)
            layers[name] = (tuple(n for n in nodes.split("\n") if n), total)
        return tuple(
            LayerTime(name, nodes, float(np.median(ns)) / 1e6)
            for name, (nodes, ns) in layers.items()
        )

    def close(self) -> None:
        """End the instance and unload the library; the runner cannot be used afterwards."""
        with self._lock:
            if self._model:
                self._destroy(self._model)
                self._model = ctypes.c_void_p()
            self._library.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _function(self, name: str, result: Any) -> Any:
        try:
            function = self._library.function(f"{self._name}_{name}")
        except AttributeError as error:
            raise UsageError(
                f"the library has no function {self._name}_{name}",
                where=str(self._path),
                hint="is the manifest that of this library?",
            ) from error
        function.restype = result
        return function

    def _instance(self, threads: int, hook: Any = None) -> ctypes.c_void_p:
        if not 1 <= threads <= MAX_THREADS:
            raise UsageError(
                "bad number of threads",
                where="--threads",
                expected=f"1 to {MAX_THREADS}",
                got=threads,
            )
        options = Options(threads=threads, affinity=self._affinity, variant=self._variant)
        if hook is not None:
            options.profile = hook
        if self._weights is not None:
            options.weights = self._weights.address
            options.weights_bytes = self._weights.size
        model = ctypes.c_void_p()
        status = self._create(ctypes.byref(options), ctypes.byref(model))
        check_status(status, self._path)
        return model

    @contextlib.contextmanager
    def _borrowed(self, threads: int | None, hook: Any = None) -> Iterator[ctypes.c_void_p]:
        """The runner's own instance, or another one for the time being; nobody else runs."""
        with self._lock:
            if not self._model:
                raise UsageError("the runner is closed", where=str(self._path))
            if hook is None and threads in (None, self.threads):
                yield self._model
                return
            model = self._instance(self.threads if threads is None else threads, hook)
            try:
                yield model
            finally:
                self._destroy(model)

    def _call(self, model: ctypes.c_void_p, inputs: Any, outputs: Any) -> None:
        check_status(self._run(model, inputs, outputs), self._path)

    def _bench_tensors(self, inputs: Mapping[str, npt.ArrayLike] | None) -> tuple[Any, Any, Any]:
        """Arrays (to be kept alive) and their C descriptors."""
        if inputs is None:
            inputs = {t.name: _example(t) for t in self.inputs}
        arrays = self._check_inputs(inputs)
        outputs = [np.empty(t.shape, t.dtype) for t in self.outputs]
        return (arrays, outputs), tensors(arrays), tensors(outputs)

    def _check_inputs(self, inputs: Mapping[str, npt.ArrayLike]) -> list[Array]:
        names = [t.name for t in self.inputs]
        unknown = sorted(set(inputs) - set(names))
        missing = [n for n in names if n not in inputs]
        if unknown or missing:
            raise UsageError(
                "the inputs are not those of the model",
                where=", ".join(f"'{n}'" for n in (*missing, *unknown)),
                expected=", ".join(f"'{n}'" for n in names),
                got=", ".join(f"'{n}'" for n in inputs) or "none",
            )
        return [_checked(np.asarray(inputs[t.name]), t) for t in self.inputs]


def _checked(array: Array, info: TensorInfo) -> Array:
    """The array as the library needs it: no copy unless order or alignment require one."""
    if array.dtype != info.dtype or array.shape != info.shape:
        raise UsageError(
            "an input has another type or shape than the model's",
            where=f"'{info.name}'",
            expected=f"{info.dtype} {list(info.shape)}",
            got=f"{array.dtype} {list(array.shape)}",
        )
    return np.require(array, requirements=["C", "A"])


def _example(info: TensorInfo) -> Array:
    """Random numbers in [-1, 1) for floats, zeros otherwise (valid as indices)."""
    if np.issubdtype(info.dtype, np.floating):
        random = np.random.default_rng(0)
        return random.uniform(-1, 1, info.shape).astype(info.dtype)
    return np.zeros(info.shape, info.dtype)
