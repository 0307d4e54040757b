"""Passes over ``onnx_ir.Model``: one rewrite per file, the framework, and what they share."""
