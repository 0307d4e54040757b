"""``effc.compile``, ``effc.compress``, ``effc.compare`` and ``effc.load``."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.artifact import Artifact, load_artifact, staging, with_libraries, write_manifest
from effc.compression.options import CompressOptions
from effc.errors import QualityError
from effc.options import CompileOptions, ProgressCallback, byte_count

if TYPE_CHECKING:
    import onnx

    from effc.comparison import Comparison
    from effc.compiled import CompiledModel, PassRecord
    from effc.compression.levels import LevelPlan
    from effc.runtimes.loader import Runner
    from effc.samples import Dataset
    from effc.verify import Verification

__all__ = ["compare", "compile", "compile_to", "compress", "load"]

_VERIFIED_SAMPLES = 4
"""Calibration samples that a model is verified on."""

_OVERHEAD_BYTES = 4 << 20
"""Room for code, report, manifest and self-test beside the weights."""


def compile(
    model: str | Path | onnx.ModelProto,
    target: str = "host",
    output: str | Path | None = None,
    *,
    name: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, Any] | None = None,
    threads: int = 1,
    tune: str | int = "none",
    tuning_db: str | Path | None = None,
    verify: bool = True,
    precision: str = "f32",
    abi: Sequence[str] | None = None,
    weights: str = "embedded",
    ram: int | str | None = None,
    flash: int | str | None = None,
    optimize: str = "balanced",
    prune: str | None = None,
    sparsity: float | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    block: str | None = None,
    method: str | None = None,
    calibration: str | Path | Mapping[str, Any] | None = None,
    samples: int | None = None,
    correct: str | None = None,
    regroup: str | None = None,
    quantize: str | None = None,
    ranges: str | None = None,
    rounding: str | None = None,
    equalize: bool | None = None,
    refine: bool | None = None,
    max_drop: float | None = None,
    widen: str | None = None,
    group: int | None = None,
    recipe: str | Path | None = None,
    work: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Artifact:
    """Compile an ONNX model, compressed first if ``prune``, ``regroup``, ``quantize`` or ``recipe``
    is given.

    Args:
        model: File, or a model in memory.
        target: A name of ``effc targets``.
        output: Folder, or file ending in ``.effc``. Without it the artifact lives in a
            temporary folder for as long as the returned object.
        name: C prefix; derived from the file name if ``None``.
        shapes: Shapes of inputs with dynamic dimensions.
        constants: Inputs to fix to a value.
        threads: Threads to optimise for.
        tune: ``none``, ``quick``, ``full`` or a number of measurements.
        tuning_db: Tuning database file.
        verify: Compare with ONNX Runtime before the artifact is written (a compressed model
            with the compressed ONNX model).
        precision: ``f32`` or ``f16``, see docs/PRECISION.md; with ``calibration`` from what its
            samples show.
        abi: ABIs to make a library for, ``["arm64-v8a", "x86_64"]``; the target's own if ``None``.
        weights: ``embedded`` in the library, or in a ``file`` beside it.
        ram, flash: Bytes that the model may use on a microcontroller, also as ``"64k"``; the
            board's if ``None``.
        optimize: What its code is chosen for: ``balanced``, ``size`` or ``speed``.
        prune, sparsity, speedup, latency_ms, block, method, calibration, samples, correct,
            regroup, quantize, ranges, rounding, equalize, refine, max_drop, widen, group, recipe,
            work: As for :func:`compress`. A missed ``latency_ms`` is an error.
        progress: Called as the phases advance.

    Returns:
        The artifact.

    Raises:
        EffcError: See docs/ERRORS.md; ``QualityError`` when verification fails.
    """
    options = CompileOptions(
        target=target,
        name=name,
        shapes=dict(shapes or {}),
        constants=dict(constants or {}),
        threads=threads,
        tune=tune,
        tuning_db=None if tuning_db is None else Path(tuning_db),
        verify=verify,
        precision=precision,
        calibration=_path(calibration) if precision != "f32" else None,
        samples=samples,
        abis=tuple(abi or ()),
        weights=weights,
        ram=None if ram is None else byte_count(ram, "ram"),
        flash=None if flash is None else byte_count(flash, "flash"),
        optimize=optimize,
    )
    compression = CompressOptions(
        prune=prune,
        sparsity=sparsity,
        speedup=speedup,
        latency_ms=latency_ms,
        block=block,
        method=method,
        calibration=_path(calibration),
        samples=samples,
        correct=correct,
        regroup=regroup,
        quantize=quantize,
        ranges=ranges,
        rounding=rounding,
        equalize=equalize,
        refine=refine,
        max_drop=max_drop,
        widen=widen,
        group=group,
        recipe=None if recipe is None else Path(recipe),
        work=None if work is None else Path(work),
        shapes=options.shapes,
        constants=options.constants,
    )
    if output is not None:
        return compile_to(model, options, Path(output), progress, compression=compression)
    keep = tempfile.TemporaryDirectory(prefix="effc-")
    source = Path(model) if isinstance(model, str | Path) else None
    target_folder = Path(keep.name) / options.model_name(source)
    artifact = compile_to(model, options, target_folder, progress, compression=compression)
    return Artifact(artifact.path, artifact.folder, artifact.manifest, keep)


def compress(
    model: str | Path | onnx.ModelProto,
    *,
    prune: str | None = None,
    sparsity: float | None = None,
    speedup: float | None = None,
    latency_ms: float | None = None,
    block: str | None = None,
    method: str | None = None,
    calibration: str | Path | Mapping[str, Any] | None = None,
    samples: int | None = None,
    correct: str | None = None,
    regroup: str | None = None,
    quantize: str | None = None,
    ranges: str | None = None,
    rounding: str | None = None,
    equalize: bool | None = None,
    refine: bool | None = None,
    max_drop: float | None = None,
    widen: str | None = None,
    group: int | None = None,
    recipe: str | Path | None = None,
    work: str | Path | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, Any] | None = None,
    target: str = "host",
    threads: int = 1,
    tune: str | int = "quick",
    tuning_db: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> onnx.ModelProto:
    """Compress an ONNX model; the result is plain ONNX, see docs/COMPRESSION.md.

    Args:
        model: File, or a model in memory (not changed).
        prune: Scheme: ``block-punched``, ``unstructured``, ``2:4`` (any n:m), ``pattern``.
        sparsity: Fraction of zeros in every pruned layer.
        speedup: Instead of a sparsity: times faster than dense, on the target, by levels per
            layer from measured times.
        latency_ms: Instead of a sparsity: milliseconds of one inference.
        block: Filters x input channels that are pruned together, ``"8x4"``.
        method: ``obs`` or ``magnitude``; by default ``obs`` if there is calibration data.
        calibration: ``.npz`` file or arrays by name: ``x`` stacked samples, or one per input.
        samples: Calibration samples to use at most, by default 1,024.
        correct: ``refit`` (default with data), ``statistics``, ``bias`` or ``none``.
        regroup: Block shape to turn masks made elsewhere into.
        quantize: ``int8``: weights and activations, from calibration data. ``int8-weights``,
            ``int4-weights``: weights alone, for size.
        ranges: How ranges of activations are chosen: ``mse`` (default), ``minmax``,
            ``percentile`` or ``entropy``.
        rounding: How weights are rounded: ``obq`` (by what outputs lose, default) or ``nearest``.
        equalize: Whether channels between two layers are evened out first.
        refine: Whether ranges are then refined by what reading layers make of errors.
        max_drop: Most that quantization may lose, in per cent: operators are widened until no more
            is lost. Measured without labels, see docs/COMPRESSION.md.
        widen: What these have then: ``float`` (default) or ``int16`` values.
        group: With ``int8-weights`` or ``int4-weights``: consecutive weights with one scale; 32 of
            int4 by default, all of a filter of int8.
        recipe: TOML file with these settings and exceptions per layer.
        work: Folder for intermediate results; by default in the user's cache.
        shapes: Shapes of inputs with dynamic dimensions; a free batch stays free by itself.
        constants: Inputs to fix to a value.
        target, threads, tune, tuning_db: What times are measured for and how, as for
            :func:`compile`; only with ``speedup`` or ``latency_ms``.
        progress: Called as the phases advance.

    Raises:
        EffcError: See docs/ERRORS.md.
    """
    from effc.compression.workflow import compress_model

    options = CompressOptions(
        prune=prune,
        sparsity=sparsity,
        speedup=speedup,
        latency_ms=latency_ms,
        block=block,
        method=method,
        calibration=_path(calibration),
        samples=samples,
        correct=correct,
        regroup=regroup,
        quantize=quantize,
        ranges=ranges,
        rounding=rounding,
        equalize=equalize,
        refine=refine,
        max_drop=max_drop,
        widen=widen,
        group=group,
        recipe=None if recipe is None else Path(recipe),
        work=None if work is None else Path(work),
        shapes=dict(shapes or {}),
        constants=dict(constants or {}),
        timing=CompileOptions(
            target=target,
            threads=threads,
            tune=tune,
            tuning_db=None if tuning_db is None else Path(tuning_db),
        ),
    )
    return compress_model(model, options, progress).model


def _path(source: str | Path | Mapping[str, Any] | None) -> Path | Mapping[str, Any] | None:
    return Path(source) if isinstance(source, str) else source


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
            compression = replace(compression, timing=options)
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

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        if progress is not None:
            progress(name, 0, 1)
        start = time.perf_counter()
        yield
        first.phase_seconds[name] = time.perf_counter() - start
        if progress is not None:
            progress(name, 1, 1)

    _require_space(folder, first.program.weights.nbytes * len(every))
    manifests = []
    with phase("link"):
        headers = dict(first.headers)
        for compiled in every:
            library = folder / library_path(compiled)
            library.parent.mkdir(parents=True)
            linked = compiled.link_library(library)
            headers |= linked.headers
            manifests.append(build_manifest(compiled, linked, None))
        weights = weights_path(first)
        if weights is not None:
            write_weights(first.program, folder / weights)
    include = folder / "include"
    include.mkdir()
    for file, text in headers.items():
        (include / file).write_text(text, encoding="utf-8")
    if first.options.verify and first.target.os != "apple":  # nothing here runs Apple's code
        with phase("verify"):
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
    from effc.verify import open_reference, reference_limits, verify
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
        raise quality_error(result)
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


def quality_error(result: Verification) -> QualityError:
    """What to raise for outputs beyond their limit; lists all of them."""
    differing = [v.name for v in result.variants if not v.same_integers]
    if differing:
        return QualityError(
            "versions of the code compute other integers than the first",
            where=f"variant {', '.join(differing)}",
            hint="nothing was written; please report this",
        )
    every = [*result.outputs, *(output for v in result.variants for output in v.outputs)]
    bad = [output for output in every if not output.ok]
    return QualityError(
        "the compiled model does not match the reference",
        where=", ".join(output.name for output in bad),
        expected="; ".join(
            "equal values" if o.limit_db is None else f"SNR >= {o.limit_db:.1f} dB" for o in bad
        ),
        got="; ".join(
            f"{o.mismatches} of {o.elements} elements differ"
            if o.mismatches
            else f"SNR {o.snr_db:.1f} dB, largest error {o.max_abs_error:.3g}"
            for o in bad
        ),
        hint="nothing was written; please report this, or pass --no-verify to look at the result",
    )


def compare(
    model: str | Path | onnx.ModelProto,
    artifact: str | Path | Artifact,
    *,
    inputs: str | Path | Mapping[str, Any] | None = None,
    device: str | None = None,
    variant: str | None = None,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Compare an artifact layer by layer with the float model that it was made from.

    Args:
        model: The float model, not a compressed one.
        artifact: Path of a folder or ``.effc`` file, or what ``compile`` returned.
        inputs: ``.npz`` file or arrays by input name, ``x`` being stacked samples; generated
            inputs if ``None``.
        device: ``local`` or ``qemu``; the natural one if ``None``.
        variant: Version of the code; the best for the processor if ``None``.
        progress: Called after every sample.

    Raises:
        EffcError: See docs/ERRORS.md.
    """
    from effc.comparison import compare_artifact

    opened = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    return compare_artifact(
        Path(model) if isinstance(model, str) else model,
        opened,
        inputs=_path(inputs),
        device=device,
        variant=variant,
        progress=progress,
    )


def load(
    artifact: str | Path | Artifact, *, threads: int | None = None, variant: str | None = None
) -> Runner:
    """Load an artifact into this process.

    An artifact is native code: load only what you trust.

    Args:
        artifact: Path of a folder or ``.effc`` file, or what ``compile`` returned.
        threads: Threads of one inference; the artifact's own number if ``None``.
        variant: Version of the code; the best that this processor runs if ``None``.

    Raises:
        ModelError: The artifact is damaged.
        DeviceError: It was compiled for another machine.
    """
    from effc.execute import open_local

    opened = artifact if isinstance(artifact, Artifact) else load_artifact(artifact)
    return open_local(opened, threads, variant)
