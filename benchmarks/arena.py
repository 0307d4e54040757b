"""Arena of networks on a microcontroller: whole, its proofs, and what strips of rows bring.

    python benchmarks/arena.py [--data ../shared/data] [--core cortex-m4] [--model MODEL.onnx ...]

Without --model: the four int8 networks of MLPerf Tiny below the data folder. The first row of a
network is its plan as it is; the others are plans with the first stages in strips, each the one
with the least work that is smaller than the one before by a kilobyte or more. Bytes are exact,
nothing is run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from effc.errors import QualityError
from effc.options import CompileOptions
from effc.pipeline import compile_model
from effc.program import Program


def row(path: Path, program: Program, macs: int) -> str:
    """A line of the table."""
    peak = cast("dict[str, Any]", program.metadata["peak"])
    bound = program.arena_lower_bound_bytes
    proof = "optimal" if peak["optimal"] else "order" if peak["order_proven"] else "-"
    return f"{path.stem:36s}{program.arena_bytes:10,d}{bound:10,d}  {proof:8s}{macs:14,d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--core", default="cortex-m4")
    parser.add_argument("--model", action="append", type=Path)
    args = parser.parse_args()
    models = args.model or sorted((args.data / "models").glob("mlperf_tiny_*_int8.onnx"))
    print(f"{'network':36s}{'arena':>10s}{'bound':>10s}  {'proven':8s}{'MACs':>14s}  strips")
    for path in models:
        options = CompileOptions(target=args.core, tune="none", ram=1 << 30)
        while True:
            try:
                made = compile_model(path, options)
            except QualityError:
                break
            program = made.program
            strips = [p.applied[0] for p in made.passes if p.name == "split_into_strips"]
            macs = sum(layer.macs for layer in made.layers)
            what = strips[0].rsplit(": ", 1)[1] if strips else "whole"
            print(f"{row(path, program, macs)}  {what}", flush=True)
            ports = sum(p.type.nbytes for p in (*program.inputs, *program.outputs))
            options = replace(options, ram=ports + program.arena_bytes - 16)


if __name__ == "__main__":
    main()
