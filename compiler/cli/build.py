"""``effc compile`` and ``effc tune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effc.cli.console import Console
from effc.compression.options import CompressOptions
from effc.errors import UsageError
from effc.figures import human_bytes, human_count, human_time
from effc.options import CompileOptions

if TYPE_CHECKING:
    from effc.artifact import Artifact

__all__ = ["compile_command", "tune_command"]


def compile_command(
    console: Console,
    model: Path,
    output: Path | None,
    options: CompileOptions,
    compression: CompressOptions,
) -> None:
    """Compile a model and say what came out."""
    from effc.artifact import check_output
    from effc.devices.catalog import targets_of

    _require_file(model)
    targets_of(options.target, options.abis)
    if output is None:
        output = _default_output(options, model)
    check_output(output)

    from effc.build import compile_to
    from effc.dump import Stopped

    seconds: dict[str, float] = {}
    try:
        with console.progress() as progress:
            artifact = compile_to(model, options, output, progress, seconds, compression)
    except Stopped:
        _say_stopped(console, options)
        return
    console.result(_description(artifact, output, seconds))
    manifest = artifact.manifest
    abi_names = ", ".join(entry["abi"] for entry in artifact.libraries)
    console.say(f"{output} for {manifest['target']} ({abi_names})")
    console.say(
        f"  library {human_bytes(manifest['library_bytes'])}, of it weights "
        f"{human_bytes(manifest['weights_bytes'])}; arena {human_bytes(manifest['arena_bytes'])}; "
        f"{human_count(manifest['macs'])} MACs in {len(manifest['steps'])} steps"
    )
    if manifest["flash_bytes"]:
        console.say(
            f"  flash {human_bytes(manifest['flash_bytes'])}, of it code "
            f"{human_bytes(manifest['code_bytes'])}; stack {human_bytes(manifest['stack_bytes'])}"
        )
    console.say(f"  {_verification_text(manifest['verification'])}")
    if manifest["levels"]:
        console.say(f"  {_speed_text(manifest['levels'])}")
    if console.verbose:
        _say_details(console, manifest["passes"], seconds)


def _description(artifact: Artifact, output: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What ``--json`` prints."""
    manifest = artifact.manifest
    return {
        "ok": True,
        "artifact": str(output),
        "name": artifact.name,
        "target": manifest["target"],
        "abi": manifest["abi"],
        "library": manifest["library"],
        "weights_file": manifest["weights_file"],
        "further_abis": [
            {key: entry[key] for key in ("target", "abi", "library")}
            for entry in manifest["further_abis"]
        ],
        "library_bytes": manifest["library_bytes"],
        "weights_bytes": manifest["weights_bytes"],
        "code_bytes": manifest["code_bytes"],
        "arena_bytes": manifest["arena_bytes"],
        "arena_lower_bound_bytes": manifest["arena_lower_bound_bytes"],
        "flash_bytes": manifest["flash_bytes"] or None,
        "stack_bytes": manifest["stack_bytes"] or None,
        "macs": manifest["macs"],
        "layers": len(manifest["layers"]),
        "verification": manifest["verification"],
        "levels": manifest["levels"],
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
    }


def _say_stopped(console: Console, options: CompileOptions) -> None:
    """A compilation has ended where it was asked to."""
    folder = options.dump
    files = [] if folder is None else sorted(p for p in folder.rglob("*") if p.is_file())
    console.result(
        {"ok": True, "stopped_after": options.stop_after, "files": list(map(str, files))}
    )
    console.say(f"stopped after {options.stop_after}" + (f"; see {folder}" if folder else ""))


def _speed_text(levels: Mapping[str, Any]) -> str:
    """What was reached of ``--speedup`` or ``--latency-ms``."""
    achieved = levels["achieved"]
    text = (
        f"{achieved['ms']:.4g} ms measured, {achieved['speedup']:.3g} times faster than dense "
        f"({achieved['dense_ms']:.4g} ms); the goal was {achieved['goal_ms']:.4g} ms"
    )
    return text if achieved["reached"] else f"{text} and was missed"


def tune_command(
    console: Console, model: Path, device: str | None, options: CompileOptions
) -> None:
    """Measure into the tuning database without making an artifact."""
    from effc.devices.catalog import get_target

    bare = get_target(options.target).bare
    if device is not None and (device == "qemu") != bare:
        raise UsageError(
            "this device cannot measure",
            where="--device",
            expected="qemu" if bare else "local, adb[:SERIAL] or ssh:[USER@]HOST[:PORT]",
            got=device,
            hint="microcontrollers are counted in an emulator, others are timed on hardware",
        )
    _require_file(model)

    from effc.pipeline import tune_model
    from effc.tuning.database import default_path

    with console.progress() as progress:
        layers, info = tune_model(model, options, progress, device)
    if "not_measured" in info:
        raise UsageError(
            "nothing can be measured here",
            where=f"--target {options.target}",
            got=info["not_measured"],
            hint="--device adb[:SERIAL] or ssh:[USER@]HOST[:PORT] measures on a device",
        )
    database = str(options.tuning_db or default_path())
    chosen = [(layer, layer.choice) for layer in layers if layer.choice is not None]
    console.result(
        {
            "ok": True,
            "tuning_db": database,
            **info,
            "per_layer": [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "kernel": layer.kernel,
                    "config": layer.config,
                    "seconds": choice.seconds,
                    "measured": layer.measured,
                    "possible": layer.considered,
                }
                for layer, choice in chosen
            ],
        }
    )
    console.table(
        ["layer", "op", "kernel", "time", "measured", "possible"],
        [
            [
                layer.name,
                layer.op,
                layer.kernel,
                human_time(choice.seconds) if choice.seconds else "",
                layer.measured,
                layer.considered,
            ]
            for layer, choice in chosen
        ],
        right=["time", "measured", "possible"],
    )
    console.say(f"tuning database: {database}")


def _require_file(model: Path) -> None:
    if not model.is_file():
        raise UsageError("no such file", where=str(model), expected="an ONNX model")


def _default_output(options: CompileOptions, model: Path) -> Path:
    """``./NAME``, unless that holds an artifact for another target."""
    output = Path(options.model_name(model))
    if (output / "manifest.json").is_file():
        from effc.artifact import load_artifact

        old = load_artifact(output).manifest["target"]
        if old != options.target:
            raise UsageError(
                f"{output} holds an artifact for '{old}'",
                hint=f"choose another place, for example -o {output}-{options.target}",
            )
    return output


def _verification_text(verification: dict[str, object] | None) -> str:
    if verification is None:
        return "not verified"
    outputs = verification["outputs"]
    assert isinstance(outputs, list)
    worst = min(outputs, key=lambda o: float(o["snr_db"]))
    snr = "identical" if worst["snr_db"] >= 300 else f"SNR {worst['snr_db']} dB"
    return f"verified on {verification['device']} against {verification['against']}: {snr}"


def _say_details(
    console: Console, passes: Sequence[dict[str, list[str]]], seconds: dict[str, float]
) -> None:
    for entry in passes:
        for where in entry["applied"]:
            console.note(f"{entry['name']}: applied at {where}")
        for why in entry["refused"]:
            console.note(f"{entry['name']}: refused at {why}")
    for phase, value in seconds.items():
        console.note(f"{phase}: {human_time(value)}")
