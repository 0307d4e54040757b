"""Convolution kernels, layer by layer.

    nice -n -15 taskset -c 1 python benchmarks/kernel_conv.py --zoo ZOO.PY [NETWORK ...] [--best N]
    python benchmarks/kernel_conv.py --zoo ZOO.PY --arm --counter COUNT.PY [NETWORK ...] [--best N]
    ... --sparsity 0.75 --block 8x4     weights with random block-punched zeros
    ... --int8                          8-bit integers, requantized (peer: QLinearConv)
    ... --layer 256,256,14,14,3         one layer (Cin,Cout,H,W,kernel) instead of networks

Takes the distinct dense convolutions of the networks that ZOO.PY builds (its ``ALL`` maps names
to functions that return ONNX models). On this machine each layer's predicted best ``N``
configurations are timed against ONNX Runtime (one node, one thread, same process,
interleaved). With ``--arm`` instructions are counted instead: a static AArch64 program
calls the stages in a loop, and COUNT.PY counts what ``--runs 1`` and ``--runs 3`` differ by.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.conv import DirectConv
from effc.kernels.conv_shape import ConvShape
from effc.kernels.region import DOMAIN, Op, Region, TensorType, Value
from effc.kernels.sparse_conv import SparseConv
from effc.kernels.template import Config, Kernel, Template
from effc.kernels.winograd import Winograd
from effc.lower import lower
from effc.passes.integer.arithmetic import factors

Layer = tuple[tuple[int, ...], tuple[int, ...], int]  # input, weight, stride
TEMPLATES: tuple[Template, ...] = (Winograd(), DirectConv(), SparseConv())


def layers(model: onnx.ModelProto) -> Counter[Layer]:
    """Distinct ungrouped convolutions and how often they occur."""
    graph = model.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    shapes |= {i.name: tuple(i.dims) for i in graph.initializer}
    found: Counter[Layer] = Counter()
    for node in graph.node:
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv" and attrs.get("group", 1) == 1:
            found[shapes[node.input[0]], shapes[node.input[1]], attrs["strides"][0]] += 1
    return found


def punched(weight: np.ndarray, sparsity: float, block: tuple[int, int]) -> np.ndarray:
    """``weight`` with random kernel positions of ``block`` filters x channels set to zero."""
    cout, cin, *kernel = weight.shape
    units = (-(-cout // block[0]), -(-cin // block[1]), *kernel)
    count = int(np.prod(units))
    mask = np.random.default_rng(1).permutation(count).reshape(units) >= round(count * sparsity)
    return weight * mask.repeat(block[0], 0)[:cout].repeat(block[1], 1)[:, :cin]


def region_of(layer: Layer, sparsity: float = 0.0, block: tuple[int, int] = (1, 1)) -> Region:
    """A region with random weights, padding ``kernel // 2`` and a bias."""
    shape, weight, stride = layer
    rng = np.random.default_rng(0)
    w = punched(rng.standard_normal(weight).astype(np.float32), sparsity, block)
    b = rng.standard_normal(weight[0]).astype(np.float32)
    pad = weight[2] // 2
    out = [(n + 2 * pad - weight[2]) // stride + 1 for n in shape[2:]]
    x = Value("x", TensorType(shape, "float32"))
    y = Value("y", TensorType((shape[0], weight[0], *out), "float32"))
    inputs = (
        x,
        Value("w", TensorType(w.shape, "float32"), w),
        Value("b", TensorType(b.shape, "float32"), b),
    )
    attrs = {"strides": (stride, stride), "pads": (pad,) * 4}
    op = Op("Conv", inputs, (y,), attrs)
    return Region("conv", (op,), op, (x,), (y,))


def integer_region(region: Region, target: Target) -> Region:
    """The same layer in 8 bits: ConvInteger and Requantize on quads (docs/QUANTIZATION.md)."""
    op = region.ops[0]
    x, w, b = (value for value in op.inputs if value is not None)
    assert w.const is not None
    assert b.const is not None
    dtype = target.activation_dtype
    low = int(np.iinfo(dtype).min)
    scale = np.abs(w.const).max() / 127
    found = factors(np.full((w.shape[0] // 4, 1, 1, 4), 0.5 / np.sqrt(w.const[0].size) / 127))

    def quads(value: Value, name: str, dtype: str) -> Value:
        batch, channels, *sizes = value.shape
        return Value(name, TensorType((batch, -(-channels // 4), *sizes, 4), dtype))

    def constant(name: str, array: np.ndarray) -> Value:
        return Value(name, TensorType(array.shape, str(array.dtype)), array)

    data, sums, y = quads(x, "x", dtype), quads(op.outputs[0], "s", "int32"), op.outputs[0]
    out = quads(y, "y", dtype)
    weight = constant("w", np.round(w.const / scale).astype(np.int8))
    bias = constant("b", np.round(b.const * 1000).astype(np.int32))
    attrs = {**op.attrs, "x_zero": low + 110}
    conv = Op("ConvInteger", (data, weight, bias), (sums,), attrs, domain=DOMAIN)
    ends = {"zero": low + 120, "low": low, "high": low + 255, "to": 2 if low == 0 else 3}
    how = {"left": found.left, "right": found.right, **ends}
    multiplier = constant("m", found.multiplier)
    scaled = Op("Requantize", (sums, multiplier), (out,), how, domain=DOMAIN)
    return Region("conv", (conv, scaled), conv, (data,), (out,))


def configurations(
    region: Region, target: Target, best: int, only: str
) -> Iterator[tuple[Template, Config, float]]:
    """The ``best`` predicted configurations of all templates together."""
    found = [
        (cost, template.name, template, config)
        for template in TEMPLATES
        if only in template.name and template.refuse(region, target) is None
        for config, cost in template.candidates(region, target)
    ]
    for cost, _, template, config in sorted(found, key=lambda item: item[0])[:best]:
        yield template, config, cost


def aligned(nbytes: int) -> np.ndarray:
    """64-byte aligned memory."""
    block = np.zeros(nbytes + 64, np.uint8)
    start = -block.ctypes.data % 64
    return block[start : start + nbytes]


def load(kernel: Kernel, region: Region, target: Target) -> Callable[[], None]:
    """Compile a kernel into this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.o"
        names = {f"k{i}": stage.func for i, stage in enumerate(kernel.stages)}
        path.write_bytes(lower(names, target))
        link = [sys.executable, "-m", "ziglang", "cc", "-shared", "-o", f"{folder}/k.so", str(path)]
        subprocess.run(link, check=True, capture_output=True)
        code = ctypes.CDLL(f"{folder}/k.so")
    memory = {f"t:{name}": aligned(size) for name, size in kernel.workspaces.items()}
    for name, array in kernel.weights.items():
        memory[f"w:{name}"] = aligned(array.nbytes)
        memory[f"w:{name}"][:] = array.reshape(-1).view(np.uint8)
    for value in (*region.inputs, *region.outputs):
        memory[value.name] = aligned(value.type.nbytes)
        numbers = np.random.default_rng(1).random(value.type.size)
        if value.dtype != "float32":
            numbers = np.floor(numbers * 256) + np.iinfo(value.dtype).min
        memory[value.name].view(value.dtype)[:] = numbers
    memory["scratch"] = aligned(max(stage.scratch for stage in kernel.stages))
    calls = []
    for i, stage in enumerate(kernel.stages):
        pointers: list[Any] = [ctypes.c_void_p(memory[ref].ctypes.data) for ref in stage.args]
        calls.append((getattr(code, f"k{i}"), [*pointers, 0, stage.extent]))

    def run() -> None:
        for function, args in calls:
            function(*args)

    run.memory = memory  # type: ignore[attr-defined]
    return run


def onnx_runtime(region: Region, integer: bool) -> Callable[[], object]:
    """The same layer in ONNX Runtime; in 8 bits on request."""
    op = region.ops[0]
    x, w, b = (value for value in op.inputs if value is not None)
    assert w.const is not None
    assert b.const is not None
    constants = {"w": w.const, "b": b.const}
    names, kind = ["x", "w", "b"], 1
    if integer:
        one, byte = np.float32(0.01), np.uint8(120)
        weight = np.round(w.const / np.abs(w.const).max() * 127).astype(np.int8)
        constants = {"w": weight, "b": np.round(b.const * 1000).astype(np.int32)}
        constants |= {"s": one, "z": byte, "ws": one, "wz": np.int8(0), "ys": np.float32(1)}
        names, kind = ["x", "s", "z", "w", "ws", "wz", "ys", "z", "b"], 2
    graph = helper.make_graph(
        [helper.make_node("QLinearConv" if integer else "Conv", names, ["y"], **op.attrs)],
        "layer",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, op.outputs[0].shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    numbers = np.random.default_rng(1).random(x.shape, np.float32)
    feeds = {"x": np.floor(numbers * 256).astype(np.uint8) if integer else numbers}
    return lambda: session.run(None, feeds)


def fastest(runs: list[Callable[[], object]], rounds: int = 9) -> list[float]:
    """Least seconds of each, interleaved."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def describe(template: Template, config: Config) -> str:
    return template.name + " " + " ".join(f"{k}={v}" for k, v in config.items())


def time_layers(found: Counter[Layer], target: Target, args: argparse.Namespace) -> None:
    """Print each layer's ratio to ONNX Runtime and the sum weighted by count."""
    ours = peer = 0.0
    for layer, count in found.items():
        plain = region_of(layer, args.sparsity, args.block)
        region = integer_region(plain, target) if args.int8 else plain
        chosen = list(configurations(region, target, args.best, args.only))
        runs: list[Callable[[], object]] = [onnx_runtime(plain, args.int8)]
        runs += [load(t.build(region, target, c), region, target) for t, c, _ in chosen]
        times = fastest(runs)
        pick = int(np.argmin(times[1:]))
        ours += count * times[1 + pick]
        peer += count * times[0]
        macs = ConvShape.of(plain.ops[0]).macs
        print(
            f"{count:2d} x {layer!s:44s} {times[0] * 1e3:8.3f} -> {times[1 + pick] * 1e3:8.3f} ms"
            f"  ratio {times[1 + pick] / times[0]:.2f} (first {times[1] / times[0]:.2f})"
            f"  {2e-9 * macs / times[1 + pick]:4.0f} GFLOPS  {describe(*chosen[pick][:2])}",
            flush=True,
        )
    print(f"sum {peer * 1e3:.2f} -> {ours * 1e3:.2f} ms, ratio {ours / peer:.3f}", flush=True)


_PROGRAM = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
{declarations}
int main(int argc, char **argv) {{
  int runs = argc > 2 ? atoi(argv[2]) : 1;
  void *b[{buffers}];
  static const size_t size[] = {{{sizes}}};
  for (int i = 0; i < {buffers}; i++) b[i] = aligned_alloc(64, (size[i] + 127) & ~(size_t)63);
  FILE *f = fopen("{weights}", "rb");
  for (int i = 0; i < {constants}; i++) if (!f || fread(b[i], 1, size[i], f) != size[i]) return 1;
  fclose(f);
  for (int r = 0; r < runs; r++) {{
{calls}
  }}
  return 0;
}}
"""


def arm_program(kernel: Kernel, region: Region, target: Target, folder: Path) -> Path:
    """A static program that runs the kernel ``--runs N`` times with its weights, on any data."""
    sizes = {f"w:{name}": array.nbytes for name, array in kernel.weights.items()}
    constants = [np.ascontiguousarray(array).tobytes() for array in kernel.weights.values()]
    (folder / "weights.bin").write_bytes(b"".join(constants))
    sizes |= {f"t:{name}": size for name, size in kernel.workspaces.items()}
    sizes |= {v.name: v.type.nbytes for v in (*region.inputs, *region.outputs)}
    sizes["scratch"] = max(stage.scratch for stage in kernel.stages)
    index = {name: i for i, name in enumerate(sizes)}
    declarations, calls = [], []
    for i, stage in enumerate(kernel.stages):
        pointers = ", ".join(f"b[{index[ref]}]" for ref in stage.args)
        types = ", ".join(["void *"] * len(stage.args))
        declarations.append(f"void k{i}({types}, int32_t, int32_t);")
        calls.append(f"    k{i}({pointers}, 0, {stage.extent});")
    source = _PROGRAM.format(
        declarations="\n".join(declarations),
        weights=folder / "weights.bin",
        constants=len(constants),
        buffers=len(sizes),
        sizes=", ".join(map(str, sizes.values())),
        calls="\n".join(calls),
    )
    (folder / "main.c").write_text(source)
    names = {f"k{i}": stage.func for i, stage in enumerate(kernel.stages)}
    (folder / "k.o").write_bytes(lower(names, target))
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target.runner_target, "-static"]
    command += ["-O1", "-o", str(folder / "run"), str(folder / "main.c"), str(folder / "k.o")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "run"


def count_layers(found: Counter[Layer], target: Target, args: argparse.Namespace) -> None:
    """Print each layer's instructions and the sum weighted by count."""
    total = macs = 0.0
    for layer, count in found.items():
        plain = region_of(layer, args.sparsity, args.block)
        region = integer_region(plain, target) if args.int8 else plain
        work = ConvShape.of(plain.ops[0]).macs
        rows = []
        for template, config, cost in configurations(region, target, args.best, args.only):
            kernel = template.build(region, target, config)
            with tempfile.TemporaryDirectory() as folder:
                program = arm_program(kernel, region, target, Path(folder))
                command = [sys.executable, str(args.counter), "exe", str(program), "--json"]
                command += ["--runs-a", "1", "--runs-b", "2", "--cpu", "a76", "--", "--runs"]
                done = subprocess.run(command[:-2], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stdout + done.stderr)
            rows.append((json.loads(done.stdout), describe(template, config), cost))
        row, text, cost = min(rows, key=lambda item: item[0]["total"])
        total += count * row["total"]
        macs += count * work
        print(
            f"{count:2d} x {layer!s:44s} {row['total'] / 1e6:8.2f} M  per MAC/4"
            f" {row['total'] * 4 / work:.3f} (first {rows[0][0]['total'] * 4 / work:.3f},"
            f" predicted {cost * 4 / work:.3f})  {row['ldB'] / 1e6:7.1f} MB loaded  {text}",
            flush=True,
        )
    print(f"sum {total / 1e6:.1f} M instructions, {total * 4 / macs:.3f} per MAC/4", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--zoo", type=Path)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--layer", type=lambda s: tuple(map(int, s.split(","))), action="append")
    parser.add_argument("--target", default="", help="default: host, or linux-arm64")
    parser.add_argument("--best", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a template's name")
    parser.add_argument("--arm", action="store_true")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--block", type=lambda s: tuple(map(int, s.split("x"))), default=(8, 4))
    parser.add_argument("--counter", type=Path)
    args = parser.parse_args()
    target = get_target(args.target or ("linux-arm64" if args.arm else "host"))
    run = count_layers if args.arm else time_layers
    if args.layer:
        sizes = [((1, i, h, w), (o, i, k, k), 1) for i, o, h, w, k in args.layer]
        run(Counter(sizes), target, args)
        return
    spec = importlib.util.spec_from_file_location("zoo", args.zoo)
    assert spec is not None
    assert spec.loader is not None
    zoo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(zoo)
    for name in args.networks or zoo.ALL:
        print(name)
        found = layers(zoo.ALL[name]())
        run(found, target, args)


if __name__ == "__main__":
    main()
