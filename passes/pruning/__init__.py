"""Pruning: which weights become zero, by which rule, and what the others become.

``scheme`` says what is removed together, ``project`` chooses by magnitude (or any other score),
``surgeon`` by Optimal Brain Surgeon from calibration data, ``prune_weights`` puts the result
into a model. The mask is the weights: pruned models are ordinary ONNX models with zeros.
"""
