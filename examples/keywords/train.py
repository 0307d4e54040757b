"""Train a small network that spots keywords in speech, and export it to ONNX.

    python examples/keywords/train.py     # writes keywords.onnx, keywords_test.npz and words/*.wav

The speech is synthetic: the Debian package espeak-ng speaks five classes of words with some ninety
voices. A fifth of the voices is held out. A demonstration of firmware, not of speech recognition:
real recordings would be the next step.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.io import wavfile
from scipy.signal import resample_poly

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from features import BANDS, FRAMES, RATE, SAMPLES, features  # noqa: E402
from training import (  # noqa: E402 - it lies beside the examples
    Array,
    Parameters,
    adam,
    convolution_gradients,
    convolve,
    cross_entropy,
    he_weight,
    max_pool,
    max_pool_gradient,
)

CLASSES = ("yes", "no", "stop", "go", "other")
OTHERS = ("seven", "house", "left", "right", "marvin", "tree", "up", "down", "bird", "sheila")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp")
UTTERANCES = {"train": 160, "test": 32}  # of each keyword; of each other word a quarter
NOISES = {"train": 150, "test": 30}
VERSIONS = 3  # each utterance with other noise, loudness and place
EPOCHS = 30
BATCH = 64
SEED = 1


def voices() -> list[str]:
    """Voice variants of espeak-ng but whispers and sound effects."""
    listed = subprocess.run(
        ["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[1:]
    names = [line.split()[4].removeprefix("!v/") for line in listed]
    return sorted(n for n in names if "whisper" not in n and "Robot" not in n)


def speak(word: str, accent: str, voice: str, rng: np.random.Generator) -> Array:
    """float32 samples at RATE, silence removed from both ends."""
    options = ["-s", str(rng.integers(120, 220)), "-p", str(rng.integers(25, 75))]
    sound = subprocess.run(
        ["espeak-ng", "-v", f"{accent}+{voice}", *options, "--stdout", word],
        check=True,
        capture_output=True,
    ).stdout
    x = np.frombuffer(sound[44:], np.int16).astype(np.float32)
    x = resample_poly(x, RATE, 22050)
    loud = np.flatnonzero(np.abs(x) > 0.02 * np.abs(x).max(initial=1))
    return x[loud[0] : loud[-1] + 1] if len(loud) else x


def clip(x: Array, rng: np.random.Generator) -> Array:
    """One second: the utterance at a random place and loudness, in noise; int16."""
    x = x[:SAMPLES]
    out = np.zeros(SAMPLES)
    start = rng.integers(0, SAMPLES - len(x) + 1)
    level = 10 ** rng.uniform(-1.5, -0.1)
    out[start : start + len(x)] = x / max(np.abs(x).max(initial=0), 1) * level
    white = rng.standard_normal(SAMPLES + 8)
    noise = np.convolve(white, np.ones(rng.integers(1, 8)), "same")[:SAMPLES]
    out += noise / np.abs(noise).max() * 10 ** rng.uniform(-3.5, -1.5)
    return np.clip(np.rint(out * 32767), -32768, 32767).astype(np.int16)


def utterances(part: str, every: list[str], rng: np.random.Generator) -> list[tuple[Array, int]]:
    """Spoken words with their classes, and silence."""
    spoken: list[tuple[Array, int]] = []
    words = [(word, i, UTTERANCES[part]) for i, word in enumerate(CLASSES[:-1])]
    words += [(word, len(CLASSES) - 1, UTTERANCES[part] // 4) for word in OTHERS]
    for word, label, count in words:
        for _ in range(count):
            spoken.append((speak(word, rng.choice(ACCENTS), rng.choice(every), rng), label))
    silence = np.zeros(0, np.float32)
    return spoken + [(silence, len(CLASSES) - 1)] * NOISES[part]


def load() -> tuple[Array, Array, Array, Array, list[Array]]:
    """Training features, labels, held-out features, labels, held-out sounds."""
    rng = np.random.default_rng(SEED)
    every = rng.permutation(voices()).tolist()
    held_out = len(every) // 5
    sounds: dict[str, list[Array]] = {}
    labels: dict[str, list[int]] = {}
    for part, chosen in (("train", every[held_out:]), ("test", every[:held_out])):
        made = utterances(part, chosen, rng)
        versions = VERSIONS if part == "train" else 1
        sounds[part] = [clip(x, rng) for x, _ in made for _ in range(versions)]
        labels[part] = [label for _, label in made for _ in range(versions)]
        print(f"{part}: {len(sounds[part])} clips, {len(chosen)} voices", flush=True)
    x = {part: np.stack([features(s) for s in sounds[part]])[:, None] for part in sounds}
    y = {part: np.array(labels[part]) for part in labels}
    return x["train"], y["train"], x["test"], y["test"], sounds["test"]


def initial(rng: np.random.Generator) -> Parameters:
    """Random weights, no biases."""
    p: Parameters = {}
    for layer, cin, cout in (("conv1", 1, 16), ("conv2", 16, 24), ("conv3", 24, 32)):
        p[f"{layer}.weight"] = he_weight(rng, cout, cin, 3, 3)
        p[f"{layer}.bias"] = np.zeros(cout, np.float32)
    p["dense.weight"] = he_weight(rng, len(CLASSES), 32)
    p["dense.bias"] = np.zeros(len(CLASSES), np.float32)
    return p


def gradients(p: Parameters, x: Array, y: Array) -> tuple[float, Parameters]:
    """Cross-entropy loss of a batch and its gradient."""
    below, kept = x, []
    for layer in ("conv1", "conv2", "conv3"):
        a, patches = convolve(below, p[f"{layer}.weight"], p[f"{layer}.bias"])
        below, share = np.maximum(a, 0), None
        if layer != "conv3":
            below, share = max_pool(below)
        kept.append((layer, a, patches, share))
    size = below.shape[2] * below.shape[3]
    mean = below.mean(axis=(2, 3))
    loss, d_logits = cross_entropy(mean @ p["dense.weight"].T + p["dense.bias"], y)

    g: Parameters = {"dense.weight": d_logits.T @ mean, "dense.bias": d_logits.sum(axis=0)}
    d = np.broadcast_to((d_logits @ p["dense.weight"])[..., None, None] / size, below.shape)
    for layer, a, patches, share in reversed(kept):
        if share is not None:
            d = max_pool_gradient(d, share)
        d = convolution_gradients(g, layer, p, (d * (a > 0)).astype(np.float32), patches)
    return loss, g


def train(x: Array, y: Array) -> Parameters:
    """Adam, with features moved by a few frames as augmentation."""
    rng = np.random.default_rng(SEED)
    p = initial(rng)

    def batches() -> list[tuple[Array, Array]]:
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        return [(np.roll(x[chosen], rng.integers(-3, 4), axis=2), y[chosen]) for chosen in order]

    adam(p, batches, gradients, EPOCHS)
    return p


def export(p: Parameters) -> onnx.ModelProto:
    """The network as ONNX, one second per run."""
    nodes, below = [], "features"
    for number in (1, 2, 3):
        layer = f"conv{number}"
        names = [below, f"{layer}.weight", f"{layer}.bias"]
        nodes.append(helper.make_node("Conv", names, [layer], layer, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [layer], [f"relu{number}"], f"relu{number}"))
        below = f"relu{number}"
        if number < 3:
            pool = f"pool{number}"
            nodes.append(
                helper.make_node(
                    "MaxPool", [below], [pool], pool, kernel_shape=[2, 2], strides=[2, 2]
                )
            )
            below = pool
    nodes += [
        helper.make_node("GlobalAveragePool", [below], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node(
            "Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], "dense", transB=1
        ),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "keywords",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 1, FRAMES, BANDS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in p.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    model.producer_name = "effc examples/keywords/train.py"
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, export, measure on the held-out voices, keep one recording of each class."""
    import onnxruntime as ort

    train_x, train_y, test_x, test_y, sounds = load()
    model = export(train(train_x, train_y))
    onnx.save(model, HERE / "keywords.onnx")
    np.savez_compressed(HERE / "keywords_test.npz", x=test_x, y=test_y)
    session = ort.InferenceSession(model.SerializeToString())
    answers = np.array([session.run(None, {"features": x[None]})[0].argmax() for x in test_x])
    print(f"held-out accuracy {np.mean(answers == test_y):.4f} on {len(test_y)} clips")
    for label, word in enumerate(CLASSES):
        first = np.flatnonzero((test_y == label) & (answers == label))[0]
        wavfile.write(HERE / "words" / f"{word}.wav", RATE, sounds[first])


if __name__ == "__main__":
    main()
