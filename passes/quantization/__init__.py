"""Post-training quantization: float ONNX in, plain QDQ ONNX out, from unlabelled samples.

``points`` says which values are quantized and which share a scale, ``histogram`` and ``ranges``
choose their scales, ``insert_qdq`` writes QuantizeLinear and DequantizeLinear. ``grid`` is the
arithmetic that all of them mean.
"""
