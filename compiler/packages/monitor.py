"""Firmware that runs a model for ``effc ... --device serial:PORT``: sources, library, Makefile.

As it is, it is for the MPS2 boards (QEMU emulates one). For another board replace
``uart_cmsdk.c`` (the serial port), the addresses in ``board.ld`` and, if it needs clocks set up,
``arm_m.c``.
"""

from __future__ import annotations

from pathlib import Path

from effc.bare.monitor import linker_script, model_source, monitor_sources
from effc.devices.catalog import get_target
from effc.devices.emulated import get_board
from effc.errors import UsageError
from effc.packages.firmware import firmware_of
from effc.packages.package import Package, copy, render, runtime_text, write

__all__ = ["usage", "write_package"]

_WIRE = "uart_cmsdk.c"
_FLAGS = {
    "cortex-m0plus": "-mcpu=cortex-m0plus",
    "cortex-m4": "-mcpu=cortex-m4 -mfpu=fpv4-sp-d16 -mfloat-abi=hard",
    "cortex-m7": "-mcpu=cortex-m7 -mfpu=fpv5-sp-d16 -mfloat-abi=hard",
    "cortex-m33": "-mcpu=cortex-m33 -mfpu=fpv5-sp-d16 -mfloat-abi=hard",
    "cortex-m55": "-mcpu=cortex-m55 -mfloat-abi=hard",
}


def write_package(package: Package, folder: Path) -> None:
    """Write the project.

    Raises:
        UsageError: The artifact is not for a Cortex-M.
    """
    firmware = firmware_of(package, "a monitor")
    target = get_target(package.manifest["target"])
    if target.abi not in _FLAGS:
        raise UsageError(
            "the monitor with a serial port is for Cortex-M boards",
            where=str(package.artifact.path),
            expected=", ".join(_FLAGS),
            got=target.name,
        )
    archive = firmware.archives[target.abi]
    copy(archive, folder / archive.name)
    for file, text in monitor_sources(target, _WIRE).items():
        write(folder / file, text)
    write(folder / "memory.c", runtime_text("bare/memory.c"))
    write(folder / "model.c", model_source(package.manifest))
    write(folder / "board.ld", linker_script(get_board(target.machine)))
    values = {"flags": _FLAGS[target.abi], "library": archive.name, "target": target.name}
    write(folder / "Makefile", render("monitor/Makefile.j2", **values))


def usage(package: Package) -> str:
    """How to use it."""
    return (
        "make -C DIR && flash DIR/monitor.elf   # with the board's own files, see docs/MCU.md\n"
        f"effc bench {package.artifact.path} --device serial:/dev/ttyACM0"
    )
