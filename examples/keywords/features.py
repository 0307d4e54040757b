"""Log-mel features of one second of sound, as the firmware computes them (firmware/features.c).

    python examples/keywords/features.py      # writes firmware/features_tables.h

48 frames of 32 ms, one every 20 ms; Hann window, power spectrum, 16 triangular mel bands between
80 and 3800 Hz, logarithm. All arithmetic is float32 and simple enough to be repeated in C;
sums may differ in their last bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
RATE = 8000
FRAME, HOP, FRAMES, BANDS = 256, 160, 48, 16
SAMPLES = RATE
LOW_HZ, HIGH_HZ = 80.0, 3800.0
FLOOR = np.float32(1e-6)

Array = np.ndarray


def window() -> Array:
    """Hann window of one frame."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)


def band_edges() -> Array:
    """Bins of the power spectrum where the triangles begin, peak and end: BANDS + 2 of them."""

    def mel(hz: float) -> float:
        return float(1127 * np.log1p(hz / 700))

    mels = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), BANDS + 2)
    bins = np.rint(700 * np.expm1(mels / 1127) * FRAME / RATE).astype(int)
    for i in range(1, len(bins)):  # narrow ones at the bottom: each has a bin of its own
        bins[i] = max(bins[i], bins[i - 1] + 1)
    return bins


def triangles() -> Array:
    """Weights: BANDS x (FRAME / 2 + 1)."""
    edges = band_edges()
    bins = np.arange(FRAME // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def log2(x: Array) -> Array:
    """Logarithm of positive float32 numbers to about 0.0002: exponent and a polynomial.

    The polynomial is the Chebyshev interpolation of degree 4 of log2 on [1, 2).
    """
    bits = x.astype(np.float32).view(np.int32)
    exponent = (bits >> 23) - 127
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).view(np.float32)
    value = np.float32(0)
    for c in log2_coefficients()[::-1]:
        value = value * mantissa + c
    return exponent.astype(np.float32) + value


def log2_coefficients() -> Array:
    """Lowest first."""
    fit = np.polynomial.Chebyshev.interpolate(np.log2, 4, domain=[1, 2])
    return fit.convert(kind=np.polynomial.Polynomial).coef.astype(np.float32)


def features(sound: Array) -> Array:
    """int16 samples (8000) to float32 FRAMES x BANDS, about -1.5 to 2."""
    x = sound.astype(np.float32) / np.float32(32768)
    frames = np.stack([x[i * HOP : i * HOP + FRAME] for i in range(FRAMES)])
    spectrum = np.fft.rfft(frames * window(), axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    return (log2(power @ triangles().T + FLOOR) + np.float32(8)) / np.float32(8)


def _table(name: str, values: Array) -> str:
    kind = "float" if values.dtype.kind == "f" else "uint8_t"
    texts = [f"{float(v):.9g}" if kind == "float" else str(int(v)) for v in values]
    texts = [t + ".0" if kind == "float" and "." not in t and "e" not in t else t for t in texts]
    suffix = "f" if kind == "float" else ""
    lines, line = [], "   "
    for text in texts:
        if len(line) + len(text) + 3 > 100:
            lines.append(line)
            line = "   "
        line += f" {text}{suffix},"
    head = f"static const {kind} {name}[{len(values)}] = {{"
    return "\n".join([head, *lines, line, "};", ""])


def tables() -> str:
    """``firmware/features_tables.h``."""
    angles = 2 * np.pi * np.arange(FRAME // 2) / FRAME
    return "\n".join(
        [
            "/* features_tables.h - written by ../features.py. */",
            "#include <stdint.h>",
            "",
            _table("hann", window()),
            _table("cosine", np.cos(angles).astype(np.float32)),
            _table("sine", np.sin(angles).astype(np.float32)),
            _table("log2_coefficients", log2_coefficients()),
            _table("band_edges", band_edges()),
        ]
    )


if __name__ == "__main__":
    (HERE / "firmware" / "features_tables.h").write_text(tables())
