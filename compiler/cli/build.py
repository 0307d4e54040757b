"""``effc compile`` and ``effc tune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effc.cli.arguments import parse_constants, parse_shapes, parse_tune
from effc.cli.console import Console, human_bytes, human_count, human_time
from effc.compression.options import CompressOptions
from effc.errors import UsageError
from effc.options import CompileOptions, byte_count

__all__ = ["compile_command", "tune_command"]


def compile_command(
    console: Console,
    model: Path,
    output: Path | None,
    *,
    target: str,
    name: str | None,
    shapes: Sequence[str],
    constants: Sequence[str],
    threads: int,
    tune: str,
    tuning_db: Path | None,
    verify: bool,
    precision: str,
    abis: tuple[str, ...],
    weights: str,
    ram: str | None,
    flash: str | None,
    optimize: str,
    compression: CompressOptions,
) -> None:
    """Compile a model and say what came out."""
    options = CompileOptions(
        target=target,
        name=name,
        shapes=parse_shapes(shapes),
        constants=parse_constants(constants),
        threads=threads,
        tune=parse_tune(tune),
        tuning_db=tuning_db,
        verify=verify,
        precision=precision,
        calibration=compression.calibration if precision != "f32" else None,
        samples=compression.samples,
        abis=abis,
        weights=weights,
        ram=None if ram is None else byte_count(ram, "--ram"),
        flash=None if flash is None else byte_count(flash, "--flash"),
        optimize=optimize,
    )
    _require_file(model)
    if output is None:
        output = _default_output(options, model)

    from effc.artifact import check_output
    from effc.devices.catalog import targets_of

    check_output(output)
    targets_of(target, abis)

    from effc.build import compile_to

    seconds: dict[str, float] = {}
    with console.progress() as progress:
        artifact = compile_to(model, options, output, progress, seconds, compression)
    manifest = artifact.manifest
    console.result(
        {
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
    )
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


def _speed_text(levels: Mapping[str, Any]) -> str:
    """What was reached of ``--speedup`` or ``--latency-ms``."""
    achieved = levels["achieved"]
    text = (
        f"{achieved['ms']:.4g} ms measured, {achieved['speedup']:.3g} times faster than dense "
        f"({achieved['dense_ms']:.4g} ms); the goal was {achieved['goal_ms']:.4g} ms"
    )
    return text if achieved["reached"] else f"{text} and was missed"


def tune_command(
    console: Console,
    model: Path,
    *,
    target: str,
    device: str | None,
    shapes: Sequence[str],
    constants: Sequence[str],
    threads: int,
    tune: str,
    tuning_db: Path | None,
) -> None:
    """Measure into the tuning database without making an artifact."""
    from effc.devices.catalog import get_target

    bare = get_target(target).bare
    if device is not None and (device == "qemu") != bare:
        raise UsageError(
            "this device cannot measure",
            where="--device",
            expected="qemu" if bare else "local, adb[:SERIAL] or ssh:[USER@]HOST[:PORT]",
            got=device,
            hint="times under an emulator say nothing",
        )
    options = CompileOptions(
        target=target,
        shapes=parse_shapes(shapes),
        constants=parse_constants(constants),
        threads=threads,
        tune=parse_tune(tune),
        tuning_db=tuning_db,
    )
    _require_file(model)

    from effc.pipeline import tune_model
    from effc.tuning.database import default_path

    with console.progress() as progress:
        layers, info = tune_model(model, options, progress, device)
    database = str(tuning_db or default_path())
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
    if "not_measured" in info:
        console.note(f"nothing was measured: {info['not_measured']}")


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
