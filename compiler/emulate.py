"""The loader: a small static program that runs a finished library, also under an emulator.

One program serves all models of an architecture (``runtimes/runner/load.c``); it is built
once with zig's musl and kept in the user's cache.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from effc import zig
from effc.devices.target import Target
from effc.link import EMULATIONS, STACK_BYTES, abi_symbols, page_flags
from effc.musl import runner_objects, static_libc

__all__ = ["loader_program"]


def loader_program(target: Target) -> Path:
    """The loader for a target's architecture and calling convention.

    Raises:
        ToolError: The toolchain is missing or failed.
    """
    libc, program = static_libc(target), runner_objects(target)
    runtimes = Path(str(resources.files("effc.runtimes")))
    source = runtimes / "runner" / "load.c"
    table = _function_table()

    def build(folder: Path) -> None:
        (folder / "functions.c").write_text(table)
        common = [str(zig.zig_path()), "cc", "-target", target.runner_target, "-O2", "-std=gnu11"]
        includes = [f"-I{runtimes / 'runner'}", f"-I{runtimes / 'core'}"]
        for file in (source, folder / "functions.c"):
            zig.run_tool(
                [
                    *(*common, *includes, "-fno-sanitize=undefined", "-fno-builtin"),
                    *("-c", str(file), "-o", str(folder / f"{file.stem}.o")),
                ]
            )
        objects = [folder / "load.o", folder / "functions.o", libc / "crt1.o", *program]
        zig.lld(
            [
                *("-m", EMULATIONS[target.arch], "-static", "--gc-sections", "--strip-all"),
                *("--build-id=none", "-z", "noexecstack", "-z", f"stack-size={STACK_BYTES}"),
                *page_flags(target),
                *map(str, objects),
                *("--start-group", *map(str, sorted(libc.glob("*.a"))), "--end-group"),
            ],
            folder / "loader",
        )

    parts = (str(libc), *map(str, program), source.read_text(), table)
    key = ("loader", str(STACK_BYTES), target.runner_target, *page_flags(target), *parts)
    return zig.cached(key, build) / "loader"


def _function_table() -> str:
    """C source of ``effc_functions``, see load.c.

    The functions are named by assembler labels: no header, so neither a prototype to
    contradict nor a redirection to another version of the function.
    """
    names = sorted({name for names in abi_symbols().values() for name in names})
    declared = "".join(
        f'extern const char symbol_{i}[] __asm__("{name}");\n' for i, name in enumerate(names)
    )
    entries = "".join(f'    {{"{name}", symbol_{i}}},\n' for i, name in enumerate(names))
    return (
        "struct effc_function {\n    const char *name;\n    const void *address;\n};\n"
        f"{declared}const struct effc_function effc_functions[] = {{\n{entries}    {{0, 0}},\n}};\n"
    )
