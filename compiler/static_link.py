"""Static archives for Apple's systems: stage objects, generated C, weights and runtime.

There is no image to link before the app itself is. So all names of the runtime get the model's
prefix: any number of archives fit into one app, made by different versions of effc too. Headers
are those of macOS that come with ``ziglang``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from effc import macho, zig
from effc.codegen import exported_symbols
from effc.devices.target import Target
from effc.errors import InternalError
from effc.link import C_FLAGS, LinkReport, abi_symbols, write_sources
from effc.program import Program

__all__ = ["link_archive"]

_CORE = ("pool.c", "model.c", "processor.c")
_RUNTIME_NAMES = re.compile(r"^[\w ]*[ *](effc_\w+)\(", re.MULTILINE)
# What compilers call on Apple's systems beside the C library's plain names.
_APPLE_FUNCTIONS = (
    *(
        "bzero",
        "__bzero",
        "memset_pattern4",
        "memset_pattern8",
        "memset_pattern16",
        "__sincosf_stret",
    ),
    *("__sincos_stret", "pthread_mutex_init", "pthread_mutex_lock", "pthread_mutex_unlock"),
    *("pthread_mutex_destroy", "pthread_cond_init", "pthread_cond_wait", "pthread_cond_broadcast"),
    "pthread_cond_destroy",
)

_WEAK_HELPERS = ("__extendhfsf2", "__truncsfhf2")
"""TVM adds these conversions to every object; any number of them may be linked."""


def link_archive(
    program: Program, objects: Sequence[bytes | Path], target: Target, out: Path
) -> LinkReport:
    """Make a static archive and check it.

    Args:
        program: What ``run`` does, with the weights.
        objects: Mach-O objects that define the stage functions.
        target: One of Apple's systems.
        out: File to write.

    Raises:
        ToolError: The toolchain is missing or failed.
        UnsupportedError: The weights are too large for one library.
        InternalError: An object is for another system, or breaks a rule.
    """
    with tempfile.TemporaryDirectory(prefix="effc-link-") as folder:
        work = Path(folder)
        runtime = _runtime_objects(program, target, work)
        model = _model_objects(program, target, work)
        stages = []
        for i, item in enumerate(objects):
            stages.append(work / f"{program.name}_stages_{i}.o")
            stages[-1].write_bytes(item if isinstance(item, bytes) else item.read_bytes())
        facts = {o: macho.check_object(o.read_bytes(), target) for o in (*model, *runtime, *stages)}
        undefined = _check_names(program, list(facts.values()))
        members = [path.name for path in facts]
        archive = [str(zig.zig_path()), "ar", "--format=darwin", "rcsD", "archive.a", *members]
        zig.run_tool(archive, cwd=work)
        (work / "archive.a").replace(out)
    return LinkReport(
        path=out,
        library_bytes=out.stat().st_size,
        code_bytes=sum(fact.code_bytes for fact in facts.values()),
        runtime_bytes=sum(facts[path].code_bytes for path in runtime),
        weights_bytes=program.weights.nbytes,
        needed=("libSystem",),
        undefined=tuple(sorted(undefined)),
        page_bytes=0,
    )


def _check_names(program: Program, objects: Sequence[macho.MachObject]) -> set[str]:
    """Check every object's names; the functions that the archive takes from the system.

    Raises:
        InternalError: Two models could clash, or a function is not the C library's.
    """
    exported = set().union(*(o.exported for o in objects))
    private = set().union(*(o.private for o in objects))
    weak = set().union(*(o.weak for o in objects))
    used = set().union(*(o.undefined for o in objects)) - exported - private - weak
    known = {f for functions in abi_symbols().values() for f in functions} | {*_APPLE_FUNCTIONS}
    prefix = f"_{program.name}_"
    stray = {name for name in exported | private if not name.startswith(prefix)}
    stray |= weak - {f"_{name}" for name in _WEAK_HELPERS}
    missing = {f"_{symbol}" for symbol in exported_symbols(program)} - exported
    unknown = {name for name in used if name.removeprefix("_") not in known}
    if stray or missing or unknown:
        raise InternalError(
            "an archive for Apple's systems breaks a rule",
            where=program.name,
            got=f"without the prefix: {sorted(stray)}; not exported: {sorted(missing)}; "
            f"not in the C library: {sorted(unknown)}",
        )
    return {name.removeprefix("_") for name in used}


def _runtime_objects(program: Program, target: Target, work: Path) -> list[Path]:
    """The runtime under names of the model's own."""
    core = Path(str(resources.files("effc.runtimes"))) / "core"
    names = sorted(
        {
            name
            for header in ("program.h", "pool.h", "processor.h")
            for name in _RUNTIME_NAMES.findall((core / header).read_text("utf-8"))
        }
    )
    renames = "".join(f"#define {name} {program.name}_{name}\n" for name in names)
    (work / "renames.h").write_text(renames)
    sources = [core / file for file in _CORE]
    return [_compile(s, target, work, f"{program.name}_{s.stem}.o") for s in sources]


def _model_objects(program: Program, target: Target, work: Path) -> list[Path]:
    """The generated files; ``work`` receives them and holds ``renames.h``."""
    sources = write_sources(program, work)
    return [_compile(source, target, work, f"{source.stem}.o") for source in sources]


def _compile(source: Path, target: Target, work: Path, out: str) -> Path:
    system = zig.zig_path().parent / "lib/libc/include/any-darwin-any"
    core = Path(str(resources.files("effc.runtimes"))) / "core"
    flags = () if source.suffix == ".S" else (*C_FLAGS, "-include", "renames.h")
    includes = (f"-I{work}", f"-I{core}", "-isystem", str(system))
    zig.clang(
        [f"--target={target.clang_target}", *flags, *includes, "-c", str(source), "-o", out],
        cwd=work,
    )
    return work / out
