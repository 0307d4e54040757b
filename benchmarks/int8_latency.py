"""Latency of 8-bit networks beside ONNX Runtime and OpenVINO in 8 bits, and ONNX Runtime in f32.

    python benchmarks/int8_latency.py MODEL.onnx [MODEL.onnx ...] [--sparse PRUNED.onnx]
                                      [--threads 1] [--tune quick] [--rounds 15]

Each float network is quantized by ``effc compress --quantize int8`` on random normal inputs; the
resulting QDQ file is what all 8-bit engines read. ``--sparse`` adds a pruned float network, of
which only effc makes use. Every round times one inference of each engine in turn, so that a
change of the machine's speed hits all; printed are medians, the least times, and the median over
the rounds of effc's time over each engine's. With one thread the process stays on one core.
Networks with random weights amplify rounding, so artifacts are not verified against f32.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
from latency import Run, interleave, onnxruntime_run, openvino_run, random_inputs

import effc

Inputs = dict[str, np.ndarray]


def quantized(path: Path, inputs: Inputs, samples: int, folder: Path) -> Path:
    """The network as a QDQ model."""
    (shape,) = (array.shape for array in inputs.values())
    data = np.random.default_rng(1).standard_normal((samples, *shape[1:])).astype(np.float32)
    model = effc.compress(path, quantize="int8", calibration={"x": data})
    found = folder / f"{path.stem}.int8.onnx"
    onnx.save(model, found)
    return found


def effc_run(path: Path, inputs: Inputs, args: argparse.Namespace, folder: Path) -> Run:
    """effc's inference of a model."""
    artifact = effc.compile(
        path,
        output=folder / f"{path.stem}-artifact",
        threads=args.threads,
        tune=args.tune,
        tuning_db=args.tuning_db,
        verify=False,
    )
    runner = effc.load(artifact, threads=args.threads)
    return lambda: runner.run(inputs)


def measure(path: Path, args: argparse.Namespace, folder: Path) -> None:
    """Print the figures of one network."""
    inputs = random_inputs(onnx.load(path))
    small = quantized(path, inputs, args.samples, folder)
    runs: dict[str, Run] = {"effc int8": effc_run(small, inputs, args, folder)}
    for pruned in args.sparse:
        file = quantized(pruned, inputs, args.samples, folder)
        runs[f"effc int8 {pruned.stem}"] = effc_run(file, inputs, args, folder)
    runs["ONNX Runtime int8"] = onnxruntime_run(small, inputs, args.threads)
    runs["OpenVINO int8"] = openvino_run(small, inputs, args.threads)
    runs["ONNX Runtime f32"] = onnxruntime_run(path, inputs, args.threads)
    every = os.sched_getaffinity(0)
    if args.threads == 1:
        os.sched_setaffinity(0, {max(every)})
    times = interleave(runs, args.rounds, args.threads)
    os.sched_setaffinity(0, every)
    print(f"{path.stem}, threads {args.threads}")
    ours = times["effc int8"]
    for name, found in times.items():
        ratio = float(np.median(ours / found))
        print(
            f"  {name:28s} median {np.median(found):8.3f} ms  least {found.min():8.3f} ms"
            f"  effc int8 / it {ratio:6.3f} (least {ours.min() / found.min():6.3f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--sparse", type=Path, action="append", default=[])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tune", default="quick")
    parser.add_argument("--tuning-db", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            measure(path, args, Path(folder))


if __name__ == "__main__":
    main()
