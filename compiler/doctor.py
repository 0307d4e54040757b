"""What this installation can do, and what to install where it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

__all__ = ["EMULATED", "Check", "diagnose"]

_PACKAGES = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnx-ir": "onnx_ir",
    "onnxruntime": "onnxruntime",
    "apache-tvm": "tvm",
    "apache-tvm-ffi": "tvm_ffi",
    "ziglang": "ziglang",
    "pyelftools": "elftools",
    "scipy": "scipy",
    "highspy": "highspy",
}
# Emulator -> (Debian package, what it is for)
EMULATED = {
    "qemu-aarch64": ("qemu-user", "android, linux-arm64 and boards with 64-bit Arm"),
    "qemu-arm": ("qemu-user", "android-armv7, linux-armv7"),
    "qemu-system-arm": ("qemu-system-arm", "Cortex-M microcontrollers"),
    "qemu-system-riscv32": ("qemu-system-misc", "RISC-V microcontrollers"),
}
_FREE_BYTES = 2 << 30


@dataclass(frozen=True)
class Check:
    """One line of ``effc doctor``.

    Attributes:
        name: What was looked at.
        ok: Whether it is as it should be.
        required: Whether effc cannot compile without it.
        found: What is there.
        hint: What to do when it is not ok.
    """

    name: str
    ok: bool
    required: bool
    found: str
    hint: str = ""


def diagnose() -> list[Check]:
    """All checks, required ones first."""
    return [
        _python(),
        *(_package(name, module) for name, module in _PACKAGES.items()),
        _compiler(),
        _cache(),
        _free_space(),
        *(_emulator(name, *about) for name, about in EMULATED.items()),
        _java(),
        _client("adb", "adb", "--device adb"),
        _client("ssh", "openssh-client", "--device ssh"),
    ]


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, True, platform.python_version(), "" if ok else "use Python 3.11")


def _package(name: str, module: str) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    if version and util.find_spec(module) is not None:
        return Check(name, True, True, version)
    return Check(name, False, True, "missing", "pip install effc again in this environment")


def _compiler() -> Check:
    from effc.errors import EffcError
    from effc.zig import zig_version

    try:
        return Check("C toolchain", True, True, f"zig {zig_version()} (Clang and LLD)")
    except EffcError as error:
        return Check("C toolchain", False, True, error.what, error.hint or "")


def _java() -> Check:
    path = shutil.which("javac")
    hint = "apt-get install default-jdk-headless, to export AAR and Maven packages"
    return Check("javac", path is not None, False, path or "missing", "" if path else hint)


def _client(program: str, package: str, use: str) -> Check:
    path = shutil.which(program)
    hint = "" if path else f"apt-get install {package} (for {use})"
    return Check(program, path is not None, False, path or "missing", hint)


def _cache() -> Check:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "effc"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or "not writable").lower()
        hint = "set XDG_CACHE_HOME to a writable folder"
        return Check("cache folder", False, True, f"{folder}: {reason}", hint)
    return Check("cache folder", True, True, str(folder))


def _free_space() -> Check:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    ok = free >= _FREE_BYTES
    hint = "" if ok else "free at least 2 GB, or set TMPDIR"
    return Check("temporary space", ok, False, f"{free / 1e9:.1f} GB", hint)


def _emulator(name: str, package: str, use: str) -> Check:
    path = shutil.which(name)
    if path is None:
        hint = f"apt-get install {package} (to verify artifacts for {use})"
        return Check(name, False, False, "missing", hint)
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, False, False, str(error), f"reinstall {package}")
    return Check(name, True, False, answer.stdout.splitlines()[0] if answer.stdout else path)
