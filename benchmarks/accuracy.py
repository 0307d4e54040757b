"""Every model of a data folder: distance to ONNX Runtime, and top-1 agreement.

    python benchmarks/accuracy.py ../shared/data [--target host android] [--samples 500]
                                  [--only NAME] [--precision f16] [--calibration N]

Compiles each model, runs it (natively, or under QEMU for Arm targets) on real samples, of another
data set if need be, or on random ones where the folder has none of the kind, and prints the SNR
in dB over all samples of the worst output; for 8-bit outputs also the share of equal elements and
the largest difference (in steps).
Classifiers on ``host`` also run ``--samples`` labelled samples: share of equal top-1, and both
accuracies. Quantized models are compared with ONNX Runtime without optimizations, which computes
exactly what the model says (optimized, its 8-bit products saturate on x86 CPUs without VNNI).
With ``--precision f16`` samples run under QEMU as well, which is slow; ``--calibration N`` gives it
N samples, other ones than those it is judged by.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import effc
from effc.errors import EffcError
from effc.execute import open_executor

Samples = Callable[[Path, int], tuple[np.ndarray, np.ndarray]]
"""Of (data folder, how many): stacked inputs and labels."""


@dataclass(frozen=True)
class Classifier:
    """Labelled samples for a model, preprocessed as it expects them.

    Attributes:
        test: To judge it by.
        training: Of the training part; None where the folder has none.
    """

    test: Samples
    training: Samples | None = None


def cifar_test(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.load(folder / "data/cifar10_test.npz")
    return data["x"][:count], data["y"][:count]


def cifar_training(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    images, y = decode(folder / "data/cifar10_train20k_webp.npz", count)
    return np.array([np.asarray(image).transpose(2, 0, 1) for image in images]), y


def cifar(prepare: Callable[[np.ndarray], np.ndarray]) -> Classifier:
    """CIFAR-10, ``prepare`` makes inputs of uint8 images [N, 3, 32, 32]."""

    def prepared(source: Samples) -> Samples:
        def load(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
            x, y = source(folder, count)
            return np.ascontiguousarray(prepare(x), np.float32), y

        return load

    return Classifier(prepared(cifar_test), prepared(cifar_training))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.float32(255)


def normalized(x: np.ndarray) -> np.ndarray:
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1)
    std = np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1)
    return (unit(x) - mean) / std


def raw_nhwc(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def decode(path: Path, count: int) -> tuple[list[Image.Image], np.ndarray]:
    """The first images of a file of packed ones, and their labels."""
    packed = np.load(path)
    data, offsets = packed["data"].tobytes(), packed["offsets"]
    images = [
        Image.open(io.BytesIO(data[begin:end])).convert("RGB")
        for begin, end in pairwise(offsets[: count + 1])
    ]
    return images, packed["y"][:count]


def keywords(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.load(folder / "data/kws01_mfcc_int8.npz")
    x = (data["x"][:count].astype(np.float32) - data["zero_point"]) * data["scale"]
    return x.astype(np.float32), data["y"][:count]


def bytes_of(source: Samples, prepare: Callable[[np.ndarray], np.ndarray]) -> Classifier:
    """8-bit inputs of 8-bit samples."""

    def load(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = source(folder, count)
        return np.ascontiguousarray(prepare(x)), y

    return Classifier(load)


def signed(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.int16) - 128).astype(np.int8)


def keyword_bytes(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.load(folder / "data/kws01_mfcc_int8.npz")
    return data["x"][:count], data["y"][:count]


def imagenet_bytes(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """NHWC pixels; label 0 of the model is the background."""
    images, y = decode(folder / "data/imagenet1000_224_jpeg.npz", count)
    return np.array([np.asarray(image) for image in images]), y + 1


def imagenet(size: int, scale: Callable[[np.ndarray], np.ndarray], offset: int) -> Classifier:
    """ImageNet crops resized to ``size``; labels shifted by ``offset``."""

    def load(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, y = decode(folder / "data/imagenet1000_224_jpeg.npz", count)
        if size != 224:
            images = [image.resize((size, size), Image.Resampling.BILINEAR) for image in images]
        arrays = [scale(np.asarray(image, np.float32)).transpose(2, 0, 1) for image in images]
        return np.ascontiguousarray(arrays, np.float32), y + offset

    return Classifier(load)


def centred(image: np.ndarray) -> np.ndarray:
    return (image - 127.5) / 127.5


def caffe(image: np.ndarray) -> np.ndarray:
    return image[..., ::-1] - np.array([104, 117, 123], np.float32)


CLASSIFIERS: dict[str, Classifier] = {
    "cifar10_resnet20_fp32": cifar(normalized),
    "cifar10_resnet32_bn_fp32": cifar(normalized),
    "cifar10_tiniest_fp32": cifar(unit),
    "mlperf_tiny_ic01_resnet8_fp32": cifar(raw_nhwc),
    "mlperf_tiny_kws01_dscnn_fp32": Classifier(keywords),
    "imagenet_mobilenet_v2_1.0_224_fp32deq": imagenet(224, centred, 1),
    "imagenet_mobilenet_v1_0.25_128_fp32deq": imagenet(128, centred, 1),
    "imagenet_squeezenet_v1.0_deepcompressed_fp32": imagenet(227, caffe, 0),
    "mlperf_tiny_ic01_resnet8_int8": bytes_of(cifar_test, lambda x: raw_nhwc(signed(x))),
    "mlperf_tiny_kws01_dscnn_int8": bytes_of(keyword_bytes, lambda x: x),
    "imagenet_mobilenet_v2_1.0_224_int8qdq": bytes_of(imagenet_bytes, lambda x: x),
}


def photographs(size: tuple[int, int], prepare: Callable[[np.ndarray], np.ndarray]) -> Samples:
    """ImageNet crops as inputs of other models, without their labels.

    Args:
        size: Width and height.
        prepare: Makes an input ``[...]`` of RGB pixels ``[height, width, 3]``, float32.
    """

    def load(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        images, y = decode(folder / "data/imagenet1000_224_jpeg.npz", count)
        resized = [image.resize(size, Image.Resampling.BILINEAR) for image in images]
        arrays = [prepare(np.asarray(image, np.float32)) for image in resized]
        return np.ascontiguousarray(arrays, np.float32), y

    return load


def luma(image: np.ndarray) -> np.ndarray:
    """Of RGB pixels, from 0 to 1 (ITU-R BT.601)."""
    return image @ np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255)


UNLABELLED: dict[str, Samples] = {
    "coco_fastestdet_352_fp32": photographs(
        (352, 352), lambda image: unit(image[..., ::-1].transpose(2, 0, 1))
    ),
    "face_ultraface_rfb320_fp32": photographs(
        (320, 240), lambda image: (image.transpose(2, 0, 1) - 127) / 128
    ),
    "mlperf_tiny_vww01_mobilenetv1_fp32": photographs((96, 96), unit),
    "sr_espcn_x3_pytorch_fp32": photographs((224, 224), lambda image: luma(image)[None]),
    "sr_fsrcnn_x2_fp32": photographs((128, 128), lambda image: luma(image)[..., None]),
}
"""Real inputs of models without labelled ones."""

MOST_UNLABELLED = 8
"""Samples for models without labels."""

CONSTANTS: dict[str, dict[str, int]] = {"audio_silero_vad_16k_fp32": {"sr": 16000}}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "audio_silero_vad_16k_fp32": {"input": (1, 576), "state": (2, 1, 128)}
}


class Snr:
    """Signal-to-noise ratio of one output over all samples; of integers also steps."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.elements = self.equal = self.steps = 0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        if expected.dtype.kind in "iu":
            steps = np.abs(expected.astype(np.int64) - got)
            self.elements += steps.size
            self.equal += int((steps == 0).sum())
            self.steps = max(self.steps, int(steps.max()))
        self.signal += float(np.sum(expected.astype(np.float64) ** 2))
        self.noise += float(np.sum((expected.astype(np.float64) - got) ** 2))

    @property
    def db(self) -> float:
        return float("inf") if self.noise == 0 else float(10 * np.log10(self.signal / self.noise))

    def __str__(self) -> str:
        text = f"{self.db:6.1f} dB"
        if self.elements:
            text += f", {100 * self.equal / self.elements:.2f} % equal, {self.steps} steps at most"
        return text


def random_inputs(
    port: onnxruntime.NodeArg, shape: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """Of a type's whole range if it is an integer, uniform otherwise."""
    kinds = {"tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
    if port.type in kinds:
        limits = np.iinfo(kinds[port.type])
        return generator.integers(limits.min, limits.max + 1, shape, kinds[port.type])
    return generator.random(shape, np.float32)


def static_shapes(session: onnxruntime.InferenceSession, name: str) -> dict[str, tuple[int, ...]]:
    """Batch 1 for every dynamic leading dimension, or the shapes listed above."""
    if name in SHAPES:
        return SHAPES[name]
    return {
        port.name: tuple(d if isinstance(d, int) else 1 for d in port.shape)
        for port in session.get_inputs()
        if not all(isinstance(d, int) for d in port.shape)
    }


def inputs_of(
    path: Path, folder: Path, count: int, session: onnxruntime.InferenceSession
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Stacked samples by input name, and labels where there are any."""
    generator = np.random.default_rng(0)
    shapes = static_shapes(session, path.stem)
    ports = [p for p in session.get_inputs() if p.name not in CONSTANTS.get(path.stem, {})]
    found, y = {}, None
    if path.stem in CLASSIFIERS:
        found[ports[0].name], y = CLASSIFIERS[path.stem].test(folder, count)
    elif path.stem in UNLABELLED:
        found[ports[0].name], _ = UNLABELLED[path.stem](folder, count)
    for port in ports[len(found) :]:
        first, *rest = shapes.get(port.name, tuple(port.shape))
        shape = (count * first, *rest)
        if found:  # a state
            found[port.name] = generator.standard_normal(shape).astype(np.float32)
        else:
            found[port.name] = random_inputs(port, shape, generator)
    return found, y


def compare(path: Path, folder: Path, args: argparse.Namespace, target: str, out: Path) -> str:
    """One line of the table."""
    options = onnxruntime.SessionOptions()
    if "int8" in path.stem:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    constants = CONSTANTS.get(path.stem, {})
    first = args.calibration if args.precision != "f32" else 0
    judged = args.samples if path.stem in CLASSIFIERS else min(args.samples, MOST_UNLABELLED)
    all_samples = first + judged
    samples, y = inputs_of(path, folder, all_samples, session)
    artifact = effc.compile(
        path,
        target=target,
        output=out / f"{path.stem}-{target}",
        shapes=static_shapes(session, path.stem),
        constants=constants,
        precision=args.precision,
        calibration=_rows(samples, 0, first, all_samples) if first else None,
    )
    fixed = {name: np.array(value, np.int64) for name, value in constants.items()}
    if target != "host" and args.precision == "f32":
        checked = artifact.manifest["verification"]
        worst = min(output["snr_db"] for output in checked["outputs"])
        return f"{worst:6.1f} dB on {checked['device']}"
    ratios = [Snr() for _ in session.get_outputs()]
    agree = ours = theirs = 0
    with open_executor(artifact, None, None) as executor:
        for i in range(first, all_samples):
            feed = _rows(samples, i, i + 1, all_samples)
            expected = session.run(None, feed | fixed)
            got = list(executor.run(feed).values())
            for ratio, a, b in zip(ratios, expected, got, strict=True):
                ratio.add(a, b)
            if y is not None:
                a, b = int(expected[0].ravel().argmax()), int(got[0].ravel().argmax())
                agree, ours, theirs = agree + (a == b), ours + (b == y[i]), theirs + (a == y[i])
    line = f"{min(ratios, key=lambda ratio: ratio.db)} over {judged} samples"
    line += f", weights {artifact.manifest['weights_bytes'] / 1e3:.0f} kB"
    if y is not None:
        share = 100 / judged
        line += f"  same top-1 {agree}/{judged}, accuracy {share * ours:.2f} %"
        line += f" (ONNX Runtime {share * theirs:.2f} %)"
    return line


def _rows(
    samples: dict[str, np.ndarray], begin: int, end: int, count: int
) -> dict[str, np.ndarray]:
    """Samples ``begin`` to ``end`` of ``count``, stacked."""
    return {
        name: x[begin * (len(x) // count) : end * (len(x) // count)] for name, x in samples.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", nargs="+", default=["host", "android"])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--calibration", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        for path in sorted((args.folder / "models").glob("*.onnx")):
            if args.only not in path.stem:
                continue
            for target in args.target:
                try:
                    line = compare(path, args.folder, args, target, Path(out))
                except EffcError as error:
                    line = f"FAILED {type(error).__name__}: {error}"
                print(f"{path.stem:46s} {target:10s} {line}", flush=True)


if __name__ == "__main__":
    main()
