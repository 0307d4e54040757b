"""Links stage objects, generated C, weights and the runtime into a library or a test program.

No NDK and no sysroot: undefined C library functions are resolved against stub libraries
made from ``runtimes/abi/symbols.toml``, so a library can only use what the oldest
supported system has, and carries no symbol versions. The result depends on the inputs
alone (no build id, no times, no paths).

A *runner* is the same objects in a static executable, for emulators and benchmarks.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path

from effc import elf, zig
from effc.codegen import exported_symbols, generate_c
from effc.codegen_weights import weights_file, weights_header
from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.musl import compiler_rt, runner_objects, static_libc
from effc.program import Program

__all__ = [
    "ARCH_FLAGS",
    "C_FLAGS",
    "EMULATIONS",
    "STACK_BYTES",
    "WEIGHTS_LIMIT",
    "LinkReport",
    "abi_symbols",
    "library_flags",
    "library_headers",
    "link_library",
    "link_runner",
    "page_flags",
    "write_sources",
    "write_weights",
]

WEIGHTS_LIMIT = 2**31 - 2**26
"""Bytes: code reaches read-only data by 32-bit offsets."""

C_FLAGS = (
    "-std=c11",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fno-stack-protector",
    "-fno-ident",
    "-Wall",
    "-Werror",
)
ARCH_FLAGS = {"aarch64": ("-mno-outline-atomics",)}
# musl's threads take their stack size from the executable; its default is 128 kB.
STACK_BYTES = 8 << 20
EMULATIONS = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux", "arm": "armelf_linux_eabi"}


@dataclass(frozen=True)
class LinkReport:
    """Sizes in bytes and facts of a linked library.

    Attributes:
        path: The library.
        library_bytes: The whole file.
        code_bytes: Machine code: kernels, thunks and runtime.
        runtime_bytes: Code and constants of the runtime (``runtimes/core``).
        weights_bytes: Packed weights.
        needed: Libraries it depends on.
        undefined: Functions it takes from them.
        page_bytes: Alignment of its segments.
        flash_bytes: Read-only memory that it takes on a microcontroller, else 0.
        stack_bytes: Stack of one inference there, at most.
        headers: Headers that say such sizes, text by file name.
    """

    path: Path
    library_bytes: int
    code_bytes: int
    runtime_bytes: int
    weights_bytes: int
    needed: tuple[str, ...]
    undefined: tuple[str, ...]
    page_bytes: int
    flash_bytes: int = 0
    stack_bytes: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


def library_headers(programs: Sequence[Program]) -> dict[str, str]:
    """Headers that a user of a model's libraries includes, one set for all ABIs.

    Sizes of caller-supplied memory are those of the library that needs most.
    """
    first = programs[0]
    widest = replace(
        first,
        arena_bytes=max(program.arena_bytes for program in programs),
        scratch_bytes=max(program.scratch_bytes for program in programs),
    )
    header = f"{first.name}.h"
    headers = {header: generate_c(widest)[header], "effc.h": _core_file("effc.h")}
    if first.weights_in_file:
        headers["effc_weights.h"] = _core_file("effc_weights.h")
    return headers


def write_weights(program: Program, file: Path) -> None:
    """Write the file of weights that the libraries of a model are given."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(weights_header(program))
        stream.write(program.weights.data)


def link_library(
    program: Program, objects: Sequence[bytes | Path], target: Target, out: Path
) -> LinkReport:
    """Link a shared library and check it.

    Args:
        program: What ``run`` does, with the weights.
        objects: ELF objects that define the stage functions.
        target: A Linux or Android target.
        out: File to write; its name becomes the library's SONAME.

    Raises:
        ToolError: The toolchain is missing or failed.
        UnsupportedError: The weights are too large for one library.
        InternalError: An object is for another machine, or the library breaks a rule.
    """
    runtime = _runtime_objects(program, target)
    stubs = _stub_libraries(target)
    with tempfile.TemporaryDirectory(prefix="effc-link-") as folder:
        work = Path(folder)
        parts = [*_model_objects(program, target, work), *_stage_objects(objects, target, work)]
        exported = exported_symbols(program)
        zig.lld(
            [
                *library_flags(target, out, exported, work),
                *map(str, (*parts, *runtime, *stubs)),
                *_compiler_rt(target, [*parts, *runtime]),
            ],
            out,
        )
    facts = elf.check_library(
        out,
        target,
        exported=exported,
        needed=[stub.name for stub in stubs],
        known=_known_functions(),
    )
    return LinkReport(
        path=out,
        library_bytes=facts.file_bytes,
        code_bytes=facts.code_bytes,
        runtime_bytes=sum(elf.loaded_bytes(o) for o in runtime),
        weights_bytes=program.weights.nbytes,
        needed=facts.needed,
        undefined=facts.undefined,
        page_bytes=facts.page_bytes,
    )


def library_flags(target: Target, out: Path, exported: Iterable[str], work: Path) -> list[str]:
    """What every shared library is linked with; ``work`` receives the list of its symbols."""
    script = work / "exports.map"
    script.write_text(f"{{ global: {' '.join(f'{s};' for s in exported)} local: *; }};\n")
    return [
        *("-m", EMULATIONS[target.arch], "-shared", "-soname", out.name),
        *("--version-script", str(script)),
        *("--gc-sections", "--icf=all", "--strip-all", "--build-id=none", "--as-needed"),
        *("--hash-style=both", "--no-undefined", "-O2"),
        *("-z", "noexecstack", "-z", "relro", "-z", "now", "-z", "text"),
        *page_flags(target),
    ]


def link_runner(
    program: Program, objects: Sequence[bytes | Path], target: Target, out: Path
) -> Path:
    """Link a static executable that runs the model, see ``runtimes/runner/main.c``.

    Args:
        program, objects, target: As for ``link_library``.
        out: Executable to write.

    Raises:
        ToolError: The toolchain is missing or failed.
        InternalError: An object is for another machine.
    """
    libc = static_libc(target)
    program = replace(program, weights_in_file=False)
    with tempfile.TemporaryDirectory(prefix="effc-link-") as folder:
        work = Path(folder)
        parts = [*_model_objects(program, target, work), *_stage_objects(objects, target, work)]
        glue = work / "entry.c"
        glue.write_text(_runner_entry(program))
        parts.append(_compile(glue, target, work))
        zig.lld(
            [
                *("-m", EMULATIONS[target.arch], "-static", "--gc-sections", "--strip-debug"),
                *("--build-id=none", "-z", "noexecstack", "-z", f"stack-size={STACK_BYTES}"),
                *page_flags(target),
                *map(str, (libc / "crt1.o", *runner_objects(target), *parts)),
                *map(str, _runtime_objects(program, target)),
                *("--start-group", *map(str, sorted(libc.glob("*.a"))), "--end-group"),
            ],
            out,
        )
    out.chmod(0o755)
    return out


def _runner_entry(program: Program) -> str:
    name = program.name
    return (
        f'#include "{name}.h"\n#include "runner.h"\n'
        f"const effc_entry effc_runner_entry = "
        f"{{{name}_info, {name}_create, {name}_run, {name}_variant, {name}_destroy}};\n"
    )


def _check_weights(program: Program) -> None:
    """Refuse weights beyond what code can reach.

    Raises:
        UnsupportedError: There are too many.
    """
    if program.weights.nbytes > WEIGHTS_LIMIT:
        raise UnsupportedError(
            "the weights do not fit one library",
            where=program.name,
            expected=f"at most {WEIGHTS_LIMIT} bytes",
            got=f"{program.weights.nbytes} bytes",
        )


def write_sources(program: Program, work: Path) -> list[Path]:
    """Write the generated files into ``work``; those of them that are compiled.

    Raises:
        UnsupportedError: The weights do not fit one library.
    """
    _check_weights(program)
    for file, text in generate_c(program).items():
        (work / file).write_text(text, "utf-8")
    sources = [work / f"{program.name}.c"]
    if not program.weights_in_file:
        (work / weights_file(program)).write_bytes(program.weights.data)
        sources.append(work / f"{program.name}_weights.S")
    return sources


def _model_objects(program: Program, target: Target, work: Path) -> list[Path]:
    """Compile the generated files; ``work`` receives them."""
    sources = write_sources(program, work)
    return [_compile(source, target, work) for source in sources]


def _stage_objects(objects: Iterable[bytes | Path], target: Target, work: Path) -> list[Path]:
    paths = []
    for i, item in enumerate(objects):
        elf.check_object(item, target)
        if isinstance(item, bytes):
            path = work / f"stage_{i}.o"
            path.write_bytes(item)
            paths.append(path)
        else:
            paths.append(item.absolute())
    return paths


def _compile(source: Path, target: Target, folder: Path) -> Path:
    """Compile one C or assembly file that lies in ``folder``."""
    out = folder / f"{source.stem}.o"
    flags = () if source.suffix == ".S" else C_FLAGS
    includes = (f"-I{folder}", f"-I{_core_folder()}", f"-I{_runtimes() / 'runner'}")
    zig.clang(
        [
            f"--target={target.clang_target}",
            *flags,
            *ARCH_FLAGS.get(target.arch, ()),
            *includes,
            *("-c", source.name, "-o", out.name),
        ],
        cwd=folder,
    )
    return out


def page_flags(target: Target) -> tuple[str, ...]:
    """16 kB pages on every 64-bit ABI: Android 15 refuses less, others do not mind."""
    page = "4096" if target.arch == "arm" else str(elf.PAGE_BYTES)
    return ("-z", f"max-page-size={page}", "-z", f"common-page-size={page}")


def _runtime_objects(program: Program, target: Target) -> list[Path]:
    """The runtime's objects that a program needs, compiled once per target."""
    code = ("pool.c", "model.c", "processor.c")
    files = (*code, "pool.h", "program.h", "system.h", "effc.h", "processor.h")
    sources = [_core_file(f) for f in files]

    def build(folder: Path) -> None:
        for file, text in zip(files, sources, strict=True):
            (folder / file).write_text(text)
        for file in code:
            _compile(folder / file, target, folder)

    key = ("runtime", target.clang_target, *C_FLAGS, *sources)
    folder = zig.cached(key, build)
    detection = [folder / "processor.o"] if program.variants else []
    return [folder / "model.o", folder / "pool.o", *detection]


def _stub_libraries(target: Target) -> list[Path]:
    """Empty libraries that stand for the target's libc and libm."""
    suffix = ".so" if target.os == "android" else ".so.6"
    lists = abi_symbols()

    def build(folder: Path) -> None:
        for library, symbols in lists.items():
            source = folder / f"{library}.S"
            source.write_text("".join(_stub_function(s) for s in symbols))
            stub = _compile(source, target, folder)
            name = library + suffix
            shared = ("-m", EMULATIONS[target.arch], "-shared", "-soname", name)
            zig.lld([*shared, str(stub)], folder / name)

    text = repr(sorted((k, tuple(v)) for k, v in lists.items()))
    folder = zig.cached(("stubs", target.clang_target, suffix, text), build)
    return [folder / (library + suffix) for library in lists]


def _stub_function(symbol: str) -> str:
    return f".global {symbol}\n.type {symbol}, %function\n{symbol}:\n"


@cache
def abi_symbols() -> dict[str, list[str]]:
    text = resources.files("effc.runtimes").joinpath("abi/symbols.toml").read_text("utf-8")
    return {name: table["symbols"] for name, table in tomllib.loads(text).items()}


def _known_functions() -> set[str]:
    return {symbol for symbols in abi_symbols().values() for symbol in symbols}


def _compiler_rt(target: Target, objects: Sequence[Path]) -> list[str]:
    """Arguments that add LLVM's helper functions, where the objects call any.

    Most libraries need none, and building them takes seconds (once per target).
    """
    tables = [elf.object_symbols(o) for o in objects]
    defined = set().union(*(table[0] for table in tables))
    used = set().union(*(table[1] for table in tables))
    if used <= defined | _known_functions():
        return []

    return ["--start-lib", str(compiler_rt(target)), "--end-lib"]


def _runtimes() -> Path:
    return Path(str(resources.files("effc.runtimes")))


def _core_folder() -> Path:
    return _runtimes() / "core"


def _core_file(name: str) -> str:
    return (_core_folder() / name).read_text("utf-8")
