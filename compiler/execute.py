"""Where an artifact runs: in this process, or in a child process, natively or emulated.

``local`` loads the library here. ``qemu`` runs the same library file in a static loader
(``effc.emulate``) under QEMU's user mode; an Android library for this machine's own
processor runs in that loader without an emulator.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from effc.artifact import Artifact
from effc.errors import DeviceError, ToolError, UsageError
from effc.runtimes.loader import BenchStats, LayerTime, Runner
from effc.samples import Arrays, Tensor, numpy_dtype

__all__ = ["EMULATORS", "Executor", "default_device", "open_executor", "open_local"]

EMULATORS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "x86_64": "qemu-x86_64"}
"""QEMU user-mode program per architecture."""

_MAGIC = b"EFFCTNS1"
_TIMEOUT_S = 3600.0


class Executor(Protocol):
    """An opened artifact on some device.

    Attributes:
        device: ``local``, ``qemu`` ...
        threads: Threads of one inference.
    """

    device: str
    threads: int

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays: ...

    def bench(self, runs: int, warmup: int) -> BenchStats: ...

    def profile(self, runs: int, warmup: int) -> tuple[LayerTime, ...]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def default_device(manifest: Mapping[str, Any]) -> str:
    """``local`` where this process can load the library, otherwise ``qemu``."""
    machine = manifest["machine"]
    if machine["arch"] == platform.machine() and machine["os"] in ("linux", "android"):
        return "local"
    return "qemu"


def open_executor(artifact: Artifact, device: str | None, threads: int | None) -> Executor:
    """Open an artifact on a device.

    Args:
        artifact: What to run.
        device: ``local`` or ``qemu``; the natural one if ``None``.
        threads: The artifact's own number if ``None``.

    Raises:
        UsageError: The device is unknown, or cannot run this artifact.
        ToolError: The emulator is missing.
        DeviceError: The device fails.
    """
    return open_library(artifact.library, artifact.manifest, device, threads)


def open_library(
    library: Path, manifest: Mapping[str, Any], device: str | None, threads: int | None
) -> Executor:
    """Like :func:`open_executor`, for a library that is not in an artifact yet."""
    device = device or default_device(manifest)
    threads = threads or int(manifest["threads"])
    machine = manifest["machine"]
    if device not in ("local", "qemu"):
        raise UsageError(
            f"unknown device '{device}'",
            where="--device",
            expected="local or qemu",
            hint="this version runs artifacts on this machine and in QEMU only",
        )
    if device == "local":
        _check_processor(machine)
        if machine["os"] == "linux":
            return LocalExecutor(library, manifest, threads)
        return LoaderExecutor(library, manifest, threads, "local", [])
    emulator = EMULATORS.get(machine["arch"])
    path = shutil.which(emulator) if emulator else None
    if path is None:
        raise ToolError(
            "the emulator is missing",
            where=emulator or machine["arch"],
            hint="install it (Debian and Ubuntu: apt-get install qemu-user), "
            "or compile with --no-verify",
        )
    return LoaderExecutor(library, manifest, threads, "qemu", [path])


def _check_processor(machine: Mapping[str, Any]) -> None:
    """Refuse what would end in an illegal instruction."""
    from effc.devices.host import missing_features

    same = machine["arch"] == platform.machine()
    missing = missing_features(machine["features"]) if same else []
    if not same or missing:
        lacking = f" without {', '.join(missing)}" if missing else ""
        raise DeviceError(
            "this machine cannot run the artifact",
            where="--device local",
            expected=f"{machine['arch']} {machine['cpu']}".strip(),
            got=f"{platform.machine()}{lacking}",
            hint="use --device qemu, or compile for this machine with --target host",
        )


def open_local(artifact: Artifact, threads: int | None = None) -> Runner:
    """Load an artifact into this process.

    Raises:
        DeviceError: It was compiled for another machine.
    """
    machine = artifact.manifest["machine"]
    _check_processor(machine)
    if machine["os"] != "linux":
        raise DeviceError(
            "this process cannot load the artifact",
            where=str(artifact.path),
            expected="a library for Linux",
            got=f"one for {machine['os']}",
            hint="compile it with target='host', or use 'effc run --device qemu'",
        )
    return Runner(
        artifact.library,
        artifact.manifest,
        threads=threads or int(artifact.manifest["threads"]),
    )


class LocalExecutor:
    """The library in this process."""

    device = "local"

    def __init__(self, library: Path, manifest: Mapping[str, Any], threads: int) -> None:
        self.threads = threads
        self._runner = Runner(library, manifest, threads=threads)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        return self._runner.run(inputs)

    def bench(self, runs: int, warmup: int) -> BenchStats:
        return self._runner.bench(runs=runs, warmup=warmup)

    def profile(self, runs: int, warmup: int) -> tuple[LayerTime, ...]:
        return self._runner.profile(runs=runs, warmup=warmup)

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


class LoaderExecutor:
    """The library in the static loader, behind an emulator or not; one process per call."""

    def __init__(
        self,
        library: Path,
        manifest: Mapping[str, Any],
        threads: int,
        device: str,
        prefix: Sequence[str],
    ) -> None:
        from effc.devices.catalog import get_target
        from effc.emulate import loader_program

        self.device = device
        self.threads = threads
        self._manifest = manifest
        self._command = [*prefix, str(loader_program(get_target(manifest["target"])))]
        self._environment = {
            **os.environ,
            "EFFC_LIBRARY": str(library.absolute()),
            "EFFC_NAME": str(manifest["name"]),
        }
        self._ports = _Ports(
            tuple(Tensor.of(entry) for entry in manifest["inputs"]),
            tuple(Tensor.of(entry) for entry in manifest["outputs"]),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        with tempfile.TemporaryDirectory(prefix="effc-run-") as folder:
            source, result = Path(folder) / "in", Path(folder) / "out"
            _write_tensors(source, [inputs[t.name] for t in self._ports.inputs])
            arguments = ["--input", str(source)] if self._ports.inputs else []
            self._call([*arguments, "--output", str(result)])
            return _read_tensors(result, self._ports.outputs)

    def bench(self, runs: int, warmup: int) -> BenchStats:
        answer = self._call(["--runs", str(runs), "--warmup", str(warmup)])
        return BenchStats.from_nanoseconds(answer["times_ns"], warmup=warmup, threads=self.threads)

    def profile(self, runs: int, warmup: int) -> tuple[LayerTime, ...]:
        arguments = ["--runs", str(runs), "--warmup", str(warmup), "--profile"]
        steps = self._call(arguments)["steps_ns"]
        nodes = {layer["name"]: tuple(layer["nodes"]) for layer in self._manifest["layers"]}
        total: dict[str, int] = {}
        for name, nanoseconds in zip(self._manifest["steps"], steps, strict=True):
            total[name] = total.get(name, 0) + nanoseconds
        return tuple(
            LayerTime(name, nodes.get(name, ()), ns / runs / 1e6) for name, ns in total.items()
        )

    def _call(self, arguments: Sequence[str]) -> dict[str, Any]:
        command = [*self._command, "--threads", str(self.threads), *arguments]
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise DeviceError("cannot start the runner", where=command[0], got=error) from error
        except subprocess.TimeoutExpired as error:
            raise DeviceError(
                "the runner does not end", where=self.device, expected=f"{_TIMEOUT_S:.0f} s"
            ) from error
        if done.returncode != 0:
            raise DeviceError(
                "the runner failed",
                where=self.device,
                got=f"exit code {done.returncode}: {done.stderr.strip()[-500:]}",
            )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _write_tensors(path: Path, arrays: Sequence[np.ndarray]) -> None:
    with path.open("wb") as stream:
        stream.write(_MAGIC + np.uint64(len(arrays)).tobytes())
        for array in arrays:
            stream.write(np.uint64(array.nbytes).tobytes())
            stream.write(np.ascontiguousarray(array).tobytes())


def _read_tensors(path: Path, tensors: Sequence[Tensor]) -> Arrays:
    data = path.read_bytes()
    offset = len(_MAGIC) + 8
    arrays: Arrays = {}
    for tensor in tensors:
        dtype = numpy_dtype(tensor.dtype)
        count = prod(tensor.shape)
        offset += 8
        if len(data) < offset + count * dtype.itemsize:
            raise DeviceError("the runner wrote too few bytes", where=tensor.name)
        values = np.frombuffer(data, dtype, count, offset)
        arrays[tensor.name] = values.reshape(tensor.shape).copy()
        offset += count * dtype.itemsize
    return arrays
