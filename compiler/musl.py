"""A static C library for test programs, from the musl sources inside ``ziglang``.

``zig cc`` would compile all of musl on first use, half a minute for each kind of target. The
test programs use a tenth of it (``runtimes/abi/musl.txt``), which takes a few seconds; the
result is kept in the user's cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from effc import zig
from effc.devices.target import Target
from effc.errors import ToolError

__all__ = ["compiler_rt", "runner_objects", "static_libc"]

_FLAGS = (
    "-std=c99",
    "-Os",
    "-ffreestanding",
    "-nostdinc",
    "-D_XOPEN_SOURCE=700",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-strict-aliasing",
    "-frounding-math",
    "-ffunction-sections",
    "-fdata-sections",
    "-w",
)
_ARCH_FLAGS = {"aarch64": ("-mno-outline-atomics",), "arm": ("-march=armv7-a", "-mfpu=vfpv3-d16")}
_RUNNER = ("main.c", "samples.c", "timing.c", "machine.c")


def static_libc(target: Target) -> Path:
    """A folder with ``libc.a`` and ``crt1.o`` for a target.

    Raises:
        ToolError: The toolchain is missing, failed, or holds other sources than expected.
    """
    text = (_runtimes() / "abi" / "musl.txt").read_text("utf-8")
    names = [line for line in text.splitlines() if line and not line.startswith("#")]
    rt = compiler_rt(target)
    flags = _flags(target)

    def build(folder: Path) -> None:
        musl = _musl()
        sources = list(_sources(musl, names, target.arch))
        inner = [musl / "src" / "include", musl / "src" / "internal"]
        crt1 = musl / "crt" / "crt1.c"
        zig.clang_each(flags + _includes(musl, inner, target), [*sources, crt1], folder)
        zigc = folder / "zigc.o"
        zig.build_object("c.zig", target.runner_target, zigc, "-lc", "-O", "ReleaseFast")
        members = [*(folder / f"{source.stem}.o" for source in sources), zigc, rt]
        archive = str(folder / "libc.a")
        zig.run_tool([str(zig.zig_path()), "ar", "rcsD", archive, *map(str, members)])
        for member in members[:-1]:
            member.unlink()

    return zig.cached(("musl", target.runner_target, *flags, text), build)


def runner_objects(target: Target) -> list[Path]:
    """The benchmark program of ``runtimes/runner/``, but for the model, to be linked with it.

    Raises:
        ToolError: The toolchain is missing or failed.
    """
    folders = [_runtimes() / "runner", _runtimes() / "core"]
    sources = [folders[0] / name for name in _RUNNER]
    headers = [folders[0] / "runner.h", folders[1] / "effc.h"]
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-command-line-argument")
    unwanted = ("-w", "-frounding-math")  # for musl, and for its mathematics
    flags = [*(flag for flag in _flags(target) if flag not in unwanted), *warnings]

    def build(folder: Path) -> None:
        zig.clang_each(flags + _includes(_musl(), folders, target), sources, folder)

    texts = [file.read_text("utf-8") for file in (*sources, *headers)]
    folder = zig.cached(("runner", target.runner_target, *flags, *texts), build)
    return [folder / f"{source.stem}.o" for source in sources]


def _flags(target: Target) -> list[str]:
    return [f"--target={target.runner_target}", *_FLAGS, *_ARCH_FLAGS.get(target.arch, ())]


def _musl() -> Path:
    return zig.zig_path().parent / "lib" / "libc" / "musl"


def _runtimes() -> Path:
    return Path(str(resources.files("effc.runtimes")))


def compiler_rt(target: Target, flags: Sequence[str] = ("-fPIC",)) -> Path:
    """LLVM's helper functions for a target as one object."""

    def build(folder: Path) -> None:
        out = folder / "compiler_rt.o"
        zig.build_object("compiler_rt.zig", target.runner_target, out, "-O", "ReleaseFast", *flags)

    folder = zig.cached(("compiler-rt", "no-builtin", target.runner_target, *flags), build)
    return folder / "compiler_rt.o"


def _sources(musl: Path, names: Iterable[str], arch: str) -> Iterable[Path]:
    """Source files by name; the one for the processor where there is one."""
    for name in names:
        if "time32" in name and arch != "arm":
            continue  # 32-bit systems have functions with the old, short times beside the new
        general = musl / "src" / name
        special = general.parent / arch / general.name
        found = [
            path
            for base in (special, general)
            for suffix in (".c", ".s", ".S")
            if (path := base.with_name(base.name + suffix)).exists()
        ]
        if found:
            yield found[0]
        elif not any(general.parent.glob(f"*/{general.name}.*")):
            raise ToolError(
                "the package ziglang holds another musl than expected",
                where=f"{name} below {musl}",
                hint="python -m pip install ziglang==0.17.0",
            )


def _includes(musl: Path, own: Iterable[Path], target: Target) -> list[str]:
    """Header folders of musl as flags, the given ones behind those of the processor."""
    headers = musl.parent / "include"
    folders = [
        musl / "arch" / target.arch,
        musl / "arch" / "generic",
        *own,
        musl / "include",
        headers / f"{target.arch}-linux-musl",
        headers / "generic-musl",
    ]
    return [flag for folder in folders for flag in ("-I", str(folder))]
