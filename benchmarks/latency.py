"""Latency of effc artifacts beside ONNX Runtime (and OpenVINO), in one process and run.

    python benchmarks/latency.py MODEL.onnx [MODEL.onnx ...] [--threads 1] [--tune quick]
                                 [--rounds 15] [--peers onnxruntime,openvino] [--json FILE]

Every round times one inference of each engine in turn, so a change of the
machine's speed hits all of them. Printed: the median per engine, and the median of the
per-round ratios effc / peer; at the end their geometric mean and maximum. Pin the process
(``taskset -c 1``) for figures worth quoting.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import effc

Run = Callable[[], object]


def random_inputs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Standard normal inputs for a float32 model with static shapes."""
    initializers = {t.name for t in model.graph.initializer}
    generator = np.random.default_rng(0)
    inputs = {}
    for value in model.graph.input:
        if value.name in initializers:
            continue
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        inputs[value.name] = generator.standard_normal(shape).astype(np.float32)
    return inputs


def effc_run(path: Path, inputs: dict[str, np.ndarray], args: argparse.Namespace, out: Path) -> Run:
    artifact = effc.compile(
        path,
        target="host",
        output=out / path.stem,
        threads=args.threads,
        tune=args.tune,
        tuning_db=args.tuning_db,
    )
    runner = effc.load(artifact, threads=args.threads)
    return lambda: runner.run(inputs)


def onnxruntime_run(path: Path, inputs: dict[str, np.ndarray], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino_run(path: Path, inputs: dict[str, np.ndarray], threads: int) -> Run:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer(inputs)


PEERS = {"onnxruntime": onnxruntime_run, "openvino": openvino_run}


def interleave(
    runs: dict[str, Run], rounds: int, threads: int, warmup: int = 3
) -> dict[str, np.ndarray]:
    """Milliseconds per engine and round.

    With more than one thread, every engine's idle workers spin for a while after a run and would
    take a core from the next engine: wait until they sleep, wake the next engine's by a run
    that is not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(warmup + rounds):
        for name, run in runs.items():
            if threads > 1:
                time.sleep(0.1)
                run()
            start = time.perf_counter()
            run()
            elapsed = (time.perf_counter() - start) * 1e3
            if round_number >= warmup:
                times[name].append(elapsed)
    return {name: np.array(values) for name, values in times.items()}


def measure(path: Path, args: argparse.Namespace, out: Path) -> dict[str, float]:
    """Median milliseconds per engine, and ``effc/PEER`` median ratios."""
    inputs = random_inputs(onnx.load(path))
    start = time.perf_counter()
    runs: dict[str, Run] = {"effc": effc_run(path, inputs, args, out)}
    compile_seconds = time.perf_counter() - start
    for peer in args.peers.split(","):
        runs[peer] = PEERS[peer](path, inputs, args.threads)
    times = interleave(runs, args.rounds, args.threads)
    row = {name: float(np.median(values)) for name, values in times.items()}
    row |= {
        f"effc/{peer}": float(np.median(times["effc"] / times[peer]))
        for peer in args.peers.split(",")
    }
    row["compile_s"] = compile_seconds
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tune", default="quick")
    parser.add_argument("--tuning-db", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peers", default="onnxruntime,openvino")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            rows[path.stem] = measure(path, args, Path(folder))
            cells = "  ".join(f"{k} {v:.3f}" for k, v in rows[path.stem].items())
            print(f"{path.stem:16s} threads={args.threads}  {cells}", flush=True)
    for peer in args.peers.split(","):
        ratios = np.array([row[f"effc/{peer}"] for row in rows.values()])
        mean = float(np.exp(np.log(ratios).mean()))
        print(f"effc/{peer}: geometric mean {mean:.3f}, worst {ratios.max():.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
