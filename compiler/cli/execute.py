"""``effc run``, ``effc verify`` and ``effc bench``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli.console import Console
from effc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from effc.execute import Executor
    from effc.runtimes.loader import BenchStats, LayerTime
    from effc.verify import Execute, Verification

__all__ = ["bench_command", "run_command", "verify_command"]


def run_command(
    console: Console,
    path: Path,
    source: Path,
    output: Path,
    device: str | None,
    threads: int | None,
    variant: str | None,
    abi: str | None,
) -> None:
    """Run an artifact on the samples of a file; stacked samples give stacked outputs."""
    import numpy as np

    from effc.artifact import load_artifact
    from effc.execute import open_executor
    from effc.samples import Tensor, load_inputs

    artifact = load_artifact(path).of_abi(abi)
    data = load_inputs(source, [Tensor.of(entry) for entry in artifact.manifest["inputs"]])
    if not output.absolute().parent.is_dir():
        raise UsageError("the output's folder does not exist", where=f"-o {output}")
    if output.is_dir():
        raise UsageError("in the way: a folder", where=f"-o {output}")
    with (
        open_executor(artifact, device, threads, variant) as executor,
        console.progress() as progress,
    ):
        results = []
        for number, sample in enumerate(data.samples):
            results.append(executor.run(sample))
            if progress is not None:
                progress("run", number + 1, len(data.samples))
        used, version = executor.device, executor.variant
    names = list(results[0])
    if len(results) == 1:
        arrays = results[0]
    else:
        arrays = {n: _stack([r[n] for r in results], data.count) for n in names}
    _save(output, arrays)
    console.result(
        {
            "ok": True,
            "device": used,
            "variant": version,
            "samples": data.count,
            "output": str(output),
            "outputs": [
                {"name": n, "dtype": str(a.dtype), "shape": list(a.shape)}
                for n, a in arrays.items()
            ],
        }
    )
    shapes = ", ".join(f"{n} {a.dtype} {list(np.shape(a))}" for n, a in arrays.items())
    console.say(f"{output}: {shapes}")


def _stack(results: list[np.ndarray], count: int) -> np.ndarray:
    """Outputs of all runs along the batch axis, without the padding of the last batch."""
    import numpy as np

    joined = np.concatenate(results) if results[0].ndim else np.stack(results)
    per_run = results[0].shape[0] if results[0].ndim else 1
    return joined[:count] if len(results) * per_run >= count else joined


def _save(output: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an ``.npz`` in one step: never a half-written file.

    Raises:
        UsageError: The file cannot be written.
    """
    from effc.samples import write_npz

    try:
        with tempfile.TemporaryDirectory(
            prefix=".effc-tmp-", dir=output.absolute().parent
        ) as folder:
            written = Path(folder) / "outputs.npz"
            with written.open("wb") as stream:
                write_npz(stream, arrays)
            written.replace(output)
    except OSError as error:
        raise UsageError(
            f"cannot write the outputs: {(error.strerror or str(error)).lower()}",
            where=f"-o {output}",
        ) from error


def verify_command(
    console: Console,
    path: Path,
    model: Path | None,
    source: Path | None,
    device: str | None,
    threads: int | None,
    variant: str | None,
    abi: str | None,
) -> None:
    """Compare an artifact with its model, or with its own golden outputs."""
    from effc.api import quality_error
    from effc.artifact import load_artifact
    from effc.golden import verify_against_golden
    from effc.samples import Tensor, load_inputs
    from effc.verify import open_reference, reference_limits, verify
    from effc.verify_variants import verify_library

    if model is not None and not model.is_file():
        raise UsageError("no such file", where=str(model), expected="an ONNX model")
    if source is not None and model is None:
        raise UsageError("--input needs --model", hint="golden outputs exist for one input only")
    artifact = load_artifact(path).of_abi(abi)
    manifest = artifact.manifest
    with console.progress() as progress:
        if model is None:

            def check(executor: Executor, run: Execute) -> Verification:
                return verify_against_golden(artifact, run, executor.device)
        else:
            data = None
            if source is not None:
                data = load_inputs(source, [Tensor.of(entry) for entry in manifest["inputs"]])
            options = manifest["options"]
            shapes = {name: tuple(shape) for name, shape in options["shapes"].items()}
            reference = open_reference(model, shapes, options["constants"])
            limits = reference_limits(model)

            def check(executor: Executor, run: Execute) -> Verification:
                return verify(manifest, run, reference, executor.device, data, limits, progress)

        result = verify_library(artifact.library, manifest, device, threads, variant, check)
    description = result.describe()
    console.result(description)
    console.table(
        ["output", "SNR dB", "required", "max abs error", "max rel error", ""],
        [
            [
                o["name"],
                "identical" if o["snr_db"] >= 300 else o["snr_db"],
                _required(o),
                o["max_abs_error"],
                o["max_rel_error"],
                "ok" if o["ok"] else "FAILS",
            ]
            for o in description["outputs"]
        ],
        title=f"{result.samples} sample(s) on {result.device} against {result.against}",
        right=["SNR dB", "required", "max abs error", "max rel error"],
    )
    for version in description["variants"]:
        same = "the same bits" if version["identical"] else f"SNR {version['snr_db']} dB"
        console.say(f"variant {version['name']}: {same}, {'ok' if version['ok'] else 'FAILS'}")
    if result.agreement is not None:
        console.say(
            f"accuracy {_percent(result.accuracy)} (reference "
            f"{_percent(result.reference_accuracy)}), same top-1 class on "
            f"{_percent(result.agreement)} of the samples"
        )
    for note in result.notes:
        console.note(note)
    if not result.ok:
        error = quality_error(result)
        error.hint = None
        console.fail(error)


def _required(output: dict[str, Any]) -> str:
    if output["snr_limit_db"] is not None:
        return str(output["snr_limit_db"])
    return f"within {output['limit_steps']}" if output["limit_steps"] else "exact"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"


def bench_command(
    console: Console,
    path: Path,
    device: str | None,
    *,
    runs: int,
    warmup: int,
    threads: int | None,
    variant: str | None,
    abi: str | None,
    profile: bool,
) -> None:
    """Measure latency, and with ``profile`` the time of each layer."""
    from effc.artifact import load_artifact
    from effc.execute import open_executor

    artifact = load_artifact(path).of_abi(abi)
    with open_executor(artifact, device, threads, variant) as executor:
        console.note(f"measuring {runs} inferences after {warmup} on {executor.device} ...")
        stats = executor.bench(runs, warmup)
        layers = executor.profile(runs, warmup) if profile else ()
        used, version = executor.device, executor.variant
    payload: dict[str, Any] = {
        "latency_ms": {
            "median": stats.median_ms,
            "min": stats.min_ms,
            "p90": stats.p90_ms,
            "p99": stats.p99_ms,
            "mean": stats.mean_ms,
            "std": stats.std_ms,
        },
        "runs": stats.runs,
        "warmup": stats.warmup,
        "threads": stats.threads,
        "device": used,
        "variant": version,
        "emulated": used == "qemu",
    }
    if stats.instructions is not None:
        payload |= _simulated(artifact.manifest, stats.instructions)
    rows = _layer_rows(artifact.manifest, layers)
    if profile:
        payload["per_layer"] = rows
    console.result(payload)
    if stats.instructions is None:
        console.say(_times_text(stats, used, version))
    else:
        console.say(_counts_text(payload))
    if used == "qemu" and stats.instructions is None:
        console.note("times under an emulator say nothing about the real device")
    if profile:
        console.table(
            ["layer", "op", "kernel", "ms", "share", "GMAC/s", "nodes"],
            [
                [
                    row["name"],
                    row["op"],
                    row["kernel"],
                    f"{row['ms']:.4f}",
                    f"{100 * row['share']:.1f} %",
                    f"{row['gmacs']:.1f}" if row["gmacs"] else "",
                    ", ".join(row["nodes"])[:60],
                ]
                for row in rows
            ],
            right=["ms", "share", "GMAC/s"],
        )


def _times_text(stats: BenchStats, device: str, version: str) -> str:
    return (
        f"median {stats.median_ms:.4g} ms, min {stats.min_ms:.4g}, p90 {stats.p90_ms:.4g}, "
        f"p99 {stats.p99_ms:.4g}, mean {stats.mean_ms:.4g}, std {stats.std_ms:.2g} "
        f"({stats.runs} runs, {stats.threads} thread(s), {device}, code {version})"
    )


def _counts_text(payload: dict[str, Any]) -> str:
    per_mac = payload["instructions_per_mac"]
    return (
        f"{payload['instructions']:,} instructions"
        + (f" ({per_mac:.3f} per MAC)" if per_mac else "")
        + f", {payload['latency_ms']['median']:.4g} ms at {payload['clock_mhz']} MHz "
        f"and one cycle each (exact count, {payload['device']})"
    )


def _simulated(manifest: dict[str, Any], instructions: int) -> dict[str, Any]:
    """Counts in place of times: one cycle per instruction, at the target's clock."""
    from effc.devices.catalog import get_target

    macs = manifest["macs"]
    return {
        "simulated": True,
        "instructions": instructions,
        "cycles": instructions,
        "instructions_per_mac": instructions / macs if macs else None,
        "clock_mhz": get_target(manifest["target"]).clock_mhz,
    }


def _layer_rows(manifest: dict[str, Any], layers: tuple[LayerTime, ...]) -> list[dict[str, Any]]:
    known = {layer["name"]: layer for layer in manifest["layers"]}
    total = sum(layer.ms for layer in layers) or 1.0
    rows = []
    for layer in layers:
        about = known.get(layer.name, {})
        macs = about.get("macs", 0)
        rows.append(
            {
                "name": layer.name,
                "op": about.get("op", "copy"),
                "kernel": about.get("kernel", ""),
                "nodes": list(layer.nodes),
                "macs": macs,
                "ms": layer.ms,
                "share": layer.ms / total,
                "gmacs": macs / layer.ms / 1e6 if layer.ms else 0.0,
            }
        )
        if layer.instructions is not None:
            rows[-1]["instructions"] = layer.instructions
    return rows
