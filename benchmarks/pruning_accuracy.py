"""Top-1 of pruned classifiers, without labels and without training: schemes, levels, methods.

    python benchmarks/pruning_accuracy.py ../shared/data --json out.jsonl
        [--models NAME ...] [--schemes 1x1 4x1 8x1 8x4 2:4 channel] [--levels 25 50 75]
        [--methods magnitude magnitude+statistics obs]

Every network is compressed by ``effc.compress`` and the plain ONNX that comes out runs in ONNX
Runtime. All layers that are pruned by default (not the first, the last and depthwise ones) get
the stated sparsity. ``magnitude`` sees no data, ``magnitude+statistics`` corrects means and
deviations with calibration data, ``obs`` is the default with calibration data.

CIFAR-10 networks are calibrated with the first 1,024 images of the training part and judged by all
10,000 test images. For the others the folder has 1,000 labelled samples and no training part: they
are calibrated with one half (even and odd samples) and judged by the other, twice, so that the
accuracy is over all 1,000 samples, and none was seen by the network that is judged by it.

``--json`` appends one line per result; what is in the file already is not computed again. At the
end the tables of all that the file has are printed as Markdown: top-1 in per cent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy import CLASSIFIERS
from onnx import numpy_helper

import effc
from effc.frontend import import_model
from effc.passes.pruning.batching import SampleRunner

MODELS = (
    "cifar10_resnet20_fp32",
    "cifar10_resnet32_bn_fp32",
    "mlperf_tiny_ic01_resnet8_fp32",
    "imagenet_mobilenet_v2_1.0_224_fp32deq",
    "imagenet_squeezenet_v1.0_deepcompressed_fp32",
    "mlperf_tiny_kws01_dscnn_fp32",
)
SCHEMES = ("1x1", "4x1", "8x1", "8x4", "2:4", "channel")
LEVELS = (25, 50, 75)
METHODS = ("magnitude", "magnitude+statistics", "obs")

CALIBRATION = 1024
TEST = 10_000
"""Samples at most."""

_WITHOUT_DATA = ("dense", "magnitude")


@dataclass(frozen=True)
class Case:
    """One cell of the table; of the dense network scheme and level are empty."""

    model: str
    method: str = "dense"
    scheme: str = ""
    level: int = 0


@dataclass(frozen=True)
class Fold:
    """What one network is calibrated with, and what it is judged by."""

    calibration: np.ndarray
    x: np.ndarray
    y: np.ndarray


def folds_of(model: str, folder: Path) -> list[Fold]:
    """One fold with a training part, else two that swap halves."""
    samples = CLASSIFIERS[model]
    x, y = samples.test(folder, TEST)
    if samples.training is not None:
        return [Fold(samples.training(folder, CALIBRATION)[0], x, y)]
    return [Fold(x[1 - odd :: 2], x[odd::2], y[odd::2]) for odd in (0, 1)]


def cases_of(args: argparse.Namespace, model: str) -> Iterator[Case]:
    yield Case(model)
    for scheme in args.schemes:
        levels = [50] if scheme == "2:4" else args.levels
        yield from (Case(model, m, scheme, level) for m in args.methods for level in levels)


def options_of(case: Case, calibration: np.ndarray) -> dict[str, Any]:
    """Arguments of ``effc.compress``."""
    options: dict[str, Any] = {"method": case.method.split("+")[0], "prune": case.scheme}
    if case.scheme[0].isdigit() and "x" in case.scheme:
        options |= {"prune": "block-punched", "block": case.scheme}
    if case.scheme != "2:4":
        options["sparsity"] = case.level / 100
    if case.method not in _WITHOUT_DATA:
        options["calibration"] = {"x": calibration}
    if case.method == "magnitude+statistics":
        options["correct"] = "statistics"
    return options


def correct(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> int:
    """How many samples get their label."""
    name = model.graph.input[0].name
    imported = import_model(model, shapes={name: (1, *x.shape[1:])})
    runner = SampleRunner(imported, [{name: sample[None]} for sample in x])
    output = imported.graph.outputs[0].name or ""
    logits = np.concatenate([batch[output] for batch in runner.values([output])])
    return int((logits.reshape(len(x), -1).argmax(axis=1) == y).sum())


def weights_of(model: onnx.ModelProto) -> tuple[int, int]:
    """How many weights layers have, and how many are not zero."""
    read = {n.input[1] for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name in read]
    return sum(a.size for a in arrays), sum(np.count_nonzero(a) for a in arrays)


def measure(path: Path, case: Case, folds: Sequence[Fold], work: Path) -> dict[str, Any]:
    """Accuracy over all folds; seconds and non-zero weights are means over networks."""
    seconds, right, kept = 0.0, 0, 0
    alone = case.method in _WITHOUT_DATA
    if alone:  # one network for all folds
        joined = [np.concatenate([getattr(f, a) for f in folds]) for a in ("x", "y")]
        folds = [Fold(folds[0].calibration, joined[0], joined[1])]
    for fold in folds:
        start = time.perf_counter()
        model = onnx.load(path)
        if case.method != "dense":
            model = effc.compress(model, **options_of(case, fold.calibration), work=work)
        seconds += time.perf_counter() - start
        right += correct(model, fold.x, fold.y)
        kept += weights_of(model)[1]
    return asdict(case) | {
        "top1": round(100 * right / sum(len(f.y) for f in folds), 2),
        "weights": weights_of(onnx.load(path))[0],
        "nonzero": round(kept / len(folds)),
        "seconds": round(seconds / len(folds), 1),
    }


def read_results(path: Path) -> dict[Case, dict[str, Any]]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {Case(r["model"], r["method"], r["scheme"], r["level"]): r for r in records}


def table(model: str, results: dict[Case, dict[str, Any]]) -> str:
    """Markdown: a row per scheme and level, a column per method."""
    dense = results.get(Case(model))
    lines = [f"**{model}**" + (f", dense {dense['top1']:.2f}" if dense else ""), ""]
    lines += ["| scheme | level | " + " | ".join(METHODS) + " |", "|---|--:" + "|--:" * 3 + "|"]
    for scheme in SCHEMES:
        for level in sorted({c.level for c in results if (c.model, c.scheme) == (model, scheme)}):
            row = [results.get(Case(model, method, scheme, level)) for method in METHODS]
            cells = ["" if r is None else f"{r['top1']:.2f}" for r in row]
            lines.append(f"| {scheme} | {level}% | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(model: str, args: argparse.Namespace, work: Path) -> None:
    """All results of one model that the file has not."""
    folds: list[Fold] = []
    for case in cases_of(args, model):
        if case in read_results(args.json):
            continue
        folds = folds or folds_of(model, args.folder)
        record = measure(args.folder / "models" / f"{model}.onnx", case, folds, work)
        with args.json.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(*record.values(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--levels", nargs="+", type=int, default=LEVELS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:  # removal traces, for all levels
        for model in args.models:
            run(model, args, Path(work))
    results = read_results(args.json)
    for model in args.models:
        print("\n" + table(model, results))


if __name__ == "__main__":
    main()
