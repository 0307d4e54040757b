"""What each phase of a compilation makes, as files: ``effc compile --stop-after PHASE --dump DIR``.

    1-import.onnx         the model with its shapes, as ONNX Runtime runs it for verification
    2-passes.onnx, .json  simplified, and what every pass did
    3-regions.json        groups of operators, in order
    4-kernels.json        template and configuration of each region, functions with their arguments
    4-kernels/NAME.py     each function as TVM script
    5-storage.json        memory plan: where every tensor lies, calls in order
    6-lower/N.o, X.ll     object code, LLVM IR of each version; or C source
    6-lower/bench/NAME    each kernel alone as a program that times itself: NAME --runs 100

Where a later run stops earlier, what older runs left behind that phase stays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effc.devices.target import BASE, Target
from effc.kernels.region import Region, Value
from effc.options import PHASES

if TYPE_CHECKING:
    from effc.functions import Functions
    from effc.imported import Imported
    from effc.program import Program
    from effc.selection import Selected

__all__ = ["Dump", "Stopped"]


class Stopped(Exception):
    """The phase after which to stop has ended; no error."""


class Dump:
    """Writes what phases make, and ends the compilation after one of them.

    Args:
        folder: Made if it is not there; nothing is written if ``None``.
        stop_after: Name of a phase.
    """

    def __init__(self, folder: Path | None, stop_after: str | None) -> None:
        self.folder = folder
        self.stop_after = stop_after

    def imported(self, model: Imported) -> None:
        """The model before and after the passes."""
        import onnx
        import onnx_ir as ir

        if self.folder is not None:
            onnx.save(model.reference, self._path("import", ".onnx"))
        self._end("import")
        if self.folder is not None:
            onnx.save(ir.to_proto(model.model), self._path("passes", ".onnx"))
            self._json("passes", [asdict(record) for record in model.passes])
        self._end("passes")

    def regions(self, regions: Sequence[Region]) -> None:
        """Groups of operators."""
        self._json("regions", [_region(region) for region in regions])
        self._end("regions")

    def kernels(self, selected: Selected, built: Functions) -> None:
        """What computes each region."""
        rows = []
        for region in selected.views.regions:
            choice, kernel = selected.ranked[region.key][0], built.kernels[region.name]
            stages = [
                {
                    "symbol": built.symbols[region.name, number],
                    "args": list(stage.args),
                    "extent": stage.extent,
                    "scratch_bytes": stage.scratch,
                }
                for number, stage in enumerate(kernel.stages)
            ]
            rows.append(
                {
                    "region": region.name,
                    "kernel": choice.template.name,
                    "config": dict(choice.config),
                    "predicted_cycles": choice.cost,
                    "seconds": choice.seconds,
                    "weights": {name: _array(array) for name, array in kernel.weights.items()},
                    "workspaces": dict(kernel.workspaces),
                    "stages": stages,
                }
            )
        self._json("kernels", rows)
        if self.folder is not None:
            for functions in built.functions.values():
                for symbol, stage in functions.items():
                    self._path("kernels", f"/{symbol}.py").write_text(stage.func.script())
        self._end("kernels")

    def storage(self, program: Program) -> None:
        """Where tensors lie, and what is called."""
        calls = [
            {
                "symbol": call.symbol,
                "region": call.region,
                "extent": call.extent,
                "pointers": [
                    f"{p.storage.value}[{p.index}]+{p.offset}"
                    if p.storage.value in ("input", "output")
                    else f"{p.storage.value}+{p.offset}"
                    for p in call.pointers
                ],
            }
            for call in program.calls
        ]
        facts = {
            "arena_bytes": program.arena_bytes,
            "arena_lower_bound_bytes": program.arena_lower_bound_bytes,
            "scratch_bytes": program.scratch_bytes,
            "weights_bytes": program.weights.nbytes,
            "memory": program.metadata["memory"],
            "calls": calls,
        }
        self._json("storage", facts)
        self._end("storage")

    def lowered(self, selected: Selected, built: Functions, files: Mapping[str, bytes]) -> None:
        """Code of all functions, and every kernel as a program of its own."""
        if self.folder is not None:
            for name, content in files.items():
                self._path("lower", f"/{name}").write_bytes(content)
            if selected.target.arch != "c":
                self._intermediate_code(selected.target, built)
            if selected.target.runner_target and not selected.target.bare:
                self._benchmarks(selected)
        self._end("lower")

    def _intermediate_code(self, target: Target, built: Functions) -> None:
        """LLVM's IR, a file for each version of the code."""
        from effc.lower import lower_to_module

        for version, stages in built.functions.items():
            if stages:
                functions = {symbol: stage.func for symbol, stage in stages.items()}
                module = lower_to_module(functions, target.version(version))
                self._path("lower", f"/{version}.ll").write_text(module.inspect_source("ll"))

    def _benchmarks(self, selected: Selected) -> None:
        """One static program per distinct kernel; see ``runtimes/runner/main.c`` for its flags."""
        from effc.functions import lower_functions
        from effc.link import link_runner

        base = selected.target.version(BASE)
        distinct = {region.key: region for region in reversed(selected.views.regions)}
        for region in reversed(distinct.values()):
            program, built = _alone(region, selected, base)
            out = self._path("lower", f"/bench/{region.name}")
            link_runner(program, lower_functions(built, base), base, out)

    def _path(self, phase: str, rest: str) -> Path:
        assert self.folder is not None
        path = Path(f"{self.folder / f'{PHASES.index(phase) + 1}-{phase}'}{rest}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _json(self, phase: str, value: Any) -> None:
        if self.folder is not None:
            text = json.dumps(value, indent=1, default=str)
            self._path(phase, ".json").write_text(text + "\n")

    def _end(self, phase: str) -> None:
        if phase == self.stop_after:
            raise Stopped(phase)


def _alone(region: Region, selected: Selected, base: Target) -> tuple[Program, Functions]:
    """A program that computes one region, from inputs to outputs of its own."""
    from effc.functions import build_functions
    from effc.storage import build_program
    from effc.view_plan import plan_views

    views = plan_views([region], region.inputs, region.outputs)
    chosen = {key: choices[0] for key, choices in selected.ranked.items()}
    built = build_functions(region.name, views.regions, chosen, base)
    program = build_program(
        region.name,
        region.inputs,
        region.outputs,
        views.regions,
        built.kernels,
        built.symbols,
        views,
        base.serial,
    )
    return program, built


def _region(region: Region) -> dict[str, Any]:
    return {
        "name": region.name,
        "anchor": None if region.anchor is None else region.anchor.name,
        "inputs": [_value(value) for value in region.inputs],
        "outputs": [_value(value) for value in region.outputs],
        "ops": [
            {
                "name": op.name,
                "op": f"{op.domain}.{op.op_type}" if op.domain else op.op_type,
                "attributes": {key: _array(value) for key, value in op.attrs.items()},
                "inputs": [None if value is None else _value(value) for value in op.inputs],
                "outputs": [_value(value) for value in op.outputs],
            }
            for op in region.ops
        ],
    }


def _value(value: Value) -> dict[str, Any]:
    constant = {} if value.const is None else {"constant": _array(value.const)}
    return {"name": value.name, "dtype": value.dtype, "shape": list(value.shape), **constant}


def _array(value: Any) -> Any:
    """Small arrays as lists, large ones by shape."""
    if not isinstance(value, np.ndarray):
        return value
    return value.tolist() if value.size <= 16 else f"{value.dtype}{list(value.shape)}"
