"""``effc run`` and ``effc verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli.console import Console
from effc.cli.files import check_output_file, output_file
from effc.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from effc.execute import Executor
    from effc.verification import Verification
    from effc.verify import Execute

__all__ = ["run_command", "verify_command"]


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
    from effc.executors import run_all
    from effc.samples import Tensor, load_inputs, write_npz

    artifact = load_artifact(path).of_abi(abi)
    data = load_inputs(source, [Tensor.of(entry) for entry in artifact.manifest["inputs"]])
    check_output_file(output, "-o")
    with (
        open_executor(artifact, device, threads, variant) as executor,
        console.progress() as progress,
    ):
        results = []
        for number, outputs in enumerate(run_all(executor, data.samples)):
            results.append(dict(outputs))
            if progress is not None:
                progress("run", number + 1, len(data.samples))
        used, version = executor.device, executor.variant
    names = list(results[0])
    if len(results) == 1:
        arrays = results[0]
    else:
        arrays = {n: _stack([r[n] for r in results], data.count) for n in names}
    with output_file(output, "-o") as file, file.open("wb") as stream:
        write_npz(stream, arrays)
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
    from effc.artifact import load_artifact
    from effc.golden import verify_against_golden
    from effc.reference import open_reference, reference_limits
    from effc.samples import Tensor, load_inputs
    from effc.verify import verify
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
    _say_verification(console, result)
    if not result.ok:
        error = result.failure()
        error.hint = None
        console.fail(error)


def _say_verification(console: Console, result: Verification) -> None:
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


def _required(output: dict[str, Any]) -> str:
    if output["snr_limit_db"] is not None:
        return str(output["snr_limit_db"])
    return f"within {output['limit_steps']}" if output["limit_steps"] else "exact"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.2f} %"
