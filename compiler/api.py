"""``effc.compile``, ``effc.compress``, ``effc.compare`` and ``effc.load``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from effc.artifact import Artifact, load_artifact
from effc.compression.options import CompressionArguments, CompressOptions
from effc.options import CompileOptions, ProgressCallback, byte_count

if TYPE_CHECKING:
    import onnx

    from effc.comparison import Comparison
    from effc.runtimes.loader import Runner

__all__ = ["compare", "compile", "compress", "load"]


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
    progress: ProgressCallback | None = None,
    **compression: Unpack[CompressionArguments],
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
        progress: Called as the phases advance.
        **compression: As for :func:`compress`. A missed ``latency_ms`` is an error.

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
        calibration=_path(compression.get("calibration")) if precision != "f32" else None,
        samples=compression.get("samples"),
        abis=tuple(abi or ()),
        weights=weights,
        ram=None if ram is None else byte_count(ram, "ram"),
        flash=None if flash is None else byte_count(flash, "flash"),
        optimize=optimize,
    )
    compress_options = _compress_options(
        compression, shapes=options.shapes, constants=options.constants
    )
    from effc.build import compile_to

    if output is not None:
        return compile_to(model, options, Path(output), progress, compression=compress_options)
    keep = tempfile.TemporaryDirectory(prefix="effc-")
    source = Path(model) if isinstance(model, str | Path) else None
    target_folder = Path(keep.name) / options.model_name(source)
    artifact = compile_to(model, options, target_folder, progress, compression=compress_options)
    return Artifact(artifact.path, artifact.folder, artifact.manifest, keep)


def compress(
    model: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    constants: Mapping[str, Any] | None = None,
    target: str = "host",
    threads: int = 1,
    tune: str | int = "quick",
    tuning_db: str | Path | None = None,
    progress: ProgressCallback | None = None,
    **compression: Unpack[CompressionArguments],
) -> onnx.ModelProto:
    """Compress an ONNX model; the result is plain ONNX, see docs/COMPRESSION.md.

    Args:
        model: File, or a model in memory (not changed).
        shapes: Shapes of inputs with dynamic dimensions; a free batch stays free by itself.
        constants: Inputs to fix to a value.
        target, threads, tune, tuning_db: What times are measured for and how, as for
            :func:`compile`; only with ``speedup`` or ``latency_ms``.
        progress: Called as the phases advance.
        **compression: What to do.

    Keyword arguments for ``compression``:
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

    Raises:
        EffcError: See docs/ERRORS.md.
    """
    from effc.compression.workflow import compress_model

    options = _compress_options(
        compression,
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


def _compress_options(given: CompressionArguments, **others: Any) -> CompressOptions:
    every: dict[str, Any] = {**given, **others}
    paths = {key: _path(every.get(key)) for key in ("calibration", "recipe", "work")}
    return CompressOptions(**every | paths)


def _path(source: str | Path | Mapping[str, Any] | None) -> Path | Mapping[str, Any] | None:
    return Path(source) if isinstance(source, str) else source


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
