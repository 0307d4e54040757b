"""Matrix products by constant matrices with zeros, beside dense ones.

    nice -n -15 taskset -c 1 python benchmarks/kernel_matmul.py [MxKxN ...] [--best N]
        [--sparsity 0.5 0.75 0.9] [--block 8x4 16x4 1x1] [--left]
    ... --counter COUNT.PY              AArch64 instructions instead, see ``kernel_conv.py``

Of both templates the ``N`` configurations with the best prediction are run, interleaved with
ONNX Runtime's dense product (one node, one thread, same process); figures are the least of
many. ``first`` is the time of the sparse configuration that would be used without tuning.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from kernel_conv import arm_program, describe, fastest, load, punched
from kernel_misc import Layer, onnx_runtime

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.matmul import MatMulTemplate
from effc.kernels.region import Region, Value
from effc.kernels.sparse_matmul import SparseMatMul
from effc.kernels.template import Config, Template

SHAPES = ("128x768x768", "128x768x3072", "197x384x1536", "1x2048x1000")
Block = tuple[int, int]


def product(shape: str, left: bool) -> Layer:
    """The layer ``[m, k] x [k, n]``, with the constant matrix on the right or on the left."""
    m, k, n = map(int, shape.split("x"))
    return Layer("MatMul", ((m, k),), ((k, n),))


def region_of(layer: Layer, sparsity: float, block: Block, left: bool) -> Region:
    """The layer with random blocks of its weights set to zero."""
    region = layer.region()
    op = region.ops[0]
    x, w = (value for value in op.inputs if value is not None)
    assert w.const is not None
    zeros = punched(w.const.T[:, :, None], sparsity, block)[:, :, 0].T
    weight = np.ascontiguousarray(zeros)
    op = replace(op, inputs=(x, Value(w.name, w.type, weight)))
    return replace(region, ops=(op,), anchor=op)


def best_of(
    template: Template, region: Region, target: Target, best: int
) -> list[tuple[Template, Config, float]]:
    return [(template, c, cost) for c, cost in template.candidates(region, target)[:best]]


def count(template: Template, region: Region, config: Config, target: Target, path: Path) -> float:
    """Executed AArch64 instructions of one run."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = template.build(region, target, config)
        program = arm_program(kernel, region, target, Path(folder))
        command = [sys.executable, str(path), "exe", str(program), "--json"]
        command += ["--runs-a", "1", "--runs-b", "2", "--cpu", "a76"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return float(json.loads(done.stdout)["total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument("--block", nargs="+", default=["8x4", "16x4", "1x1"])
    parser.add_argument("--best", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--all", action="store_true", help="print every configuration")
    parser.add_argument("--counter", type=Path, help="count AArch64 instructions with this script")
    args = parser.parse_args()
    target = get_target("linux-arm64" if args.counter else "host")
    for shape in args.shapes:
        layer = product(shape, False)
        dense = best_of(MatMulTemplate(), layer.region(), target, args.best)
        for text in args.block:
            block = tuple(map(int, text.split("x")))
            for sparsity in args.sparsity:
                region = region_of(layer, sparsity, block, False)
                chosen = dense + best_of(SparseMatMul(), region, target, args.best)
                if args.counter:
                    found = [count(t, region, c, target, args.counter) for t, c, _ in chosen]
                    unit, scale, peer = "M instructions", 1e-6, 0.0
                else:
                    runs = [load(t.build(region, target, c), region, target) for t, c, _ in chosen]
                    peer, *found = fastest([onnx_runtime(layer), *runs], args.rounds)
                    unit, scale = "ms", 1e3
                ours, sparse = found[: len(dense)], found[len(dense) :]
                pick = int(np.argmin(sparse))
                template, config, _ = chosen[len(dense) + pick]
                print(
                    f"{shape:14s} {text:5s} {sparsity:4.0%}  ONNX Runtime {peer * scale:7.3f}"
                    f"  dense {min(ours) * scale:7.3f}  sparse {sparse[pick] * scale:7.3f} {unit}"
                    f"  {min(ours) / sparse[pick]:5.2f}x (first {ours[0] / sparse[0]:5.2f}x)"
                    f"  {describe(template, config)}",
                    flush=True,
                )
                if args.all:
                    for (t, c, cost), value in zip(chosen, found, strict=True):
                        print(f"    {value * scale:8.3f} {unit}  {cost:12.0f}  {describe(t, c)}")


if __name__ == "__main__":
    main()
