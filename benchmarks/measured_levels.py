"""Top-1 at the same measured latency: levels from measured time against one level for all layers.

    taskset -c 0 python benchmarks/measured_levels.py ../shared/data [--model cifar10_resnet20_fp32]
        [--prune block-punched] [--block 8x4] [--sparsity 0.5 0.6 0.7 0.8] [--samples 1024]

Per uniform sparsity: the network is pruned by Optimal Brain Surgeon with that sparsity in all
inner layers, compiled and measured; then levels are chosen for the same latency, with the same
calibration samples and the same pruning method. Both networks and the dense
one are measured in one run, and classify the test samples in ONNX Runtime. CIFAR-10 networks are
calibrated with images of the training part, others with one half of the labelled samples and judged
by the other.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from pruning_accuracy import folds_of

from effc.compression.options import CompressOptions
from effc.compression.workflow import compress_model
from effc.devices.catalog import get_target
from effc.imported import import_and_simplify
from effc.network_time import network_seconds
from effc.options import CompileOptions
from effc.pipeline import compile_model
from effc.selection import regions_of
from effc.tuning.database import Database, default_path
from effc.tuning.tuner import context_of

BATCH = 250


def top1(model: onnx.ModelProto | Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose highest score is the label's, in percent."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for start in range(0, len(images), BATCH):
        (scores,) = session.run(None, {name: images[start : start + BATCH]})
        right += int((scores.argmax(axis=1) == labels[start : start + BATCH]).sum())
    return 100 * right / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="cifar10_resnet20_fp32")
    parser.add_argument("--prune", default="block-punched")
    parser.add_argument("--block", default=None)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--tune", default="quick")
    parser.add_argument("--tuning-db", type=Path, default=None)
    args = parser.parse_args()
    path = args.folder / "models" / f"{args.model}.onnx"
    fold = folds_of(args.model, args.folder)[0]
    shapes = {onnx.load(path).graph.input[0].name: (1, *fold.x.shape[1:])}
    timing = CompileOptions(shapes=shapes, tune=args.tune, tuning_db=args.tuning_db)
    base = CompressOptions(
        prune=args.prune,
        sparsity=args.sparsity[0],
        block=args.block,
        calibration={"x": fold.calibration[: args.samples]},
        timing=timing,
    )
    regions = regions_of(import_and_simplify(path, timing).model, get_target("host"))
    context = context_of(regions, get_target("host"), 1)
    store = Database(args.tuning_db or default_path())
    dense = compile_model(path, timing)
    (seconds,) = network_seconds([dense], store, context)
    print(f"{args.model}, {args.prune} {args.block or ''}: dense {1e3 * seconds:.4f} ms, ", end="")
    print(f"top-1 {top1(path, fold.x, fold.y):.2f} %")
    print("uniform      ms   top-1 | levels      ms   top-1 |  gain, points   (seconds to choose)")
    for sparsity in args.sparsity:
        uniform = compress_model(path, replace(base, sparsity=sparsity))
        one = compile_model(uniform.model, timing)
        seconds, same = network_seconds([dense, one], store, context)
        start = time.perf_counter()
        levels = compress_model(
            path, replace(base, sparsity=None, speedup=max(seconds / same, 1.0))
        )
        spent = time.perf_counter() - start
        assert levels.levels is not None
        other = compile_model(levels.model, timing, None, levels.levels.hints)
        _, same, own = network_seconds([dense, one, other], store, context)
        accuracy = [top1(result.model, fold.x, fold.y) for result in (uniform, levels)]
        print(
            f"{sparsity:6.0%} {1e3 * same:8.4f} {accuracy[0]:7.2f} | {seconds / own:5.2f}x "
            f"{1e3 * own:8.4f} {accuracy[1]:7.2f} | {accuracy[1] - accuracy[0]:+6.2f}"
            f"{'':14s}{spent:.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
