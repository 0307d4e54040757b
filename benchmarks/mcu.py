"""Models on emulated microcontrollers: instructions, memory, and the same bits as here.

    python benchmarks/mcu.py [--data ../shared/data] [--core cortex-m4 ...] [--model MODEL.onnx ...]
                             [--float] [--optimize balanced|size|speed] [--tune none|N]
                             [--samples 200] [--json FILE]

Without --model: the four int8 networks of MLPerf Tiny below the data folder; with --float those of
float32, for cores with a floating-point unit. Prints per network and
core what ``effc compile`` says (arena, code, weights, bound on the stack), instructions of one
inference counted exactly under QEMU, per multiply-accumulate, and how many samples gave the
bytes that the library for this machine gives, and the largest difference, as a share of the largest
output. Samples are the networks' test data where the folder
has them (CIFAR-10, Speech Commands), else generated ones.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import effc
from effc.errors import DeviceError
from effc.execute import open_board
from effc.samples import Arrays, Tensor, generate

FLOAT_CORES = ("cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
CORES = ("cortex-m0plus", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "riscv32")
COLUMNS = ("instructions", "per_mac", "arena", "code", "weights", "stack", "stack_used")


def samples(path: Path, data: Path, tensors: list[Tensor], count: int) -> Iterator[Arrays]:
    """Inputs of one network."""
    images, keywords = data / "data" / "cifar10_test.npz", data / "data" / "kws01_mfcc_int8.npz"
    if "ic01" in path.stem and tensors[0].dtype == "int8" and images.exists():
        rows = np.load(data / "data" / "cifar10_test_mlperf_ic01_index.npy")[:count]
        pixels = np.load(images)["x"][rows].transpose(0, 2, 3, 1)
        stacked = (pixels.astype(np.int16) - 128).astype(np.int8)
    elif "kws01" in path.stem and tensors[0].dtype == "int8" and keywords.exists():
        stacked = np.load(keywords)["x"][:count]
    else:
        yield from (generate(tensors, seed=seed) for seed in range(count))
        return
    yield from ({tensors[0].name: sample[None]} for sample in stacked)


def measure(path: Path, core: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One network on one core."""
    out = folder / f"{path.stem}-{core}"
    artifact = effc.compile(
        path, target=core, output=out, optimize=args.optimize, tune=args.tune, verify=False
    )
    host = effc.load(effc.compile(path, output=folder / path.stem, verify=False))
    manifest = artifact.manifest
    tensors = [Tensor.of(entry) for entry in manifest["inputs"]]
    equal = total = 0
    worst = 0.0
    with open_board(artifact, None) as board:
        instructions, used = board.count()
        for sample in samples(path, args.data, tensors, args.samples):
            want, got = host.run(sample), board.run(sample)
            equal += all(np.array_equal(want[name], got[name]) for name in want)
            worst = max(worst, *(_difference(got[name], want[name]) for name in want))
            total += 1
    return {
        "model": path.stem,
        "core": core,
        "instructions": instructions,
        "per_mac": instructions / manifest["macs"],
        "macs": manifest["macs"],
        "arena": manifest["arena_bytes"],
        "arena_bound": manifest["arena_lower_bound_bytes"],
        "code": manifest["code_bytes"],
        "weights": manifest["weights_bytes"],
        "flash": manifest["flash_bytes"],
        "stack": manifest["stack_bytes"],
        "stack_used": used,
        "equal": equal,
        "samples": total,
        "worst": worst,
    }


def _difference(got: np.ndarray, want: np.ndarray) -> float:
    exact = want.astype(np.float64)
    return float(np.abs(got - exact).max() / max(np.abs(exact).max(), 1e-30))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--core", action="append", choices=CORES)
    parser.add_argument("--model", action="append", type=Path)
    parser.add_argument("--float", action="store_true")
    parser.add_argument("--optimize", default="balanced")
    parser.add_argument("--tune", type=lambda t: int(t) if t.isdigit() else t, default="none")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kind = "fp32" if args.float else "int8"
    models = args.model or sorted((args.data / "models").glob(f"mlperf_tiny_*_{kind}.onnx"))
    rows = []
    print(f"{'network':36s} {'core':13s}" + "".join(f"{c:>14s}" for c in COLUMNS) + "   same bits")
    for path in models:
        for core in args.core or (FLOAT_CORES if args.float else CORES):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    row = measure(path, core, args, Path(folder))
            except DeviceError as error:  # weights that no memory of the emulated board takes
                print(f"{path.stem:36s} {core:13s}   {error}", flush=True)
                continue
            rows.append(row)
            cells = [f"{row[c]:14.3f}" if c == "per_mac" else f"{row[c]:14,d}" for c in COLUMNS]
            same = f"   {row['equal']} of {row['samples']}, {row['worst']:.1g} off"
            print(f"{row['model']:36s} {core:13s}{''.join(cells)}{same}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
