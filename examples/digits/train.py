"""Train a small convolutional network on scikit-learn's bundled digits and export it to ONNX.

    python examples/digits/train.py        # writes digits.onnx and digits_test.npz beside itself

Plain NumPy, see ``examples/training.py``.
The data set (1,797 images of 8 x 8 pixels) ships with scikit-learn.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
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

HELD_OUT = 360
EPOCHS = 50
BATCH = 64
SEED = 1


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
    """Random weights, no biases."""
    return {
        "conv1.weight": he_weight(rng, 16, 1, 3, 3),
        "conv1.bias": np.zeros(16, np.float32),
        "conv2.weight": he_weight(rng, 32, 16, 3, 3),
        "conv2.bias": np.zeros(32, np.float32),
        "dense.weight": he_weight(rng, 10, 32 * 4 * 4),
        "dense.bias": np.zeros(10, np.float32),
    }


def gradients(p: Parameters, x: Array, y: Array) -> tuple[float, Parameters]:
    """Cross-entropy loss of a batch and its gradient."""
    a1, patches1 = convolve(x, p["conv1.weight"], p["conv1.bias"])
    r1 = np.maximum(a1, 0)
    a2, patches2 = convolve(r1, p["conv2.weight"], p["conv2.bias"])
    pooled, share = max_pool(np.maximum(a2, 0))
    flat = pooled.reshape(len(x), -1)
    loss, d_logits = cross_entropy(flat @ p["dense.weight"].T + p["dense.bias"], y)

    g: Parameters = {"dense.weight": d_logits.T @ flat, "dense.bias": d_logits.sum(axis=0)}
    d_pooled = (d_logits @ p["dense.weight"]).reshape(pooled.shape)
    d_r2 = max_pool_gradient(d_pooled, share)
    d_r1 = convolution_gradients(g, "conv2", p, d_r2 * (a2 > 0), patches2)
    convolution_gradients(g, "conv1", p, d_r1 * (a1 > 0), patches1)
    return loss, g


def train(x: Array, y: Array) -> Parameters:
    """Adam, with shifts by a pixel as augmentation."""
    rng = np.random.default_rng(SEED)
    p = initial(rng)

    def batches() -> list[tuple[Array, Array]]:
        order = rng.permutation(len(x))[: len(x) // BATCH * BATCH].reshape(-1, BATCH)
        return [(augmented(x[chosen], rng), y[chosen]) for chosen in order]

    adam(p, batches, gradients, EPOCHS)
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
