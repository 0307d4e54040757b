"""``effc inspect``, ``explain``, ``targets``, ``devices`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effc.cli.arguments import parse_shapes
from effc.cli.console import Console
from effc.errors import ToolError, UsageError
from effc.figures import human_bytes, human_count, human_time

__all__ = [
    "doctor_command",
    "explain_command",
    "inspect_command",
    "targets_command",
]


_LIVE = 6  # tensors that are named


def inspect_command(console: Console, path: Path, shapes: Sequence[str]) -> None:
    """Describe an artifact or a model; which of the two is found out from the file."""
    from effc.inspection import inspect_artifact, inspect_model

    if not path.exists():
        raise UsageError("no such file or folder", where=str(path))
    if path.is_dir() or path.suffix == ".effc":
        from effc.artifact import load_artifact

        facts = inspect_artifact(load_artifact(path).manifest)
        console.result(facts)
        _show_artifact(console, facts)
    else:
        facts = inspect_model(path, parse_shapes(shapes))
        console.result(facts)
        _show_model(console, facts)


def _show_peak(console: Console, facts: Mapping[str, Any]) -> None:
    """How good the memory plan is, and what its largest step consists of."""
    from effc.inspection import plan_quality

    peak = facts["memory_peak"]
    if not peak or not facts["arena_bytes"]:
        return
    console.say(f"memory plan: {plan_quality(facts)}")
    live = [f"{human_bytes(row['bytes'])} {row['name']}" for row in peak["live"][:_LIVE]]
    if len(peak["live"]) > _LIVE:
        live.append(f"{len(peak['live']) - _LIVE} more")
    if peak["shared_bytes"]:
        live.append(f"less {human_bytes(peak['shared_bytes'])} of results over inputs")
    console.say(f"largest step {peak['step']} ({peak['region']}): {'; '.join(live)}")


def _show_artifact(console: Console, facts: Mapping[str, Any]) -> None:
    machine = facts["machine"]
    api = f", API level {machine['android_api']}" if machine["android_api"] else ""
    console.say(
        f"{facts['name']} for {facts['target']} ({facts['abi']}{api}), entry {facts['entry']}"
    )
    console.say(
        f"library {human_bytes(facts['library_bytes'])}: code {human_bytes(facts['code_bytes'])} "
        f"(runtime {human_bytes(facts['runtime_bytes'])}), weights "
        f"{human_bytes(facts['weights_bytes'])}; segments aligned to {facts['segment_alignment']}"
    )
    console.say(
        f"arena {human_bytes(facts['arena_bytes'])}; scratch per thread "
        f"{human_bytes(facts['scratch_bytes_per_thread'])}; {human_count(facts['macs'])} MACs"
    )
    _show_peak(console, facts)
    if facts["flash_bytes"]:
        console.say(
            f"flash {human_bytes(facts['flash_bytes'])}, stack at most "
            f"{human_bytes(facts['stack_bytes'])}"
        )
    if facts["weights_file"]:
        console.say(f"weights in {facts['weights_file']}, for all libraries")
    for entry in facts["further_abis"]:
        console.say(f"further library: {entry['library']} for {entry['target']}")
    for variant in facts["variants"]:
        console.say(
            f"variant {variant['name']}: {variant['functions']} functions of their own for "
            f"processors with {', '.join(variant['features'])}"
        )
    console.say(f"needs {', '.join(facts['needed_libraries']) or 'no library'}")
    _show_ports(console, facts)
    console.table(
        ["layer", "op", "kernel", "MACs", "zeros", "pattern", "output", "config", "nodes"],
        [
            [
                layer["name"],
                layer["op"],
                layer["kernel"],
                human_count(layer["macs"]) if layer["macs"] else "",
                f"{100 * layer['sparsity']:.1f} %" if layer["sparsity"] else "",
                layer["pattern"] if layer["sparsity"] else "",
                _shapes(layer["outputs"]),
                _config(layer["config"]),
                _shortened(layer["nodes"], 3 if not console.verbose else 99),
            ]
            for layer in facts["layers"]
        ],
        right=["MACs", "zeros"],
    )
    verification = facts["verification"]
    if verification is None:
        console.say("not verified (compiled with --no-verify)")
    else:
        worst = min(o["snr_db"] for o in verification["outputs"])
        console.say(
            f"verified on {verification['device']} against {verification['against']}: "
            f"lowest SNR {worst} dB"
        )


def _show_model(console: Console, facts: Mapping[str, Any]) -> None:
    console.say(
        f"ONNX opset {facts['opset']}, {facts['nodes']} nodes, "
        f"{human_count(facts['parameters'])} parameters"
        + (f", made by {facts['producer']}" if facts["producer"] else "")
    )
    _show_ports(console, facts)
    console.table(
        ["operator", "nodes"], facts["operators"].items(), title="operators", right=["nodes"]
    )
    if facts["layers"] is None:
        console.say(f"layers need static shapes: {facts['open']}")
        return
    console.say(f"{human_count(facts['macs'])} multiply-accumulates per inference")
    console.table(
        ["node", "op", "MACs", "zeros", "pattern", "output"],
        [
            [
                layer["name"],
                layer["op"],
                human_count(layer["macs"]) if layer["macs"] else "",
                f"{100 * layer['sparsity']:.1f} %" if layer["sparsity"] else "",
                layer["pattern"] if layer["sparsity"] else "",
                _shapes(layer["outputs"]),
            ]
            for layer in facts["layers"]
            if layer["macs"] or console.verbose
        ],
        right=["MACs", "zeros"],
    )


def _show_ports(console: Console, facts: Mapping[str, Any]) -> None:
    for kind in ("inputs", "outputs"):
        for port in facts[kind]:
            shape = ", ".join(str(d) if d is not None else "?" for d in port["shape"])
            console.say(f"{kind[:-1]} {port['name']}: {port['dtype']} [{shape}]")


def explain_command(console: Console, path: Path, layer: str) -> None:
    """Why a layer got its kernel, and what else there was."""
    from effc.artifact import load_artifact
    from effc.inspection import explain_layer

    facts = explain_layer(load_artifact(path).manifest, layer)
    console.result(facts)
    console.say(f"{facts['name']}: {facts['op']}, nodes {', '.join(facts['nodes'])}")
    console.say(f"inputs {_shapes(facts['inputs'])}; output {_shapes(facts['outputs'])}")
    console.say(
        f"{human_count(facts['macs'])} multiply-accumulates, "
        f"{100 * facts['sparsity']:.1f} % zeros ({facts['pattern']})"
    )
    if facts["units"]:
        shares = ", ".join(f"{share:.1%} in {unit}" for unit, share in facts["units"].items())
        console.say(f"weights that a sparse kernel computes, by unit: {shares}")
    console.say(f"kernel {facts['kernel']} {_config(facts['config'])}: {facts['why']}")
    if facts["alternatives"]:
        console.table(
            ["alternative", "config", "measured", "predicted cycles"],
            [
                [
                    other["kernel"],
                    _config(other["config"]),
                    human_time(other["seconds"]) if other["seconds"] else "",
                    human_count(other["predicted_cycles"]),
                ]
                for other in facts["alternatives"]
            ],
            right=["measured", "predicted cycles"],
        )
    for refused in facts["refused"]:
        console.say(f"not {refused['kernel']}: {refused['why']}")
    for entry in facts["passes"]:
        console.say(f"pass {entry['pass']}: {entry['what']}")


def targets_command(console: Console) -> None:
    """Everything that --target takes."""
    from effc.devices.catalog import list_targets

    entries = list_targets()
    console.result({"targets": [asdict(entry) for entry in entries]})
    console.table(
        ["target", "family", "what"],
        [
            [entry.name, entry.base or "", entry.summary + (f" ({entry.soc})" if entry.soc else "")]
            for entry in entries
        ],
    )


def doctor_command(console: Console) -> None:
    """Check the installation; exit 4 if something required is missing."""
    from effc.doctor import diagnose

    checks = diagnose()
    broken = [check for check in checks if check.required and not check.ok]
    console.result({"ok": not broken, "checks": [asdict(check) for check in checks]})
    console.table(
        ["check", "", "found", "what to do"],
        [
            [c.name, "ok" if c.ok else "MISSING" if c.required else "optional", c.found, c.hint]
            for c in checks
        ],
    )
    if broken:
        console.fail(
            ToolError(
                "effc cannot compile here",
                where=", ".join(check.name for check in broken),
                hint="; ".join(dict.fromkeys(check.hint for check in broken if check.hint)),
            )
        )


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    return " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)


def _config(config: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in config.items())


def _shortened(names: Sequence[str], most: int) -> str:
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text}, +{len(names) - most}"
