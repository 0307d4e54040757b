"""Depthwise, pooling, transposed convolution and matrix product kernels, layer by layer.

    nice -n -15 taskset -c 1 python benchmarks/kernel_misc.py [GROUP ...] [--best N]
    python benchmarks/kernel_misc.py --counter COUNT.PY [GROUP ...] [--best N]
    ... --int8                  depthwise and matmul in 8 bits, requantized (peer: our float32)
    ... --int8 --sparsity 0.75  matmul with 8x4 blocks of zeros (peer: our dense 8 bits)

On this machine each layer's predicted best ``N`` configurations are timed against ONNX
Runtime (one node, one thread, same process, interleaved). With ``--counter`` executed
AArch64 instructions per output element are printed instead (see ``kernel_conv.py``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from kernel_conv import arm_program, describe, fastest, integer_region, load
from onnx import helper, numpy_helper, shape_inference

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.kernels.registry import choices
from effc.kernels.template import Config, Template
from effc.passes.integer.arithmetic import factors

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One operator: ``inputs`` are given at run time, ``weights`` are constant."""

    op: str
    inputs: tuple[Dims, ...]
    weights: tuple[Dims, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Any:
        """The layer as an ONNX model with random weights."""
        rng = np.random.default_rng(0)
        names = [f"i{i}" for i in range(len(self.inputs) + len(self.weights))]
        runtime, constant = names[: len(self.inputs)], names[len(self.inputs) :]
        graph = helper.make_graph(
            [helper.make_node(self.op, names, ["y"], **self.attrs)],
            "layer",
            [
                helper.make_tensor_value_info(n, 1, s)
                for n, s in zip(runtime, self.inputs, strict=True)
            ],
            [helper.make_empty_tensor_value_info("y")],
            [
                numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n)
                for n, s in zip(constant, self.weights, strict=True)
            ],
        )
        opset = [helper.make_opsetid("", 20)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        return shape_inference.infer_shapes(model, strict_mode=True)

    def region(self) -> Region:
        """The layer as a region."""
        graph = self.model().graph
        constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        values = [
            Value(n, TensorType(constants[n].shape, "float32"), constants[n])
            if n in constants
            else Value(n, TensorType(self.inputs[i], "float32"))
            for i, n in enumerate(graph.node[0].input)
        ]
        shape = tuple(d.dim_value for d in graph.output[0].type.tensor_type.shape.dim)
        y = Value("y", TensorType(shape, "float32"))
        op = Op(self.op, tuple(values), (y,), dict(self.attrs))
        return Region("layer", (op,), op, tuple(values[: len(self.inputs)]), (y,))

    def __str__(self) -> str:
        shapes = " ".join("x".join(map(str, s)) for s in (*self.inputs, *self.weights[:1]))
        strides = self.attrs.get("strides")
        return f"{self.op} {shapes}" + (f" /{strides[0]}" if strides else "")


def _depthwise(channels: int, size: int, stride: int, kernel: int = 3) -> Layer:
    attrs = {"group": channels, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
    weights = ((channels, 1, kernel, kernel), (channels,))
    return Layer("Conv", ((1, channels, size, size),), weights, attrs)


def _pool(op: str, channels: int, size: int, kernel: int, stride: int) -> Layer:
    pad = kernel // 2 if kernel % 2 else 0
    attrs = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    return Layer(op, ((1, channels, size, size),), (), attrs)


def _transpose(cin: int, cout: int, size: int, kernel: int, stride: int) -> Layer:
    pad = kernel // 2 if kernel % 2 else (kernel - stride) // 2
    extra = stride - 1 if kernel % 2 else 0
    attrs = {"strides": [stride] * 2, "pads": [pad] * 4, "output_padding": [extra] * 2}
    weights = ((cin, cout, kernel, kernel), (cout,))
    return Layer("ConvTranspose", ((1, cin, size, size),), weights, attrs)


def _linear(m: int, k: int, n: int) -> Layer:
    return Layer("Gemm", ((m, k),), ((k, n), (n,)))


LAYERS: dict[str, tuple[Layer, ...]] = {
    "mobilenet_v1": (
        _depthwise(32, 112, 1),
        _depthwise(64, 112, 2),
        _depthwise(128, 56, 1),
        _depthwise(128, 56, 2),
        _depthwise(256, 28, 1),
        _depthwise(256, 28, 2),
        _depthwise(512, 14, 1),
        _depthwise(512, 14, 2),
        _depthwise(1024, 7, 1),
    ),
    "mobilenet_v2": (
        _depthwise(96, 112, 2),
        _depthwise(144, 56, 1),
        _depthwise(144, 56, 2),
        _depthwise(192, 28, 1),
        _depthwise(192, 28, 2),
        _depthwise(384, 14, 1),
        _depthwise(576, 14, 1),
        _depthwise(576, 14, 2),
        _depthwise(960, 7, 1),
    ),
    "depthwise": (
        _depthwise(240, 28, 1, 5),
        _depthwise(72, 56, 2, 5),
        _depthwise(672, 14, 1, 5),
        _depthwise(672, 14, 2, 5),
        _depthwise(96, 56, 1, 7),
        _depthwise(384, 14, 1, 7),
    ),
    "pool": (
        _pool("MaxPool", 64, 112, 3, 2),
        _pool("MaxPool", 64, 224, 2, 2),
        _pool("MaxPool", 512, 28, 2, 2),
        _pool("MaxPool", 512, 10, 5, 1),
        _pool("MaxPool", 512, 10, 9, 1),
        _pool("MaxPool", 512, 10, 13, 1),
        _pool("AveragePool", 128, 56, 3, 1),
        _pool("AveragePool", 64, 28, 2, 2),
        Layer("GlobalAveragePool", ((1, 1280, 7, 7),)),
        Layer("GlobalAveragePool", ((1, 64, 56, 56),)),
    ),
    "conv_transpose": (
        _transpose(64, 64, 28, 4, 2),
        _transpose(128, 64, 14, 2, 2),
        _transpose(64, 32, 56, 3, 2),
        _transpose(56, 1, 64, 9, 2),
        _transpose(56, 1, 64, 9, 3),
        _transpose(56, 1, 64, 9, 4),
    ),
    "matmul": (
        _linear(1, 640, 128),
        _linear(1, 1280, 1000),
        _linear(1, 2048, 1000),
        _linear(1, 4096, 4096),
        _linear(196, 512, 512),
        _linear(128, 768, 768),
        _linear(128, 768, 3072),
        Layer("MatMul", ((12, 128, 64), (12, 64, 128))),
        Layer("MatMul", ((12, 128, 128), (12, 128, 64))),
        Layer("MatMul", ((256, 256), (256, 256))),
        Layer("Gemm", ((128, 256), (200, 256)), (), {"transB": 1}),
    ),
}


def configurations(
    region: Region, target: Target, best: int
) -> Iterator[tuple[Template, Config, float]]:
    """The ``best`` predicted configurations of all templates that take the region."""
    for choice in choices(region, target)[:best]:
        yield choice.template, choice.config, choice.cost


def integer_product(region: Region, target: Target, sparsity: float = 0.0) -> Region:
    """A matrix product in 8 bits: MatMulInteger and Requantize (docs/QUANTIZATION.md).

    Args:
        sparsity: Fraction of the constant operand's blocks, 8 columns by 4 rows, that is zero.
    """
    left, right = region.ops[0].inputs[:2]
    assert left is not None
    assert right is not None
    dtype, shape = target.activation_dtype, region.outputs[0].shape
    low = int(np.iinfo(dtype).min)
    found = factors(np.full(shape[-1], 0.5 / np.sqrt(left.shape[-1]) / 127))
    a = Value("a", TensorType(left.shape, dtype))
    weights = None
    if right.const is not None:
        weights = np.round(right.const / np.abs(right.const).max() * 127).astype(np.int8)
        rows, columns = weights.shape
        kept = np.random.default_rng(2).random((-(-rows // 4), -(-columns // 8))) >= sparsity
        weights *= np.kron(kept, np.ones((4, 8), bool))[:rows, :columns]
    b = Value("b", TensorType(right.shape, dtype if weights is None else "int8"), weights)
    m = Value("m", TensorType(found.multiplier.shape, "int32"), found.multiplier)
    sums, y = Value("s", TensorType(shape, "int32")), Value("y", TensorType(shape, dtype))
    zeros = {"a_zero": low + 110, "b_zero": low + 130 if weights is None else 0}
    ends = {"zero": low + 120, "low": low, "high": low + 255, "to": 2 if low == 0 else 3}
    how = {"left": found.left, "right": found.right, **ends}
    product = Op("MatMulInteger", (a, b), (sums,), zeros, domain=DOMAIN)
    scaled = Op("Requantize", (sums, m), (y,), how, domain=DOMAIN)
    return Region("product", (product, scaled), product, (a, b) if weights is None else (a,), (y,))


def in_bytes(layer: Layer, target: Target, sparsity: float = 0.0) -> Region | None:
    """The layer in 8 bits, if there is a kernel for it (with zeros: a product by a constant)."""
    if sparsity and not (layer.op in ("MatMul", "Gemm") and layer.weights):
        return None
    if layer.op == "Conv":
        return integer_region(layer.region(), target)
    if layer.op in ("MatMul", "Gemm") and not layer.attrs:
        return integer_product(layer.region(), target, sparsity)
    return None


def onnx_runtime(layer: Layer) -> Callable[[], object]:
    """The layer in ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        layer.model().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(1)
    feeds = {f"i{i}": rng.random(s, np.float32) for i, s in enumerate(layer.inputs)}
    return lambda: session.run(None, feeds)


def ours(region: Region, target: Target) -> Callable[[], object]:
    """The predicted best kernel of a region."""
    template, config, _ = next(configurations(region, target, 1))
    return load(template.build(region, target, config), region, target)


def peer_of(layer: Layer, target: Target, args: argparse.Namespace) -> Callable[[], object]:
    """What a layer is compared with."""
    if not args.int8:
        return onnx_runtime(layer)
    dense = in_bytes(layer, target) if args.sparsity else layer.region()
    assert dense is not None
    return ours(dense, target)


def time_group(layers: tuple[Layer, ...], target: Target, args: argparse.Namespace) -> list[float]:
    """Print and return the ratio of each layer to its peer."""
    ratios = []
    for layer in layers:
        region = in_bytes(layer, target, args.sparsity) if args.int8 else layer.region()
        if region is None:
            continue
        chosen = list(configurations(region, target, args.best))
        peer = peer_of(layer, target, args)
        runs: list[Callable[[], object]] = [peer]
        runs += [load(t.build(region, target, c), region, target) for t, c, _ in chosen]
        times = fastest(runs, 60)
        pick = int(np.argmin(times[1:]))
        ratios.append(times[1 + pick] / times[0])
        print(
            f"{layer!s:48s} {times[0] * 1e3:8.3f} -> {times[1 + pick] * 1e3:8.3f} ms"
            f"  ratio {ratios[-1]:.2f} (first {times[1] / times[0]:.2f})"
            f"  {describe(*chosen[pick][:2])}",
            flush=True,
        )
    return ratios


def count_group(layers: tuple[Layer, ...], target: Target, args: argparse.Namespace) -> float:
    """Print each layer's instructions per output; returns their sum."""
    total = 0.0
    for layer in layers:
        region = in_bytes(layer, target, args.sparsity) if args.int8 else layer.region()
        if region is None:
            continue
        rows = []
        for template, config, cost in configurations(region, target, args.best):
            kernel = template.build(region, target, config)
            with tempfile.TemporaryDirectory() as folder:
                program = arm_program(kernel, region, target, Path(folder))
                command = [sys.executable, str(args.counter), "exe", str(program), "--json"]
                command += ["--runs-a", "1", "--runs-b", "2", "--cpu", args.cpu]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            rows.append((json.loads(done.stdout), describe(template, config), cost))
        row, text, _ = min(rows, key=lambda item: item[0]["total"])
        total += row["total"]
        size = region.outputs[0].type.size
        print(
            f"{layer!s:48s} {row['total'] / 1e6:8.3f} M, per 4 outputs"
            f" {row['total'] * 4 / size:7.2f} (first {rows[0][0]['total'] * 4 / size:7.2f})"
            f"  {row['ldB'] / size:6.1f} B loaded per output  {text}",
            flush=True,
        )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", choices=[*LAYERS, []], metavar="GROUP")
    parser.add_argument("--best", type=int, default=1)
    parser.add_argument("--counter", type=Path, help="count AArch64 instructions with this script")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--sparsity", type=float, default=0.0, help="of matmul in 8 bits")
    parser.add_argument("--target", default="linux-arm64", help="what to count for")
    parser.add_argument("--cpu", default="a76", help="the counter's name of a processor for it")
    args = parser.parse_args()
    for group in args.groups or LAYERS:
        print(group)
        if args.counter:
            target = get_target(args.target)
            total = count_group(LAYERS[group], target, args)
            print(f"sum {total / 1e6:.2f} M instructions", flush=True)
        else:
            ratios = time_group(LAYERS[group], get_target("host"), args)
            mean = float(np.exp(np.mean(np.log(ratios))))
            print(f"geometric mean {mean:.2f}, worst {max(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
