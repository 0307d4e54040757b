"""Instructions, code and memory of models on emulated microcontrollers, all of them exact.

    python benchmarks/mcu_instructions.py MODEL.onnx [MODEL.onnx ...]
                                          [--target cortex-m4 ...] [--optimize balanced ...]
                                          [--blocks 0.75] [--layers]

MACs are those of the model's integer convolutions and matrix products, zeros included. With
``--blocks`` also with that share of the 8x4 blocks (eight filters, four inputs) of every
convolution that is not depthwise and of every matrix product set to zero (the ones of smallest
magnitude; results mean nothing then).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import effc
from effc.bare.board import BoardExecutor


def cut_blocks(weights: np.ndarray, share: float) -> np.ndarray:
    """``[filters, inputs, *kernel]`` with that share of the 8x4 blocks set to zero."""
    filters, inputs, *kernel = weights.shape
    padded = np.pad(weights, [(0, -filters % 8), (0, -inputs % 4), *[(0, 0)] * len(kernel)])
    blocks = padded.reshape(-(-filters // 8), 8, -(-inputs // 4), 4, -1)
    size = np.abs(blocks.astype(np.int32)).sum(axis=(1, 3))
    keep = size > np.quantile(size, share)
    blocks = blocks * keep[:, None, :, None].astype(np.int8)
    return blocks.reshape(padded.shape)[:filters, :inputs]


def without_blocks(model: onnx.ModelProto, share: float) -> onnx.ModelProto:
    """The model with the 8x4 blocks of smallest magnitude set to zero, layer by layer."""
    constants = {t.name: t for t in model.graph.initializer}
    dequantized = {
        n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear"
    }
    for node in model.graph.node:
        groups = [a.i for a in node.attribute if a.name == "group"]
        if node.op_type not in ("Conv", "MatMul") or groups not in ([], [1]):
            continue
        tensor = constants[dequantized[node.input[1]]]
        weights = numpy_helper.to_array(tensor)
        if node.op_type == "MatMul":
            weights = weights.T
        if weights.shape[1] < 4:
            continue
        cut = cut_blocks(weights, share)
        if node.op_type == "MatMul":
            cut = cut.T
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(cut), tensor.name))
    return model


def row(model: onnx.ModelProto, name: str, target: str, optimize: str, layers: bool) -> int:
    """Print one line; the instructions."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = effc.compile(
            model, target=target, output=Path(folder) / "m", name="m", verify=False,
            optimize=optimize,
        )  # fmt: skip
        manifest = artifact.manifest
        with BoardExecutor(artifact.library, manifest) as board:
            instructions, stack = board.count()
            profile = board.profile(1, 0) if layers else ()
    macs = {layer["name"]: layer["macs"] for layer in manifest["layers"]}
    total = sum(macs.values())
    code = manifest["flash_bytes"] - manifest["weights_bytes"]
    print(
        f"| {name} | {target} | {optimize} | {instructions / 1e6:.3f} M | "
        f"{instructions / total:.3f} | {code} | {manifest['weights_bytes']} | "
        f"{manifest['arena_bytes']} | {stack} |",
        flush=True,
    )
    for layer in profile:
        count, products = layer.instructions or 0, macs.get(layer.name, 0)
        each = f"{count / products:.3f}" if products else "-"
        print(f"    {layer.name:24s} {count:9d} {each}", file=sys.stderr)
    return instructions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", nargs="+", default=["cortex-m4"])
    parser.add_argument("--optimize", nargs="+", default=["balanced"])
    parser.add_argument("--blocks", type=float)
    parser.add_argument("--layers", action="store_true", help="every layer, on standard error")
    args = parser.parse_args()
    print("| model | target | optimize | instructions | per MAC | code | weights | arena | stack |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for path in args.models:
        for target in args.target:
            for optimize in args.optimize:
                dense = row(onnx.load(path), path.stem, target, optimize, args.layers)
                if args.blocks is not None:
                    pruned = without_blocks(onnx.load(path), args.blocks)
                    name = f"{path.stem}, {args.blocks:.0%} of 8x4 blocks zero"
                    sparse = row(pruned, name, target, optimize, args.layers)
                    print(f"    {sparse / dense:.3f} of the dense count", file=sys.stderr)


if __name__ == "__main__":
    main()
