"""Latency of pruned networks beside the same network dense, and beside peers, in one run.

    python benchmarks/sparse_latency.py MODEL.onnx --levels 0.2,0.5,0.75,0.9 [--block 8x4]
                                        [--pointwise] [--threads 1] [--tune quick] [--rounds 15]

All convolutions but the first get the stated sparsity by magnitude (``--pointwise``: only those
with 1x1 kernels; depthwise ones never), as ``effc compress`` does it with a recipe. Peers run the
dense network: they are no faster on zeros. Every round times one inference of each engine in
turn; printed are medians, and the medians of the per-round ratios to each pruned network. With one
thread the process stays on one core once everything is compiled.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from latency import PEERS, Run, effc_run, interleave, random_inputs

import effc
from effc.inspection import inspect_model


def recipe_of(path: Path, pointwise: bool) -> str:
    """A recipe that prunes all (or all 1x1) convolutions but the first and depthwise ones."""
    model = onnx.load(path)
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    shapes = [weights[n.input[1]] for n in model.graph.node if n.op_type == "Conv"]
    names = [x["name"] for x in inspect_model(path, {})["layers"] if x["op"] == "Conv"]
    text = ""
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        wanted = number > 0 and shape[1] > 1 and (not pointwise or shape[2:] == (1, 1))
        text += f'[[layer]]\nmatch = "{name}"\ndense = {"false" if wanted else "true"}\n'
    return text


def measure(path: Path, args: argparse.Namespace, folder: Path) -> None:
    inputs = random_inputs(onnx.load(path))
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe_of(path, args.pointwise))
    runs: dict[str, Run] = {"dense": effc_run(path, inputs, args, folder)}
    for level in args.levels:
        small = effc.compress(
            path, prune="block-punched", block=args.block, sparsity=level, recipe=recipe
        )
        pruned = folder / f"{path.stem}_{level:.3f}.onnx"
        onnx.save(small, pruned)
        runs[f"{level:.1%}"] = effc_run(pruned, inputs, args, folder)
    for peer in filter(None, args.peers.split(",")):
        runs[peer] = PEERS[peer](path, inputs, args.threads)
    every = os.sched_getaffinity(0)
    if args.threads == 1:
        os.sched_setaffinity(0, {max(every)})
    times = interleave(runs, args.rounds, args.threads)
    os.sched_setaffinity(0, every)
    print(f"{path.stem}, blocks {args.block}, threads {args.threads}")
    for name, values in times.items():
        line = f"  {name:12s} {np.median(values):8.2f} ms"
        if name.endswith("%"):
            others = [other for other in times if not other.endswith("%")]
            line += "".join(
                f"   {other} / it {np.median(times[other] / values):.2f}" for other in others
            )
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument(
        "--levels", type=lambda s: [float(x) for x in s.split(",")], default=[0.5, 0.75, 0.9]
    )
    parser.add_argument("--block", default="8x4")
    parser.add_argument("--pointwise", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tune", default="quick")
    parser.add_argument("--tuning-db", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", default="onnxruntime,openvino")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            measure(path, args, Path(folder))


if __name__ == "__main__":
    main()
