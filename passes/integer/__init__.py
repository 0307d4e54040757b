"""Quantized models in integer arithmetic: what docs/QUANTIZATION.md describes.

Import the modules; the package itself is empty, so that shape inference can use it.
"""
