"""What the examples' networks are trained with: convolutions and Adam in plain NumPy.

A 3 x 3 convolution is a matrix product over unfolded patches; Adam is that of Kingma & Ba (2015),
with weight decay and a cosine learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray
Parameters = dict[str, Array]


def he_weight(rng: np.random.Generator, *shape: int) -> Array:
    """He initialisation."""
    fan_in = int(np.prod(shape[1:]))
    return (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)


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


def max_pool(x: Array) -> tuple[Array, Array]:
    """Largest of 2 x 2, and the share that each input has in it."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
    pooled = blocks.max(axis=(3, 5))
    chosen = blocks == pooled[:, :, :, None, :, None]
    return pooled, chosen / chosen.sum(axis=(3, 5), keepdims=True)


def max_pool_gradient(d_pooled: Array, share: Array) -> Array:
    """Gradient of the input of ``max_pool``."""
    n, c, h, _, w, _ = share.shape
    d = share * d_pooled[:, :, :, None, :, None]
    return d.reshape(n, c, 2 * h, 2 * w).astype(np.float32)


def cross_entropy(logits: Array, y: Array) -> tuple[float, Array]:
    """Mean loss of a batch, and the gradient of its logits."""
    n = len(y)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    loss = -float(np.log(probabilities[np.arange(n), y] + 1e-12).mean())
    probabilities[np.arange(n), y] -= 1
    return loss, probabilities / n


def adam(
    p: Parameters,
    batches: Callable[[], list[tuple[Array, Array]]],
    gradients: Callable[[Parameters, Array, Array], tuple[float, Parameters]],
    epochs: int,
    rate: float = 3e-3,
) -> None:
    """Train ``p`` in place.

    Args:
        p: Initial parameters.
        batches: The batches of one epoch.
        gradients: Loss and gradients of one batch.
        epochs: How often ``batches`` is called.
        rate: Learning rate at the start.
    """
    first = {k: np.zeros_like(v) for k, v in p.items()}
    second = {k: np.zeros_like(v) for k, v in p.items()}
    step = 0
    for epoch in range(epochs):
        now = rate * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        losses = []
        for x, y in batches():
            loss, g = gradients(p, x, y)
            losses.append(loss)
            step += 1
            for k in p:
                first[k] = 0.9 * first[k] + 0.1 * g[k]
                second[k] = 0.999 * second[k] + 0.001 * g[k] ** 2
                m, v = first[k] / (1 - 0.9**step), second[k] / (1 - 0.999**step)
                p[k] = (p[k] - now * (m / (np.sqrt(v) + 1e-8) + 1e-4 * p[k])).astype(np.float32)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)
