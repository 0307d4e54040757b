"""From a model to an artifact on disk: compress, compile, link, verify, write."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.artifact import Artifact, load_artifact, staging, with_libraries, write_manifest
from effc.compression.options import CompressOptions
from effc.options import CompileOptions, ProgressCallback
from effc.phases import PhaseClock

if TYPE_CHECKING:
    import onnx

    from effc.compiled import CompiledModel, PassRecord
    from effc.compression.levels import LevelPlan
    from effc.samples import Dataset
    from effc.verification import Verification

__all__ = ["compile_to"]

_VERIFIED_SAMPLES = 4
"""Calibration samples that a model is verified on."""

_OVERHEAD_BYTES = 4 << 20
"""Room for code, report, manifest and self-test beside the weights."""


def compile_to(
    model: str | Path | onnx.ModelProto,
    options: CompileOptions,
    output: Path,
    progress: ProgressCallback | None = None,
    seconds: dict[str, float] | None = None,
    compression: CompressOptions | None = None,
) -> Artifact:
    """Compile into ``output``; either the whole artifact appears there or nothing.

    Args:
        model: File, or a model in memory.
        options: What to do.
        output: Folder, or file ending in ``.effc``.
        progress: Called as the phases advance.
        seconds: Receives the wall time of each phase.
        compression: What to do to the model first, if anything.
    """
    from effc.pipeline import compile_models

    if compression is not None and options.calibration is None:
        compression.require_use_of_samples()
    if compression is not None and compression.recipe is not None and options.precision == "f16":
        from effc.compression.recipe import layer_precisions

        options = replace(options, layer_precision=layer_precisions(compression))
    with staging(output) as folder:
        records: tuple[PassRecord, ...] = ()
        levels: LevelPlan | None = None
        if compression is not None and compression.active:
            timing = replace(options, dump=None, stop_after=None)
            compression = replace(compression, timing=timing)
            model, options, records, levels = _compressed(model, options, compression, progress)
        every = compile_models(model, options, progress, levels.hints if levels else None)
        for compiled in every:
            compiled.passes = (*records, *compiled.passes)
        if levels is not None:
            from effc.compression.levels import check_goal

            every[0].levels = check_goal(levels, every[0])
        _write(folder, model, every, progress)
        if seconds is not None:
            seconds.update(every[0].phase_seconds)
    return load_artifact(output)


def _compressed(
    model: str | Path | onnx.ModelProto,
    options: CompileOptions,
    compression: CompressOptions,
    progress: ProgressCallback | None,
) -> tuple[onnx.ModelProto, CompileOptions, tuple[PassRecord, ...], LevelPlan | None]:
    """The compressed model, the options to compile it with, and what was done to it."""
    from effc.compression.workflow import compress_model

    source = Path(model) if isinstance(model, str | Path) else None
    done = compress_model(model, compression, progress)
    left = replace(options, name=options.model_name(source), constants={})
    if done.levels is not None:
        left = replace(left, tune=done.levels.options.tune)
    return done.model, left, done.passes, done.levels


def _write(
    folder: Path,
    model: str | Path | onnx.ModelProto,
    every: Sequence[CompiledModel],
    progress: ProgressCallback | None,
) -> None:
    """Link, verify, and write every file of the artifact into an empty folder.

    Args:
        folder: Empty.
        model: File, or a model in memory.
        every: What was compiled, one per ABI; the first stands for the artifact.
        progress: Called as the phases advance.
    """
    from effc.link import write_weights
    from effc.manifest import build_manifest, library_path, weights_path
    from effc.report import render_report

    first = every[0]
    clock = PhaseClock(progress, first.phase_seconds)
    _require_space(folder, first.program.weights.nbytes * len(every))
    manifests = []
    with clock.phase("link"):
        headers = dict(first.headers)
        for compiled in every:
            library = folder / library_path(compiled)
            library.parent.mkdir(parents=True)
            linked = compiled.link_library(library)
            headers |= linked.headers
            manifests.append(build_manifest(compiled, linked))
        weights = weights_path(first)
        if weights is not None:
            write_weights(first.program, folder / weights)
    include = folder / "include"
    include.mkdir()
    for file, text in headers.items():
        (include / file).write_text(text, encoding="utf-8")
    if first.options.verify and first.target.os != "apple":  # nothing here runs Apple's code
        with clock.phase("verify"):
            for compiled, entry in zip(every, manifests, strict=True):
                golden = folder if compiled is first else None
                entry["verification"] = _verify(folder, model, compiled, entry, golden).describe()
    manifest = with_libraries(manifests)
    (folder / "report.html").write_text(render_report(manifest), encoding="utf-8")
    write_manifest(folder, manifest)


def _require_space(folder: Path, weights: int) -> None:
    """The linker maps its output into memory and dies without a word when the disk is full.

    Raises:
        OSError: There is no room for the library.
    """
    if shutil.disk_usage(folder).free < weights + _OVERHEAD_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def _verify(
    folder: Path,
    model: str | Path | onnx.ModelProto,
    compiled: CompiledModel,
    manifest: Mapping[str, Any],
    golden: Path | None,
) -> Verification:
    """Run a linked library against ONNX Runtime; store golden inputs and outputs in ``golden``.

    Raises:
        QualityError: An output misses its limit.
    """
    from effc.bare.selftest import write_selftest
    from effc.golden import write_golden
    from effc.reference import open_reference, reference_limits
    from effc.verify import verify
    from effc.verify_variants import verify_library

    options = compiled.options
    reference = open_reference(model, options.shapes, options.constants)
    limits = reference_limits(compiled.reference)
    data = _verification_data(options, manifest)
    library = folder / manifest["library"]
    result = verify_library(
        library,
        manifest,
        *(None, None, None),
        lambda opened, run: verify(manifest, run, reference, opened.device, data, limits),
    )
    if not result.ok:
        raise result.failure()
    if golden is not None:
        write_golden(golden, manifest, reference, limits, data.samples[0] if data else None)
        if compiled.target.bare:
            write_selftest(golden, compiled.program, manifest, data.samples[0] if data else None)
    return result


def _verification_data(options: CompileOptions, manifest: Mapping[str, Any]) -> Dataset | None:
    """A few of the calibration samples: what was fitted to them need not hold for any input."""
    from effc.samples import Dataset, Tensor, load_samples

    if options.calibration is None:
        return None
    inputs = [Tensor.of(entry) for entry in manifest["inputs"]]
    samples = load_samples(options.calibration, inputs).samples[:_VERIFIED_SAMPLES]
    return Dataset(samples, count=len(samples))
