"""Train a small convolutional network on scikit-learn's bundled digits and export it to ONNX.

    python examples/digits/train.py        # writes digits.onnx and digits_test.npz beside itself

Plain NumPy: convolution as a matrix product over unfolded patches, Adam (Kingma & Ba, 2015).
The data set (1,797 images of 8 x 8 pixels) ships with scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
HELD_OUT = 360
EPOCHS = 50
BATCH = 64
SEED = 1

Array = np.ndarray
Parameters = dict[str, Array]


def load() -> tuple[Array, Array, Array, Array]:
    """Training images, labels, held-out images, labels; images are N x 1 x 8 x 8 in [0, 1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = (data.images / 16.0).astype(np.float32)[:, None]
    y = data.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = x[order], y[order]
    return x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:]


def initial(rng: np.random.Generator) -> Parameters:
    """He initialisation."""

    def weight(*shape: int) -> Array:
        fan_in = int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)

    return {
        "conv1.weight": weight(16, 1, 3, 3),
        "conv1.bias": np.zeros(16, np.float32),
        "conv2.weight": weight(32, 16, 3, 3),
        "conv2.bias": np.zeros(32, np.float32),
        "dense.weight": weight(10, 32 * 4 * 4),
        "dense.bias": np.zeros(10, np.float32),
    }


def unfold(x: Array) -> Array:
    """Patches of a 3 x 3 convolution with padding 1: N x H x W x (C * 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))  # N C H W 3 3
    n, c, h, w, _, _ = windows.shape
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)


def fold(patches: Array, channels: int) -> Array:
    """Gradient of ``unfold``."""
    n, h, w, _ = patches.shape
    parts = patches.reshape(n, h, w, channels, 3, 3)
    padded = np.zeros((n, channels, h + 2, w + 2), np.float32)
    for i in range(3):
        for j in range(3):
            padded[:, :, i : i + h, j : j + w] += parts[..., i, j].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1]


def convolve(x: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Output N x C x H x W, and the patches for the gradient."""
    patches = unfold(x)
    out = patches @ weight.reshape(len(weight), -1).T + bias
    return out.transpose(0, 3, 1, 2), patches


def gradients(p: Parameters, x: Array, y: Array) -> tuple[float, Parameters]:
    """Cross-entropy loss of a batch and its gradient."""
    n = len(x)
    a1, patches1 = convolve(x, p["conv1.weight"], p["conv1.bias"])
    r1 = np.maximum(a1, 0)
    a2, patches2 = convolve(r1, p["conv2.weight"], p["conv2.bias"])
    r2 = np.maximum(a2, 0)
    blocks = r2.reshape(n, 32, 4, 2, 4, 2)
    pooled = blocks.max(axis=(3, 5))
    flat = pooled.reshape(n, -1)
    logits = flat @ p["dense.weight"].T + p["dense.bias"]
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    loss = -float(np.log(probabilities[np.arange(n), y] + 1e-12).mean())

    g: Parameters = {}
    d_logits = probabilities
    d_logits[np.arange(n), y] -= 1
    d_logits /= n
    g["dense.weight"] = d_logits.T @ flat
    g["dense.bias"] = d_logits.sum(axis=0)
    d_pooled = (d_logits @ p["dense.weight"]).reshape(pooled.shape)
    chosen = blocks == pooled[:, :, :, None, :, None]
    chosen = chosen / chosen.sum(axis=(3, 5), keepdims=True)
    d_r2 = (chosen * d_pooled[:, :, :, None, :, None]).reshape(r2.shape).astype(np.float32)
    d_r1 = convolution_gradients(g, "conv2", p, d_r2 * (a2 > 0), patches2)
    convolution_gradients(g, "conv1", p, d_r1 * (a1 > 0), patches1)
    return loss, g


def convolution_gradients(
    g: Parameters, layer: str, p: Parameters, d_out: Array, patches: Array
) -> Array:
    """Store the gradients of a convolution's parameters; return that of its input."""
    weight = p[f"{layer}.weight"]
    d = d_out.transpose(0, 2, 3, 1)
    rows = d.reshape(-1, len(weight))
    g[f"{layer}.weight"] = (rows.T @ patches.reshape(len(rows), -1)).reshape(weight.shape)
    g[f"{layer}.bias"] = rows.sum(axis=0)
    return fold(d @ weight.reshape(len(weight), -1), weight.shape[1])


def train(x: Array, y: Array) -> Parameters:
    """Adam with a cosine learning rate, and shifts by a pixel as augmentation."""
    rng = np.random.default_rng(SEED)
    p = initial(rng)
    first = {k: np.zeros_like(v) for k, v in p.items()}
    second = {k: np.zeros_like(v) for k, v in p.items()}
    batches = len(x) // BATCH
    step = 0
    for epoch in range(EPOCHS):
        order = rng.permutation(len(x))
        rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
        total = 0.0
        for b in range(batches):
            chosen = order[b * BATCH : (b + 1) * BATCH]
            loss, g = gradients(p, augmented(x[chosen], rng), y[chosen])
            total += loss
            step += 1
            for k in p:
                first[k] = 0.9 * first[k] + 0.1 * g[k]
                second[k] = 0.999 * second[k] + 0.001 * g[k] ** 2
                m, v = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
                p[k] = (p[k] - rate * (m / (np.sqrt(v) + 1e-8) + 1e-4 * p[k])).astype(np.float32)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {total / batches:.4f}")
    return p


def augmented(x: Array, rng: np.random.Generator) -> Array:
    """Every other batch moved by -1, 0 or 1 pixels in both directions."""
    if rng.random() < 0.5:
        return x
    dy, dx = rng.integers(-1, 2, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return padded[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]


def export(p: Parameters) -> onnx.ModelProto:
    """The network as ONNX, one image per run."""
    nodes = [
        helper.make_node(
            "Conv", ["image", "conv1.weight", "conv1.bias"], ["conv1"], "conv1", pads=[1] * 4
        ),
        helper.make_node("Relu", ["conv1"], ["relu1"], "relu1"),
        helper.make_node(
            "Conv", ["relu1", "conv2.weight", "conv2.bias"], ["conv2"], "conv2", pads=[1] * 4
        ),
        helper.make_node("Relu", ["conv2"], ["relu2"], "relu2"),
        helper.make_node(
            "MaxPool", ["relu2"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Flatten", ["pool"], ["flat"], "flatten"),
        helper.make_node(
            "Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], "dense", transB=1
        ),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in p.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    model.producer_name = "effc examples/digits/train.py"
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, export, measure on the held-out images."""
    import onnxruntime as ort

    train_x, train_y, test_x, test_y = load()
    model = export(train(train_x, train_y))
    onnx.save(model, HERE / "digits.onnx")
    np.savez_compressed(HERE / "digits_test.npz", x=test_x, y=test_y)
    session = ort.InferenceSession(model.SerializeToString())
    answers = [session.run(None, {"image": x[None]})[0].argmax() for x in test_x]
    print(f"held-out accuracy {np.mean(np.array(answers) == test_y):.4f} on {len(test_y)} images")


if __name__ == "__main__":
    main()
