"""Running a test program: here, under an emulator, or on a device.

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
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes  # noqa: F401 - NumPy learns the name bfloat16
import numpy as np
import numpy.typing as npt

from effc.devices.process import Finished, TimedOut, converse
from effc.devices.transport import Device, Session
from effc.errors import DeviceError, ToolError, UsageError

__all__ = [
    "Execution",
    "OnDevice",
    "Piece",
    "Place",
    "Process",
    "TensorSpec",
    "checked_inputs",
    "execute",
    "run_program",
]

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
        steps_ns: Median time of each step of the program over the timed runs, when profiled.
        variant: The version of the code that ran.
        traced: One mapping per sample with the stored tensors, when traced.
    """

    outputs: tuple[dict[str, npt.NDArray[Any]], ...]
    times_ns: tuple[int, ...]
    steps_ns: tuple[int, ...] | None
    variant: str
    traced: tuple[dict[str, npt.NDArray[Any]], ...] = ()


class Place(Protocol):
    """Where a program runs."""

    @property
    def program(self) -> str:
        """The program and the device, for messages."""

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        sent: Sequence[str],
        wanted: Sequence[str],
        timeout_s: float,
    ) -> Finished:
        """Run the program in a folder.

        Args:
            arguments: Of the program; files are named without a folder.
            folder: Of this machine, with the files that it reads, and for those that it writes.
            sent, wanted: Names of these files. They are written if the program ends well.
            timeout_s: For the program.

        Raises:
            DeviceError: It could not be started, or hung.
        """


@dataclass(frozen=True)
class Process:
    """A process of this machine.

    Attributes:
        command: The program by its full path, with an emulator in front where one is needed.
        environment: Variables added to this process's own.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return Path(self.command[0]).name

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        sent: Sequence[str],
        wanted: Sequence[str],
        timeout_s: float,
    ) -> Finished:
        environment = {**os.environ, **self.environment}
        try:
            return converse(
                [*self.command, *arguments], timeout_s, cwd=folder, environment=environment
            )
        except ToolError as error:
            raise DeviceError(error.what, where=self.program, got=error.got) from error
        except TimedOut as error:
            raise DeviceError(
                "the program did not finish",
                where=self.program,
                expected=f"an end within {timeout_s} s",
            ) from error


@dataclass(frozen=True)
class OnDevice:
    """A program on another machine.

    Attributes:
        device: The machine.
        files: What the program consists of, by name; pushed if the device lacks them.
        main: Name of the program.
        environment: Variables; files are named without a folder.
    """

    device: Device
    files: Mapping[str, Path]
    main: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return f"{self.main} on {self.device.address}"

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        sent: Sequence[str],
        wanted: Sequence[str],
        timeout_s: float,
    ) -> Finished:
        def job(session: Session) -> Finished:
            session.push(self.files, keep=True)
            session.push({name: folder / name for name in sent})
            done = session.run([self.main, *arguments], timeout_s, environment=self.environment)
            if done.code == 0 and wanted:
                session.pull(wanted, folder)
            return done

        return self.device.call(job)


def execute(
    place: Place,
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
    timeout_s: float = 3600.0,
) -> Execution:
    """Run samples through a runner and time it.

    Args:
        place: The runner and where it runs.
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
        timeout_s: For the whole process; an emulator may take minutes per inference.

    Raises:
        UsageError: A sample does not fit the model.
        DeviceError: The program could not be started, died, hung or answered nonsense.
    """
    with tempfile.TemporaryDirectory(prefix="effc-run-") as name:
        folder = Path(name)
        sent, wanted = [], []
        arguments = ["--runs", str(runs), "--warmup", str(warmup), "--threads", str(threads)]
        if samples and inputs:
            _write_samples(folder / "inputs.bin", samples, inputs)
            arguments += ["--input", "inputs.bin"]
            sent.append("inputs.bin")
        wants_outputs = bool(samples) or not inputs
        if wants_outputs:
            arguments += ["--output", "outputs.bin"]
            wanted.append("outputs.bin")
        if profile:
            arguments.append("--profile")
        if variant is not None:
            arguments += ["--variant", variant]
        if trace:
            plan = _COUNT.pack(len(trace)) + b"".join(piece.plan for piece in trace)
            (folder / "plan.bin").write_bytes(plan)
            arguments += ["--trace", "trace.bin", "--plan", "plan.bin"]
            sent.append("plan.bin")
            wanted.append("trace.bin")
        answer = _answer(place, place.run(arguments, folder, sent, wanted, timeout_s))
        return Execution(
            outputs=_read_samples(folder / "outputs.bin", outputs) if wants_outputs else (),
            times_ns=tuple(answer["times_ns"]),
            steps_ns=tuple(answer["steps_ns"]) if profile else None,
            variant=str(answer["variant"]),
            traced=_read_samples(folder / "trace.bin", trace) if trace else (),
        )


def run_program(
    place: Place, arguments: Sequence[str], timeout_s: float = 3600.0
) -> dict[str, Any]:
    """Run a runner that takes no samples; the JSON object that it prints.

    Raises:
        DeviceError: The program could not be started, died, hung or answered nonsense.
    """
    with tempfile.TemporaryDirectory(prefix="effc-run-") as folder:
        return _answer(place, place.run(arguments, Path(folder), (), (), timeout_s))


def _answer(place: Place, done: Finished) -> dict[str, Any]:
    """What a runner has printed."""
    if done.code != 0:
        raise DeviceError(
            "the program died",
            where=place.program,
            got=f"{_exit_text(done.code)} {done.message}".strip(),
        )
    text = done.out.decode("utf-8", "replace")
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise DeviceError(
            "the program answered nonsense", where=place.program, got=text[-200:]
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
