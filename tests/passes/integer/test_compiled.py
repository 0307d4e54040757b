"""A network of all integer operators, compiled: the bits of the NumPy executor on every target."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from qdq import Model, reference

import effc
from effc.execute import open_executor
from effc.imported import import_and_simplify
from effc.options import CompileOptions
from effc.passes.integer.reference import run

ZERO = np.array(0, np.int8)


class Net(Model):
    """Layers over tensors on the grid (0.05, 7)."""

    grid = 0.05, np.array(7, np.uint8)

    def quantized(self, y: str) -> str:
        return self.dq(self.q(y, *self.grid), *self.grid)

    def conv(
        self, x: str, filters: int, depth: int, kernel: int, relu: bool = True, **attrs: int
    ) -> str:
        generator = np.random.default_rng(len(self.nodes))
        values = generator.integers(-90, 91, (filters, depth, kernel, kernel), np.int8)
        scale = generator.uniform(0.5, 1.5, filters) * 0.4 / (kernel * np.sqrt(depth) * 50)
        w = self.dq(self.const(values), scale, np.zeros(filters, np.int8), axis=0)
        bias = self.const(generator.standard_normal(filters).astype(np.float32))
        y = self.op("Conv", x, w, bias, pads=[kernel // 2] * 4, **attrs)
        return self.quantized(self.op("Relu", y) if relu else y)


def network() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    net = Net()
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 13, 11), np.uint8)
    a = net.conv(net.dq(net.input("x", x), *net.grid), 12, 3, 3)
    b = net.conv(a, 12, 1, 3, group=12)  # depthwise
    silu = net.quantized(net.op("Mul", b, net.quantized(net.op("Sigmoid", b))))
    total = net.quantized(net.op("Sub", silu, net.conv(a, 12, 12, 1, relu=False)))
    squeeze = net.quantized(net.op("GlobalAveragePool", total))
    gate = net.quantized(net.op("HardSigmoid", net.conv(squeeze, 12, 12, 1, relu=False)))
    scaled = net.quantized(net.op("Mul", total, gate))
    pads = [0, 0, 1, 1]
    largest = net.op("MaxPool", scaled, kernel_shape=[2, 2], strides=[2, 2], pads=pads)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    mean = net.quantized(net.op("AveragePool", scaled, **window))
    joined = net.quantized(net.op("Concat", largest, mean, net.conv(mean, 6, 12, 3), axis=1))
    groups = net.conv(joined, 10, 15, 1, group=2)
    slope = net.const(np.linspace(0, 1, 10, dtype=np.float32).reshape(10, 1, 1))
    groups = net.quantized(net.op("PRelu", groups, slope))
    sizes = ["", net.const(np.array([1, 1, 2, 2], np.float32))]
    attrs = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    wide = net.op("Resize", groups, *sizes, **attrs)
    taps = net.const(np.random.default_rng(2).integers(-99, 99, (10, 8, 3, 3), np.int8))
    taps = net.dq(taps, np.linspace(0.002, 0.004, 8), np.zeros(8, np.int8), axis=1)
    more = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    up = net.quantized(net.op("Relu", net.op("ConvTranspose", groups, taps, **more)))
    both = net.op("Concat", net.quantized(wide), up, axis=1)
    sizes = ["", "", net.const(np.array([1, 18, 5, 5], np.int64))]
    small = net.quantized(net.op("Resize", both, *sizes, mode="linear"))
    flat = net.op("Flatten", net.quantized(net.op("Transpose", small, perm=[0, 2, 3, 1])))
    weights = np.random.default_rng(1).integers(-128, 128, (18 * 25, 9), np.int8)
    w = net.dq(net.const(weights), 0.006, ZERO)
    scores = net.op("Add", net.op("MatMul", flat, w), net.const(np.ones(9, np.float32)))
    end = net.q(scores, 0.2, np.array(3, np.int8))
    proto = net.proto(end)
    return net.proto(end, like=reference(proto, net.inputs)), net.inputs


@pytest.mark.parametrize("target", ["host", "android", "android-armv7", "android-x86_64"])
def test_same_bits(target: str, tmp_path: Path) -> None:
    emulator = {"android": "qemu-aarch64", "android-armv7": "qemu-arm"}.get(target)
    if emulator is not None and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed (apt-get install qemu-user)")
    model, feeds = network()
    prepared = import_and_simplify(model, CompileOptions(target=target)).model
    kinds = {node.op_type for node in prepared.graph}
    assert not {"Conv", "MatMul", "Gemm", "Cast", "Round"} & kinds
    expected = run(prepared, feeds)
    want = reference(model, feeds)[0]
    artifact = effc.compile(model, target=target, output=tmp_path / "m", verify=False)
    with open_executor(artifact, None, 1) as executor:
        ((name, got),) = executor.run(feeds).items()
    np.testing.assert_array_equal(got, expected[name])
    assert want.std() > 10  # the outputs say something
    assert np.abs(got.astype(int) - want).max() <= 2


@pytest.mark.parametrize("target", ["host", "android"])
def test_sums_that_leave_as_int32_or_float(target: str, tmp_path: Path) -> None:
    """Weights of 9 bits in two parts, ONNX's integer operators, floats between quads."""
    if target == "android" and shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")
    net = Net()
    generator = np.random.default_rng(0)
    x = net.input("x", generator.integers(0, 256, (1, 8, 6, 7), np.uint8))
    zero = net.input("zero", np.array(130, np.uint8))
    wide = net.const(generator.integers(0, 256, (9, 8, 3, 3), np.uint8))
    exact = net.op("ConvInteger", x, wide, zero, net.const(np.array(7, np.uint8)))
    w = net.dq(wide, 0.0004, np.array(7, np.uint8))
    first = net.op("Conv", net.dq(x, *net.grid), w, pads=[1] * 4)
    silu = net.op("Mul", first, net.op("Sigmoid", first))
    inner = net.quantized(silu)
    small = net.const(generator.integers(-90, 91, (9, 9, 1, 1), np.int8))
    second = net.op("Conv", inner, net.dq(small, 0.001, ZERO))
    y = net.q(net.op("Relu", net.op("Add", second, silu)), *net.grid)
    rows = net.op("MatMulInteger", x, net.const(generator.integers(0, 256, (7, 5), np.uint8)), zero)
    outputs = exact, rows, second, y
    wanted = reference(net.proto(*outputs), net.inputs)
    model = net.proto(*outputs, like=wanted)
    prepared = import_and_simplify(model, CompileOptions(target=target)).model
    assert not {"Conv", "MatMul"} & {node.op_type for node in prepared.graph}
    artifact = effc.compile(model, target=target, output=tmp_path / "m", verify=False)
    with open_executor(artifact, None, 1) as executor:
        results = executor.run(net.inputs)
    for got, want in zip(results.values(), wanted, strict=True):
        limit = {"int32": 0, "uint8": 1, "float32": 1e-2}[want.dtype.name]
        assert np.abs(got.astype(np.float64) - want).max() <= limit
