"""Running a test program as a process, here or under an emulator.

The program is a runner (``effc.link.link_runner``) or the loader of ``effc.emulate``.
Samples travel in files of a simple container, see ``runtimes/runner/main.c``; times come back
as JSON on the program's standard output.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 - NumPy learns the name bfloat16
import numpy as np
import numpy.typing as npt

from effc.errors import DeviceError, UsageError

__all__ = ["Execution", "Piece", "TensorSpec", "checked_inputs", "execute"]

_MAGIC = b"EFFCTNS1"
_COUNT = struct.Struct("=Q")


class TensorSpec(Protocol):
    """Name, static shape and NumPy dtype name of an input or output."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class Piece:
    """A tensor in memory after a step.

    Attributes:
        name, dtype, shape: Of the tensor.
        step: Index of the step that completes it.
        output: The model output that it lies in; ``None``: in the arena.
        offset: Bytes from there.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    step: int
    output: int | None
    offset: int

    @property
    def plan(self) -> bytes:
        """The entry in a plan of the runner."""
        nbytes = np.dtype(self.dtype).itemsize * math.prod(self.shape)
        where = int(self.output is not None)
        return struct.pack("=5Q", self.step, where, self.output or 0, self.offset, nbytes)


@dataclass(frozen=True)
class Execution:
    """What a runner computed and measured.

    Attributes:
        outputs: One mapping per sample.
        times_ns: One entry per timed run.
        steps_ns: Time per step of the program, summed over the timed runs, when profiled.
        variant: The version of the code that ran.
        traced: One mapping per sample with the stored tensors, when traced.
    """

    outputs: tuple[dict[str, npt.NDArray[Any]], ...]
    times_ns: tuple[int, ...]
    steps_ns: tuple[int, ...] | None
    variant: str
    traced: tuple[dict[str, npt.NDArray[Any]], ...] = ()


def execute(
    command: Sequence[str],
    samples: Sequence[Mapping[str, npt.ArrayLike]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    runs: int = 0,
    warmup: int = 0,
    threads: int = 1,
    profile: bool = False,
    variant: str | None = None,
    trace: Sequence[Piece] = (),
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 3600.0,
) -> Execution:
    """Run samples through a runner and time it.

    Args:
        command: The runner, with an emulator in front where one is needed.
        samples: Inputs of each inference; with none the runner makes up one sample to
            time and no outputs come back. A model without inputs takes no samples and
            always gives one set of outputs.
        inputs, outputs: What the model takes and gives, in order.
        runs, warmup: Timed and untimed inferences after the samples.
        threads: Threads for one inference.
        profile: Also measure each step.
        variant: Version of the code to run; the best one for the processor if ``None``.
        trace: Tensors to store from every sample, by ascending step; only with one thread and
            without timing.
        environment: Variables added to this process's own.
        timeout_s: For the whole process; an emulator may take minutes per inference.

    Raises:
        UsageError: A sample does not fit the model.
        DeviceError: The program could not be started, died, hung or answered nonsense.
    """
    with tempfile.TemporaryDirectory(prefix="effc-run-") as folder:
        arguments = ["--runs", str(runs), "--warmup", str(warmup), "--threads", str(threads)]
        source, result = Path(folder) / "inputs.bin", Path(folder) / "outputs.bin"
        if samples and inputs:
            _write_samples(source, samples, inputs)
            arguments += ["--input", str(source)]
        wants_outputs = bool(samples) or not inputs
        if wants_outputs:
            arguments += ["--output", str(result)]
        if profile:
            arguments.append("--profile")
        if variant is not None:
            arguments += ["--variant", variant]
        stored = Path(folder) / "trace.bin"
        if trace:
            plan = Path(folder) / "plan.bin"
            plan.write_bytes(_COUNT.pack(len(trace)) + b"".join(piece.plan for piece in trace))
            arguments += ["--trace", str(stored), "--plan", str(plan)]
        answer = _run([*command, *arguments], {**os.environ, **(environment or {})}, timeout_s)
        return Execution(
            outputs=_read_samples(result, outputs) if wants_outputs else (),
            times_ns=tuple(answer["times_ns"]),
            steps_ns=tuple(answer["steps_ns"]) if profile else None,
            variant=str(answer["variant"]),
            traced=_read_samples(stored, trace) if trace else (),
        )


def _run(
    command: Sequence[str], environment: Mapping[str, str], timeout_s: float
) -> dict[str, Any]:
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        raise DeviceError("cannot start the program", where=program, got=error) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            "the program did not finish", where=program, expected=f"an end within {timeout_s} s"
        ) from error
    if done.returncode != 0:
        raise DeviceError(
            "the program died",
            where=program,
            got=f"{_exit_text(done.returncode)} {done.stderr[-500:].strip()}".strip(),
        )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise DeviceError(
            "the program answered nonsense", where=program, got=done.stdout[-200:]
        ) from error
    return answer


def _exit_text(code: int) -> str:
    """Exit code in words; emulators report a signal as 128 + number."""
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit code {code}"


def _write_samples(
    path: Path, samples: Sequence[Mapping[str, npt.ArrayLike]], specs: Sequence[TensorSpec]
) -> None:
    with path.open("wb") as stream:
        stream.write(_MAGIC + _COUNT.pack(len(samples) * len(specs)))
        for sample in samples:
            for array in checked_inputs(sample, specs):
                stream.write(_COUNT.pack(array.nbytes))
                stream.write(array.tobytes())


def checked_inputs(
    sample: Mapping[str, npt.ArrayLike], specs: Sequence[TensorSpec]
) -> list[npt.NDArray[Any]]:
    """Inputs of one inference in the model's order, contiguous.

    Raises:
        UsageError: A sample does not fit the model.
    """
    arrays = []
    for spec in specs:
        if spec.name not in sample:
            raise UsageError("an input is missing", where=f"'{spec.name}'")
        array = np.ascontiguousarray(sample[spec.name])
        if array.dtype != spec.dtype or np.shape(sample[spec.name]) != spec.shape:
            raise UsageError(
                "an input has another type or shape than the model's",
                where=f"'{spec.name}'",
                expected=f"{spec.dtype} {list(spec.shape)}",
                got=f"{array.dtype} {list(array.shape)}",
            )
        arrays.append(array)
    return arrays


def _read_samples(
    path: Path, specs: Sequence[TensorSpec]
) -> tuple[dict[str, npt.NDArray[Any]], ...]:
    data = path.read_bytes()
    try:
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("bad magic")
        (count,) = _COUNT.unpack_from(data, len(_MAGIC))
        offset = len(_MAGIC) + _COUNT.size
        samples = []
        for _ in range(count // len(specs) if specs else 0):
            sample = {}
            for spec in specs:
                (size,) = _COUNT.unpack_from(data, offset)
                offset += _COUNT.size
                flat = np.frombuffer(data, np.uint8, size, offset)
                sample[spec.name] = flat.copy().view(np.dtype(spec.dtype)).reshape(spec.shape)
                offset += size
            samples.append(sample)
    except (ValueError, struct.error) as error:
        raise DeviceError("the program's output file is damaged", got=error) from error
    return tuple(samples)
