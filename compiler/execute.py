"""Where an artifact runs: in this process, in a child process, emulated, or on a device.

``local`` loads the library here, C source after it was compiled. ``qemu`` runs the same
library file in a static loader (``effc.emulate``) under QEMU's user mode; an Android library for
this machine's own processor runs in that loader without an emulator, and so does any library
behind adb or ssh. Firmware runs on emulated boards, or on the board at a serial port.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effc.artifact import Artifact
from effc.bare.board import BoardExecutor, SerialExecutor
from effc.c_source.hosted import hosted_library
from effc.devices.address import Address, parse_device
from effc.devices.catalog import get_target
from effc.devices.cpu import missing_features
from effc.devices.execution import OnDevice, Process
from effc.devices.probe import facts_of
from effc.devices.qemu import not_emulated, qemu_command
from effc.devices.target import BASE
from effc.devices.transport import Device
from effc.errors import DeviceError, UsageError
from effc.executors import Executor, LoaderExecutor, LocalExecutor, Tracer, weights_beside
from effc.runtimes.loader import Runner

__all__ = [
    "Executor",
    "Tracer",
    "default_device",
    "is_counted",
    "open_board",
    "open_executor",
    "open_library",
    "open_local",
    "open_program",
    "open_tracer",
    "variant_names",
    "variant_refusal",
]


def default_device(manifest: Mapping[str, Any]) -> str:
    """``local`` where this process can load the library, otherwise ``qemu``."""
    machine = manifest["machine"]
    if machine["arch"] == "c":
        return "local"
    if machine["arch"] == platform.machine() and machine["os"] in ("linux", "android"):
        return "local"
    return "qemu"


def is_counted(manifest: Mapping[str, Any]) -> bool:
    """Whether an artifact's instructions are counted on an emulated board; others are timed."""
    machine = manifest["machine"]
    return bool(machine["os"] == "none" and machine["arch"] != "c")


def variant_names(manifest: Mapping[str, Any]) -> list[str]:
    """Versions of a library's code, best first; the last is ``base``."""
    return [*(variant["name"] for variant in manifest["variants"]), BASE]


def variant_refusal(manifest: Mapping[str, Any], device: str | None, variant: str) -> str | None:
    """Why a device cannot run a version of the code beyond the base, or ``None``.

    Raises:
        DeviceError: It cannot be asked.
    """
    features = [
        f"+{f}" for v in manifest["variants"] if v["name"] == variant for f in v["features"]
    ]
    address = parse_device(device or default_device(manifest))
    if not features:
        return None
    if address.kind == "qemu":
        who, missing = "QEMU does not emulate", not_emulated(features)
    elif address.remote:
        who, missing = "the device's processor lacks", facts_of(address).missing_features(features)
    else:
        who, missing = "this machine's processor lacks", missing_features(features)
    return f"{who} {', '.join(missing)}" if missing else None


def open_executor(
    artifact: Artifact, device: str | None, threads: int | None, variant: str | None = None
) -> Executor:
    """Open an artifact on a device.

    Args:
        artifact: What to run.
        device: What ``--device`` takes; the natural one if ``None``.
        threads: The artifact's own number if ``None``.
        variant: Version of the code; the best for the processor if ``None``. An emulated
            processor is the weakest one that the version asks for.

    Raises:
        UsageError: The device or variant is unknown, or cannot run this artifact.
        ToolError: The emulator is missing.
        DeviceError: The device fails.
    """
    return open_library(artifact.library, artifact.manifest, device, threads, variant)


def open_library(
    library: Path,
    manifest: Mapping[str, Any],
    device: str | None,
    threads: int | None,
    variant: str | None = None,
) -> Executor:
    """Like :func:`open_executor`, for a library that is not in an artifact yet."""
    library, manifest = _runnable(library, manifest, device)
    address = _checked_device(device, manifest)
    threads = int(manifest["threads"]) if threads is None else threads
    machine = manifest["machine"]
    _check_variant(manifest, address, variant)
    if machine["os"] == "none":
        return _open_board(library, manifest, address)
    if address.kind == "local" and machine["os"] == "linux":
        _check_processor(machine)
        return LocalExecutor(library, manifest, threads, variant)
    return _open_loader(library, manifest, address, threads, variant)


def _open_loader(
    library: Path, manifest: Mapping[str, Any], address: Address, threads: int, variant: str | None
) -> LoaderExecutor:
    place: Process | OnDevice
    if address.remote:
        _check_remote(address, manifest["machine"])
        place = _on_device(address, library, manifest)
    else:
        command = [str(_loader(manifest))]
        if address.kind == "local":
            _check_processor(manifest["machine"])
        else:
            version = get_target(manifest["target"]).version(variant or BASE)
            command = [*qemu_command(version), *command]
        place = Process(command, _loader_environment(library, manifest))
    return LoaderExecutor(place, manifest, threads, str(address), variant)


def _loader(manifest: Mapping[str, Any]) -> Path:
    from effc.emulate import loader_program

    return loader_program(get_target(manifest["target"]))


def _loader_environment(library: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """What tells the loader which files to load."""
    environment = {"EFFC_LIBRARY": str(library.absolute()), "EFFC_NAME": str(manifest["name"])}
    weights = weights_beside(library, manifest)
    if weights is not None:
        environment["EFFC_WEIGHTS"] = str(weights.absolute())
    return environment


def _on_device(address: Address, library: Path, manifest: Mapping[str, Any]) -> OnDevice:
    """The loader with its files, under fixed names."""
    files = {"loader": _loader(manifest), "model.so": library}
    environment = {"EFFC_LIBRARY": "model.so", "EFFC_NAME": str(manifest["name"])}
    weights = weights_beside(library, manifest)
    if weights is not None:
        files["weights.bin"] = weights
        environment["EFFC_WEIGHTS"] = "weights.bin"
    return OnDevice(Device(address), files, "loader", environment)


def open_tracer(artifact: Artifact, device: str | None, variant: str | None = None) -> Tracer:
    """Open an artifact where its tensors can be looked at: one thread, a process of its own.

    Raises:
        EffcError: As :func:`open_executor`.
    """
    library, manifest = _runnable(artifact.library, artifact.manifest, device)
    address = _checked_device(device, manifest)
    _check_variant(manifest, address, variant)
    if manifest["machine"]["os"] == "none":
        return _open_board(library, manifest, address)
    return _open_loader(library, manifest, address, 1, variant)


def open_board(artifact: Artifact, device: str | None) -> BoardExecutor:
    """Open an artifact for a microcontroller on the board that counts its instructions.

    Raises:
        EffcError: As :func:`open_executor`.
    """
    address = _checked_device(device, artifact.manifest)
    return _open_board(artifact.library, artifact.manifest, address)


def _open_board(library: Path, manifest: Mapping[str, Any], address: Address) -> BoardExecutor:
    """An emulated board, or the one at a serial port."""
    if address.kind == "serial":
        return SerialExecutor(address, manifest)
    return BoardExecutor(library, manifest)


def open_program(
    artifact: Artifact, device: str | None, variant: str | None = None
) -> LoaderExecutor:
    """Open an artifact in the benchmark program: one process per measurement.

    Raises:
        EffcError: As :func:`open_executor`.
    """
    library, manifest = _runnable(artifact.library, artifact.manifest, device)
    address = _checked_device(device, manifest)
    _check_variant(manifest, address, variant)
    return _open_loader(library, manifest, address, int(manifest["threads"]), variant)


def _runnable(
    library: Path, manifest: Mapping[str, Any], device: str | None
) -> tuple[Path, Mapping[str, Any]]:
    """The library itself, or what C source becomes when it is compiled for this machine.

    Raises:
        UsageError: C source has no processor to emulate.
        ToolError: The compiler refuses the source.
    """
    if manifest["machine"]["arch"] != "c":
        return library, manifest
    if device is not None and parse_device(device).kind == "qemu":
        raise UsageError(
            "C source is for no particular processor",
            where=f"--device {device}",
            expected="local",
            hint="compile for cortex-m4 or another core to run on an emulated board",
        )
    hosted = hosted_library(library, manifest)
    return hosted.library, hosted.manifest


def _checked_device(device: str | None, manifest: Mapping[str, Any]) -> Address:
    if manifest["machine"]["os"] == "apple":
        raise DeviceError(
            "nothing here runs code for Apple's systems",
            where=str(manifest["target"]),
            hint="compile for linux-arm64 to check the same kernels under QEMU",
        )
    address = parse_device(device or default_device(manifest))
    on_board = manifest["machine"]["os"] == "none"
    if address.kind == "serial" and not on_board:
        raise UsageError(
            "only artifacts for microcontrollers run at a serial port", where=f"--device {address}"
        )
    if on_board and address.kind not in ("qemu", "serial"):
        raise UsageError(
            f"firmware does not run on device '{device}'",
            where="--device",
            expected="qemu or serial:PORT",
        )
    return address


def _check_variant(manifest: Mapping[str, Any], address: Address, variant: str | None) -> None:
    """Refuse a version of the code that is not there, or not for the processor."""
    names = variant_names(manifest)
    if variant is not None and variant not in names:
        raise UsageError(
            f"the library has no variant '{variant}'",
            where="--variant",
            expected=", ".join(names),
        )
    refusal = None if variant is None else variant_refusal(manifest, str(address), variant)
    if refusal is not None:
        raise DeviceError(
            f"the device cannot run variant {variant}", where="--variant", got=refusal
        )


def _check_processor(machine: Mapping[str, Any]) -> None:
    """Refuse what would end in an illegal instruction."""
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


def _check_remote(address: Address, machine: Mapping[str, Any]) -> None:
    """Refuse what would end in an illegal instruction, or not even start."""
    facts = facts_of(address)
    missing = facts.missing_features(machine["features"])
    if not facts.runs(machine["arch"]) or missing:
        lacking = f" without {', '.join(missing)}" if missing else ""
        raise DeviceError(
            "the device cannot run the artifact",
            where=f"--device {address}",
            expected=f"{machine['arch']} {machine['cpu']}".strip(),
            got=f"{facts.arch}{lacking}",
            hint="compile for this device ('effc devices' names its target)",
        )


def open_local(
    artifact: Artifact, threads: int | None = None, variant: str | None = None
) -> Runner:
    """Load an artifact into this process.

    Raises:
        DeviceError: It was compiled for another machine.
        UsageError: It has no such variant.
    """
    library, manifest = _runnable(artifact.library, artifact.manifest, "local")
    machine = manifest["machine"]
    _check_processor(machine)
    _check_variant(manifest, Address("local"), variant)
    if machine["os"] != "linux":
        raise DeviceError(
            "this process cannot load the artifact",
            where=str(artifact.path),
            expected="a library for Linux",
            got=f"one for {machine['os']}",
            hint="compile it with target='host', or use 'effc run --device qemu'",
        )
    return Runner(
        library,
        manifest,
        threads=int(manifest["threads"]) if threads is None else threads,
        variant=variant,
        weights=weights_beside(library, manifest),
    )
