"""From an ONNX model to a compiled model, phase by phase.

Each phase is one function here, and hands the next one plain data; what is
inside a phase lives in the module that the phase calls (docs/ARCHITECTURE.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from effc.bare.archive import link_bare
from effc.bare.budget import check_flash, check_ram, ram_missing
from effc.compiled import Block, CompiledModel, PassRecord
from effc.devices.address import parse_device
from effc.devices.catalog import get_target, targets_of
from effc.devices.target import BASE, Target
from effc.dump import Dump
from effc.errors import UnsupportedError, UsageError
from effc.functions import Functions, build_functions, code_variants, lower_functions
from effc.imported import import_and_simplify
from effc.kernels.region import Region
from effc.layers import LayerRecord
from effc.link import LinkReport, library_headers, link_library, link_runner
from effc.memory_plan import align_up
from effc.options import CompileOptions, ProgressCallback
from effc.phases import PhaseClock
from effc.program import Program, StorageClass
from effc.selection import Selected, choose_kernels, layer_records
from effc.sharing import align_packings, share_weights
from effc.static_link import link_archive
from effc.traces import graded_ports, stored_values

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from effc.tuning.testbed import AnyTestbed
    from effc.tuning.tuner import Hints

__all__ = ["compile_model", "compile_models", "tune_model"]


def compile_model(
    source: str | Path | onnx.ModelProto,
    options: CompileOptions,
    progress: ProgressCallback | None = None,
    hints: Hints | None = None,
) -> CompiledModel:
    """Compile a model for one target; nothing is written to disk.

    Args:
        source: ONNX file or model.
        options: What to compile for.
        progress: Called as the phases advance.
        hints: Kernels that are likely to be good, see ``effc.tuning.tuner.tune``.

    Returns:
        Objects and records, ready to be linked, verified and stored.

    Raises:
        ModelError: The model is invalid.
        UnsupportedError: Operators that no kernel can compute, all of them.
        UsageError: Unknown target, or shapes that do not fit the model.
    """
    return compile_models(source, replace(options, abis=()), progress, hints)[0]


def compile_models(
    source: str | Path | onnx.ModelProto,
    options: CompileOptions,
    progress: ProgressCallback | None = None,
    hints: Hints | None = None,
) -> tuple[CompiledModel, ...]:
    """Compile a model for every ABI of ``options``; otherwise as :func:`compile_model`."""
    clock = PhaseClock(progress, dump=Dump(options.dump, options.stop_after))
    targets = tuple(
        replace(target, optimize=options.optimize)
        for target in targets_of(options.target, options.abis)
    )
    for target in targets:
        _check_options(target, options)
    selected = [
        _select(
            source,
            target,
            replace(options, target=target.name),
            clock,
            hints if target.name == options.target else None,
        )
        for target in targets
    ]
    if options.weights == "file":
        with clock.phase("kernels"):
            align_packings(
                [s.views.regions for s in selected], [s.ranked for s in selected], targets
            )
    path = Path(source) if isinstance(source, (str, Path)) else None
    parts = [_program(options.model_name(path), s, clock) for s in selected]
    if targets[0].bare:
        selected, parts = _fitted(selected[0], parts[0], clock)
    programs = [program for program, _ in parts]
    if options.weights == "file":
        share_weights(programs)
        for program in programs:
            program.weights_in_file = True
    headers = {} if targets[0].bare else library_headers(programs)
    return tuple(
        _compiled(chosen, program, built, options, headers, clock)
        for chosen, (program, built) in zip(selected, parts, strict=True)
    )


def _select(
    source: str | Path | onnx.ModelProto,
    target: Target,
    options: CompileOptions,
    clock: PhaseClock,
    hints: Hints | None = None,
    testbed: AnyTestbed | None = None,
) -> Selected:
    """From the model to the choices per distinct region."""
    with clock.phase("import"):
        imported = import_and_simplify(source, options)
        if options.precision == "f16":
            from effc.half_precision import use_half_precision

            done = use_half_precision(
                imported.model,
                target,
                options,
                lambda done, total, detail: clock.report("calibrate", done, total, detail),
            )
            imported = replace(imported, passes=(*imported.passes, done))
    clock.dump.imported(imported)
    return choose_kernels(imported, target, options, clock, hints, testbed)


def _check_options(target: Target, options: CompileOptions) -> None:
    """Refuse options that mean nothing for a target.

    Raises:
        UsageError: One of them is given.
    """
    refused = {
        "--ram": options.ram is not None and not target.bare,
        "--flash": options.flash is not None and not target.bare,
        "--optimize": options.optimize != "balanced" and not target.bare,
        "--weights file": options.weights == "file" and target.bare,
        "--threads": options.threads > 1 and target.bare,
        "--abi": len(options.abis) > 1 and target.bare,
    }
    for where, wrong in refused.items():
        if wrong:
            kind = "a microcontroller" if target.bare else "a target with an operating system"
            raise UsageError(f"this option does not go with {kind}", where=where, got=target.name)


def _program(name: str, selected: Selected, clock: PhaseClock) -> tuple[Program, Functions]:
    """The program of one target, and its functions."""
    from effc.storage import build_program

    graph, views = selected.graph, selected.views
    chosen = {key: choices[0] for key, choices in selected.ranked.items()}
    with clock.phase("kernels"):
        built = build_functions(name, views.regions, chosen, selected.target)
    clock.dump.kernels(selected, built)
    with clock.phase("storage"):
        program = build_program(
            built.name,
            graph.inputs,
            graph.outputs,
            views.regions,
            built.kernels,
            built.symbols,
            views,
            selected.target.serial,
        )
        program.variants = code_variants(built, selected.target)
        program.scratch_bytes = max(program.scratch_bytes, align_up(built.scratch_bytes, 64))
    clock.dump.storage(program)
    return program, built


def _fitted(
    selected: Selected, whole: tuple[Program, Functions], clock: PhaseClock
) -> tuple[list[Selected], list[tuple[Program, Functions]]]:
    """The first stages in strips of rows, if the model does not fit a microcontroller otherwise.

    Raises:
        QualityError: It does not fit in strips either.
    """
    from effc.fit import StripChoice, fit_in_strips

    target, options = selected.target, selected.options
    missing = ram_missing(whole[0], target, options)
    if missing <= 0:
        return [selected], [whole]

    def plan(
        model: ir.Model, choice: StripChoice
    ) -> tuple[tuple[Selected, tuple[Program, Functions]], int]:
        done = PassRecord("split_into_strips", (str(choice),))
        passes = (*selected.imported.passes, done)
        imported = replace(selected.imported, model=model, passes=passes)
        chosen = choose_kernels(imported, target, options, clock)
        part = _program(whole[0].name, chosen, clock)
        return (chosen, part), part[0].arena_bytes

    limit = whole[0].arena_bytes - missing
    found, choice = fit_in_strips(selected.imported.model, limit, plan)
    if found is None:
        check_ram(whole[0], target, options, strips="no cut" if choice is None else str(choice))
        return [selected], [whole]  # without room for the stack, whose size linking will tell
    return [found[0]], [found[1]]


def _compiled(
    selected: Selected,
    program: Program,
    built: Functions,
    options: CompileOptions,
    headers: dict[str, str],
    clock: PhaseClock,
) -> CompiledModel:
    """Object code, and the records."""
    imported, target = selected.imported, selected.target
    ordered = cast("tuple[Region, ...]", program.metadata["regions"])
    views = replace(selected.views, regions=ordered)
    with clock.phase("lower"):
        link, runner, files = _linkers(program, built, target)
    clock.dump.lowered(selected, built, files)
    values = stored_values(selected.graph, views, program, imported.reference)
    program.inputs = graded_ports(program.inputs, StorageClass.INPUT, values)
    program.outputs = graded_ports(program.outputs, StorageClass.OUTPUT, values)
    return CompiledModel(
        program=program,
        target=target,
        options=options,
        layers=layer_records(selected, ordered),
        headers=headers,
        link_library=lambda out: _within_budget(program, target, options, link(out)),
        link_runner=runner,
        reference=imported.reference,
        passes=imported.passes,
        blocks=_blocks(program),
        phase_seconds=clock.seconds,
        source_sha256=imported.sha256,
        tuning=selected.tuning,
        opset=imported.opset,
        values=values,
    )


def _linkers(
    program: Program, built: Functions, target: Target
) -> tuple[Callable[[Path], LinkReport], Callable[[Path], object], dict[str, bytes]]:
    """Generate code; what writes a library at a path, what writes a test program, and the code."""
    if target.arch == "c":
        from effc.c_source.library import link_source
        from effc.c_source.module import print_stages

        layers = {c.symbol: f"{c.region} (nodes {', '.join(c.nodes)})" for c in program.calls}
        kernels = print_stages(built.functions[BASE], layers)
        files = {f"{s}.c": text.encode() for s, text in kernels.functions.items()}
        return (lambda out: link_source(program, kernels, out)), _no_runner, files
    objects = lower_functions(built, target)
    link = {"apple": link_archive, "none": link_bare}.get(target.os, link_library)
    return (
        lambda out: link(program, objects, target, out),
        lambda out: link_runner(program, objects, target, out),
        {f"{number}.o": code for number, code in enumerate(objects)},
    )


def _no_runner(out: Path) -> object:
    raise UnsupportedError("C source has no test program of its own", where=str(out))


def _within_budget(
    program: Program, target: Target, options: CompileOptions, linked: LinkReport
) -> LinkReport:
    """Refuse a library that does not fit a microcontroller.

    Raises:
        QualityError: It does not; with what takes the memory.
    """
    check_ram(program, target, options, linked.stack_bytes)
    check_flash(program, linked.code_bytes, linked.flash_bytes, target, options)
    return linked


def tune_model(
    source: str | Path | onnx.ModelProto,
    options: CompileOptions,
    progress: ProgressCallback | None = None,
    device: str | None = None,
) -> tuple[tuple[LayerRecord, ...], dict[str, Any]]:
    """Measure configurations for a model's layers into the tuning database.

    Args:
        source: ONNX file or model.
        options: What to tune for, and how long.
        progress: Called as the phases advance.
        device: What measures, as ``--device`` takes it; this machine if ``None``.

    Returns:
        The layers with their choices, and what the tuner did.

    Raises:
        EffcError: As :func:`compile_model`.
    """
    from effc.tuning.testbed import open_testbed

    target = replace(get_target(options.target), optimize=options.optimize)
    with contextlib.closing(open_testbed(parse_device(device or "local"), target)) as testbed:
        chosen = _select(source, target, options, PhaseClock(progress), testbed=testbed)
    return layer_records(chosen, chosen.views.regions), chosen.tuning


def _blocks(program: Program) -> tuple[Block, ...]:
    memory = cast("list[dict[str, Any]]", program.metadata["memory"])
    return tuple(
        Block(row["name"], row["offset"], row["bytes"], row["first"], row["last"]) for row in memory
    )
