"""From a compiled model to ``manifest.json``: everything about an artifact, as plain data.

Nothing in it depends on when or where it was made: no dates, no paths, no measured
times but those of the tuning database. So equal input, options and database give
equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from effc.bare.codegen import arena_bytes, bare_symbols
from effc.codegen import exported_symbols
from effc.layers import LayerRecord
from effc.program import Port

if TYPE_CHECKING:
    from effc.compiled import CompiledModel
    from effc.link import LinkReport
    from effc.traces import StoredValue

__all__ = ["build_manifest", "library_path", "weights_path"]

_TOOLS = ("apache-tvm", "ziglang", "onnx", "onnx-ir", "onnxruntime", "numpy")


def library_path(compiled: CompiledModel) -> str:
    """Where the library lies in the artifact, or the source that stands for it."""
    if compiled.target.arch == "c":
        return f"src/{compiled.program.name}.c"
    suffix = "a" if compiled.target.os in ("apple", "none") else "so"
    return f"lib/{compiled.target.abi}/lib{compiled.program.name}.{suffix}"


def weights_path(compiled: CompiledModel) -> str | None:
    """Where the weights lie in the artifact, if not in the library."""
    program = compiled.program
    return f"weights/{program.name}.bin" if program.weights_in_file else None


def build_manifest(compiled: CompiledModel, linked: LinkReport) -> dict[str, Any]:
    """The fields of one library but ``schema_version`` and ``files`` (see ``write_manifest``).

    Further libraries of the artifact are listed by ``effc.artifact.with_libraries``; the result of
    ``verification`` is entered when there is one.
    """
    program, target, options = compiled.program, compiled.target, compiled.options
    layers = [_layer(record) for record in compiled.layers]
    return {
        "effc_version": _version("effc"),
        "name": program.name,
        "target": target.name,
        "abi": target.abi,
        "machine": {
            "arch": target.arch,
            "os": target.os,
            "triple": target.triple,
            "cpu": target.cpu,
            "features": list(target.features),
            "android_api": target.android_api or None,
        },
        "variants": [
            {
                "name": variant.name,
                "features": list(variant.features),
                "functions": sum(s.endswith(f"_{variant.name}") for s in variant.symbols.values()),
            }
            for variant in program.variants
        ],
        "library": library_path(compiled),
        "weights_file": weights_path(compiled),
        "entry": f"{program.name}_run",
        "symbols": list(bare_symbols(program) if target.bare else exported_symbols(program)),
        "inputs": [_port(port) for port in program.inputs],
        "outputs": [_port(port) for port in program.outputs],
        "arena_bytes": arena_bytes(program) if target.bare else program.arena_bytes,
        "arena_lower_bound_bytes": program.arena_lower_bound_bytes,
        "scratch_bytes_per_thread": 0 if target.bare else program.scratch_bytes,
        "weights_bytes": linked.weights_bytes,
        "code_bytes": linked.code_bytes,
        "runtime_bytes": linked.runtime_bytes,
        "library_bytes": linked.library_bytes,
        "flash_bytes": linked.flash_bytes,
        "stack_bytes": linked.stack_bytes,
        "needed_libraries": list(linked.needed),
        "undefined_symbols": list(linked.undefined),
        "segment_alignment": linked.page_bytes,
        "macs": sum(record.macs for record in compiled.layers),
        "threads": options.threads,
        "layers": layers,
        "values": [_value(value) for value in compiled.values],
        "steps": [call.region for call in program.calls],
        "passes": [
            {
                "name": p.name,
                "applied": list(p.applied),
                "refused": list(p.refused),
                "settings": dict(p.settings),
            }
            for p in compiled.passes
        ],
        "memory_plan": [
            {"name": b.name, "offset": b.offset, "bytes": b.size, "first": b.first, "last": b.last}
            for b in compiled.blocks
        ],
        "memory_peak": program.metadata.get("peak"),
        "options": {
            "shapes": {name: list(shape) for name, shape in sorted(options.shapes.items())},
            "constants": {name: _plain(v) for name, v in sorted(options.constants.items())},
            "precision": options.precision,
        },
        "tuning": compiled.tuning,
        "levels": compiled.levels or None,
        "source": {"sha256": compiled.source_sha256, "opset": compiled.opset},
        "verification": None,
        "tools": {name: _version(name) for name in _TOOLS},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _port(port: Port) -> dict[str, Any]:
    shape = port.type.shape
    return {
        "name": port.name,
        "dtype": port.type.dtype,
        "shape": list(shape),
        "layout": "row-major",
        "bytes": port.type.nbytes,
        "scale": port.scale,
        "zero_point": port.zero_point,
    }


def _value(value: StoredValue) -> dict[str, Any]:
    place = value.place
    return {
        "name": value.name,
        "onnx": value.onnx,
        "real": value.real,
        "dtype": value.dtype,
        "shape": list(value.shape),
        "layout": value.layout,
        "scale": value.scale,
        "zero_point": value.zero_point,
        "step": value.step,
        "place": [place.storage.value, place.index, place.offset],
    }


def _layer(record: LayerRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "op": record.op,
        "kernel": record.kernel,
        "precision": record.precision,
        "terms": record.terms,
        "macs": record.macs,
        "sparsity": round(record.sparsity, 4),
        "pattern": record.pattern,
        "units": dict(record.units),
        "config": dict(record.config),
        "why": _why(record),
        "seconds": None if record.choice is None else record.choice.seconds,
        "variants": list(record.variants),
        "nodes": list(record.nodes),
        "inputs": [list(shape) for shape in record.inputs],
        "outputs": [list(shape) for shape in record.outputs],
        "reads": list(record.reads),
        "writes": list(record.writes),
        "alternatives": _alternatives(record),
        "refused": [{"kernel": name, "why": why} for name, why in record.refused],
    }


def _why(record: LayerRecord) -> str:
    """One sentence on the choice of the kernel."""
    if record.choice is None:
        return "only gives existing bytes another shape; no code runs"
    if record.kernel == "relax":
        return "no kernel template takes this operator; TVM's own schedule computes it"
    if record.considered == 1:
        return "the only kernel and configuration for this layer"
    if record.choice.seconds is None:
        return (
            f"lowest predicted cost of {record.considered} configurations, none measured"
            + "".join(
                f"; {rival.template.name} is predicted to take "
                f"{rival.cost / max(record.choice.cost, 1e-9):.2f} times as long"
                for rival in record.rivals
            )
        )
    return (
        f"fastest of {record.measured} measured configurations "
        f"({record.considered} are possible): {record.choice.seconds * 1e6:.3g} us"
        + "".join(
            f"; the best {rival.template.name} takes {rival.seconds / record.choice.seconds:.2f} "
            "times as long"
            for rival in record.rivals
            if rival.seconds is not None
        )
    )


def _alternatives(record: LayerRecord) -> Sequence[dict[str, Any]]:
    return [
        {
            "kernel": choice.template.name,
            "config": dict(choice.config),
            "seconds": choice.seconds,
            "predicted_cycles": float(f"{choice.cost:.4g}"),
        }
        for choice in record.alternatives
    ]
