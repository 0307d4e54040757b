"""Quantized networks beside float ones: top-1, agreement and SNR, without labels and training.

    python benchmarks/quantization_accuracy.py ../shared/data --json out.jsonl
        [--models NAME ...] [--variants NAME ...] [--samples 1024] [--test 10000]

Every network is quantized by ``effc.compress``; the QDQ model that comes out runs in ONNX Runtime
with its default settings (all graph optimizations, so 8-bit integer kernels; on x86 without VNNI
its sums of 8-bit products may saturate: see ``vnni`` in the file). Variants:

    float      the model as it is
    plain      ``--ranges minmax --rounding nearest --no-equalize --no-refine``
    int8       the defaults
    reference  the public int8 model of the same network in the folder, where there is one
    prune50, prune75            block-punched 4x1, float
    prune50+int8, prune75+int8  the same and the defaults in one run

Calibration and test samples are those of ``pruning_accuracy.py``: CIFAR-10 networks see the first
images of the training part and are judged by the test part; where there is no training part one
half calibrates and the other judges, twice. The visual wake words network has no labelled data:
calibrated and judged by ImageNet crops of 96x96 pixels, it is only compared with itself in float;
the autoencoder likewise, with random walks over its input range.

``--json`` appends one line per result; what is in the file is not computed again. ``drop`` is in
points of top-1; ``agree`` the share of samples with the float model's top-1; ``db`` the SNR of the
outputs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from accuracy import decode
from pruning_accuracy import Fold, folds_of

import effc

PRUNED = {"prune": "block-punched", "block": "4x1"}
VARIANTS: dict[str, dict[str, Any]] = {
    "float": {},
    "plain": {
        "quantize": "int8",
        "ranges": "minmax",
        "rounding": "nearest",
        "equalize": False,
        "refine": False,
    },
    "int8": {"quantize": "int8"},
    "reference": {},
    "prune50": {**PRUNED, "sparsity": 0.5},
    "prune50+int8": {**PRUNED, "sparsity": 0.5, "quantize": "int8"},
    "prune75": {**PRUNED, "sparsity": 0.75},
    "prune75+int8": {**PRUNED, "sparsity": 0.75, "quantize": "int8"},
}


@dataclass(frozen=True)
class Reference:
    """A public int8 model, and how its input follows from the float model's."""

    name: str
    scale: float
    zero: int
    dtype: type[np.integer[Any]]
    nhwc: bool = False


RN8, DSCNN = "mlperf_tiny_ic01_resnet8_fp32", "mlperf_tiny_kws01_dscnn_fp32"
VWW, AD = "mlperf_tiny_vww01_mobilenetv1_fp32", "mlperf_tiny_ad01_autoencoder_fp32"
MV2 = "imagenet_mobilenet_v2_1.0_224_fp32deq"
REFERENCES = {
    DSCNN: Reference("mlperf_tiny_kws01_dscnn_int8", 0.5847029, 83, np.int8),
    RN8: Reference("mlperf_tiny_ic01_resnet8_int8", 1.0, -128, np.int8),
    VWW: Reference("mlperf_tiny_vww01_mobilenetv1_int8", 1 / 255, -128, np.int8),
    AD: Reference("mlperf_tiny_ad01_autoencoder_int8", 0.39101523, 89, np.int8),
    MV2: Reference("imagenet_mobilenet_v2_1.0_224_int8qdq", 1 / 127.5, 128, np.uint8, nhwc=True),
}
MODELS = (
    "cifar10_resnet20_fp32",
    "cifar10_resnet32_bn_fp32",
    RN8,
    DSCNN,
    VWW,
    AD,
    MV2,
    "imagenet_squeezenet_v1.0_deepcompressed_fp32",
)


def unlabelled(model: str, folder: Path) -> list[Fold]:
    """Samples for networks without labelled data; two folds that swap halves."""
    if model == VWW:
        images, _ = decode(folder / "data/imagenet1000_224_jpeg.npz", 1000)
        x = np.array([np.asarray(i.resize((96, 96)), np.float32) / 255 for i in images])
    else:
        steps = np.random.default_rng(0).standard_normal((1000, 640))
        x = np.clip(-30 + 3 * np.cumsum(steps, axis=1) * 0.3, -80, 15).astype(np.float32)
    y = np.full(len(x), -1)
    return [Fold(x[1 - odd :: 2], x[odd::2], y[odd::2]) for odd in (0, 1)]


def outputs(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    """What a model says about samples, ``[N, any]``, in ONNX Runtime as it comes."""
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    size = port.shape[0] if isinstance(port.shape[0], int) else 64
    found = [
        session.run(None, {port.name: x[at : at + size]})[0].reshape(len(x[at : at + size]), -1)
        for at in range(0, len(x), size)
    ]
    return np.concatenate(found)


def referred(folder: Path, model: str, x: np.ndarray) -> np.ndarray:
    """Outputs of the public int8 model."""
    reference = REFERENCES[model]
    limits = np.iinfo(reference.dtype)
    q = np.clip(np.rint(x / reference.scale) + reference.zero, limits.min, limits.max)
    q = q.transpose(0, 2, 3, 1) if reference.nhwc else q
    path = folder / "models" / f"{reference.name}.onnx"
    return outputs(path, np.ascontiguousarray(q, reference.dtype)).astype(np.float32)


def measure(
    model: str, variant: str, folds: Sequence[Fold], args: argparse.Namespace
) -> dict[str, Any]:
    """One line of the file; over all folds."""
    path = args.folder / "models" / f"{model}.onnx"
    seconds, right, same, signal, noise = 0.0, 0, 0, 0.0, 0.0
    zeros = 0.0
    for fold in folds:
        x, y = fold.x[: args.test], fold.y[: args.test]
        expected = outputs(path, x)
        start = time.process_time()
        made: onnx.ModelProto | Path = path
        if VARIANTS[variant]:
            calibration = {"x": fold.calibration[: args.samples]}
            made = effc.compress(path, calibration=calibration, **VARIANTS[variant])
        seconds += time.process_time() - start
        got = referred(args.folder, model, x) if variant == "reference" else outputs(made, x)
        right += int((got.argmax(axis=1) == y).sum())
        same += int((got.argmax(axis=1) == expected.argmax(axis=1)).sum())
        signal += float(np.square(expected, dtype=np.float64).sum())
        noise += float(np.square(expected - got, dtype=np.float64).sum())
        zeros += zero_share(made) / len(folds)
    count = sum(len(fold.y[: args.test]) for fold in folds)
    labelled = all((fold.y >= 0).all() for fold in folds)
    return {
        "model": model,
        "variant": variant,
        "samples": min(args.samples, len(folds[0].calibration)),
        "test": count,
        "top1": round(100 * right / count, 2) if labelled else None,
        "agree": None if model == AD else round(100 * same / count, 2),
        "db": None
        if not noise or variant == "reference"
        else round(10 * np.log10(signal / noise), 1),
        "zeros": round(zeros, 4),
        "cpu_seconds": round(seconds / len(folds), 1),
        "vnni": "avx512_vnni" in Path("/proc/cpuinfo").read_text(),
    }


def zero_share(model: onnx.ModelProto | Path) -> float:
    """Share of zeros in all matrices and filters."""
    loaded = onnx.load(model) if isinstance(model, Path) else model
    tensors = [t for t in loaded.graph.initializer if len(t.dims) > 1]
    arrays = [onnx.numpy_helper.to_array(t) for t in tensors]
    return 1 - sum(map(np.count_nonzero, arrays)) / sum(a.size for a in arrays)


def read_results(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {(r["model"], r["variant"]): r for r in records}


def table(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Markdown of all results."""
    lines = [
        "| model | variant | top-1 | drop | agree | dB | zeros |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for (model, variant), r in sorted(results.items(), key=lambda item: _place(*item[0])):
        base = results.get((model, variant.split("+")[0] if "+" in variant else "float"))
        drop = ""
        if base is not None and r["top1"] is not None:
            drop = f"{base['top1'] - r['top1']:.2f}"
        top = "" if r["top1"] is None else f"{r['top1']:.2f}"
        agree = "" if r["agree"] is None else f"{r['agree']:.2f}"
        db = "" if r["db"] is None else f"{r['db']:.1f}"
        cells = (model, variant, top, drop, agree, db, f"{r['zeros']:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _place(model: str, variant: str) -> tuple[int, int]:
    return MODELS.index(model), list(VARIANTS).index(variant)


def wanted(model: str, variant: str) -> bool:
    """Whether there is such a case."""
    if variant == "reference":
        return model in REFERENCES
    return not variant.startswith("prune") or model.startswith("cifar10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=tuple(VARIANTS))
    parser.add_argument("--samples", type=int, default=1024, help="calibration samples")
    parser.add_argument("--test", type=int, default=10_000, help="test samples")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    for model in args.models:
        folds: list[Fold] = []
        for variant in args.variants:
            if not wanted(model, variant) or (model, variant) in read_results(args.json):
                continue
            folds = folds or (
                unlabelled(model, args.folder)
                if model in (VWW, AD)
                else folds_of(model, args.folder)
            )
            record = measure(model, variant, folds, args)
            with args.json.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(*record.values(), flush=True)
    print("\n" + table(read_results(args.json)))


if __name__ == "__main__":
    main()
