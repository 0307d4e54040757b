"""16-bit activations with 8-bit weights: two bytes, exact against ONNX Runtime and NumPy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq import Model, operators, reference, steps

import effc
from effc.execute import open_executor
from effc.frontend import import_model
from effc.imported import import_and_simplify
from effc.options import CompileOptions
from effc.passes.integer.integerize import integerize
from effc.passes.integer.operands import shift_of
from effc.passes.integer.reference import execute, run

TYPES = ("uint16", "int16")


class Net(Model):
    """Layers over 16-bit tensors; ``zero`` is a third of the range above its beginning."""

    opset = 21

    def __init__(self, dtype: str, seed: int = 0) -> None:
        super().__init__()
        self.dtype, self.rng = np.dtype(dtype), np.random.default_rng(seed)
        self.zero = np.array(np.iinfo(dtype).min + 65536 // 3, dtype)

    def words(self, name: str, shape: tuple[int, ...]) -> str:
        """A model input of any values, extreme ones too, as floats up to about 4."""
        limits = np.iinfo(self.dtype)
        x = self.rng.integers(limits.min, limits.max + 1, shape).astype(self.dtype)
        x.reshape(-1)[::5] = limits.max
        x.reshape(-1)[1::7] = limits.min
        return self.dq(self.input(name, x), 2.0**-13, self.zero)

    def weights(self, shape: tuple[int, ...], axis: int, most: int = 127) -> str:
        """Symmetric weights whose sums are of the order of their inputs."""
        values = self.rng.integers(-most, most + 1, shape).astype(np.int8)
        terms = values.size / shape[axis]
        scale = self.rng.uniform(0.5, 1.5, shape[axis]) / (most * np.sqrt(terms))
        zero = np.zeros(shape[axis], np.int8)
        return self.dq(self.const(values), scale, zero, axis=axis)

    def q16(self, y: str) -> str:
        return self.q(y, 2.0**-13, self.zero)

    def again(self, y: str) -> str:
        return self.dq(self.q16(y), 2.0**-13, self.zero)

    def conv(self, x: str, filters: int, depth: int, kernel: int, **attrs: int) -> str:
        bias = self.const(self.rng.standard_normal(filters).astype(np.float32))
        w = self.weights((filters, depth, kernel, kernel), 0)
        return self.op("Conv", x, w, bias, pads=[kernel // 2] * 4, **attrs)


@pytest.mark.parametrize("dtype", TYPES)
def test_convolutions_of_words(dtype: str) -> None:
    net = Net(dtype)
    a = net.op("Relu", net.conv(net.words("x", (2, 5, 9, 8)), 12, 5, 3, strides=[2, 2]))
    b = net.again(net.conv(net.again(a), 12, 1, 3, group=12))
    counts = steps(net, net.q16(net.conv(b, 7, 12, 1)))
    assert counts["ConvInteger"] == 6
    assert counts["JoinBytes"] == counts["Requantize"] == 3
    assert counts["TakeByte in quads"] == 6
    assert not counts["Conv"] + counts["DequantizeLinear"]


@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_words(dtype: str) -> None:
    net = Net(dtype)
    y = net.op("MatMul", net.words("x", (2, 6, 37)), net.weights((37, 20), 1))
    y = net.again(net.op("Add", y, net.const(np.linspace(-1, 1, 20, dtype=np.float32))))
    counts = steps(net, net.q16(net.op("MatMul", y, net.weights((20, 9), 1))))
    assert counts["MatMulInteger"] == 4
    assert not counts["MatMul"] + counts["DequantizeLinear"]


@pytest.mark.parametrize("dtype", TYPES)
def test_between_bytes_and_words(dtype: str) -> None:
    """8 bits in and 16 out, and back; and floats behind words."""
    net = Net(dtype)
    octets = np.random.default_rng(1).integers(0, 256, (1, 6, 5, 5)).astype(np.uint8)
    x = net.dq(net.input("x", octets), 0.02, np.array(99, np.uint8))
    wide = net.again(net.conv(x, 8, 6, 3))
    narrow = net.q(net.conv(wide, 8, 8, 1), 0.05, np.array(120, np.uint8))
    counts = steps(net, narrow, net.conv(wide, 4, 8, 1), atol=2.0**-10)
    assert counts["ConvInteger"] == 5  # of bytes, and two of words
    assert counts["TakeByte"] == 2  # once for both readers


def test_float_readers_see_words() -> None:
    net = Net("uint16")
    wide = net.again(net.conv(net.words("x", (1, 4, 4, 4)), 4, 4, 1))
    counts = operators(net, net.op("Sigmoid", wide))
    assert counts["JoinBytes"] == counts["FromQuads"] == counts["DequantizeLinear"] == 1


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_is_exact(data: st.DataObject) -> None:
    """Integers in, floats out: as in float64, whichever shift long sums need."""
    dtype = data.draw(st.sampled_from(TYPES))
    m, k, n = (data.draw(st.integers(1, top)) for top in (5, 900, 6))
    net = Net(dtype, data.draw(st.integers(0, 99)))
    x = net.words("x", (m, k))
    w = net.weights((k, n), 1, data.draw(st.sampled_from([1, 127])))
    proto = net.proto(net.op("MatMul", x, w))
    wanted = reference(proto, net.inputs)
    model, _ = integerize(import_model(net.proto(proto.graph.output[0].name, like=wanted)), "int8")
    got = run(model, net.inputs)[model.graph.outputs[0].name or ""]
    scale, values = net.constants["c3"].astype(np.float64), net.constants["c2"]
    centred = net.inputs["x"].astype(np.float64) - int(net.zero)
    exact = centred @ values.astype(np.float64) * (2.0**-13 * scale)
    shifted = [node for node in model.graph if node.op_type == "JoinBytes"]
    assert len(shifted) == 1
    step = 2.0 ** (shifted[0].attributes.get_int("shift") - 1) * 2.0**-13 * scale  # half of one
    assert (np.abs(got - exact) <= step + 1e-6 * np.abs(exact).max()).all()


def test_sums_that_leave_int32() -> None:
    """The least shift; at the largest sums nothing overflows, beyond them it is refused."""
    assert shift_of(1000, 1000) == 0
    assert shift_of(2**31 // 65535 + 1, 0) == 1
    most = (2**31 - 2**20) // 255
    assert shift_of(most // 2, 0) == 8
    high = low = np.array([255 * (most // 2), -255 * (most // 2)], np.int32)
    joined = execute("JoinBytes", [high, low], {"shift": 8})
    np.testing.assert_array_equal(joined, np.rint((256.0 * high + low) / 256))
    with pytest.raises(ValueError, match="leave int32"):
        shift_of(2**31 // 255, 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("to", [2, 3])
def test_every_word_is_two_bytes(dtype: str, to: int) -> None:
    limits = np.iinfo(dtype)
    x = np.arange(limits.min, limits.max + 1).astype(dtype)
    low, high = (execute("TakeByte", [x], {"index": i, "to": to}) for i in (0, 1))
    offset = 0 if to == 2 else 128
    whole = 256 * (high.astype(np.int64) + offset) + low.astype(np.int64) + offset
    np.testing.assert_array_equal(whole + limits.min, x)


def network(dtype: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    net = Net(dtype)
    a = net.again(net.op("Relu", net.conv(net.words("x", (1, 3, 13, 11)), 12, 3, 3)))
    b = net.again(net.op("Relu", net.conv(a, 12, 1, 3, group=12, strides=[2, 2])))
    flat = net.op("Flatten", net.again(net.conv(b, 5, 12, 1)))
    end = net.q16(net.op("MatMul", flat, net.weights((5 * 7 * 6, 9), 1)))
    proto = net.proto(end)
    return net.proto(end, like=reference(proto, net.inputs)), net.inputs


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", ["host", "android", "android-armv7", "cortex-m4", "riscv32"])
def test_same_bits(target: str, dtype: str, tmp_path: Path) -> None:
    emulator = {
        "android": "qemu-aarch64",
        "android-armv7": "qemu-arm",
        "cortex-m4": "qemu-system-arm",
        "riscv32": "qemu-system-riscv32",
    }.get(target)
    if emulator is not None and shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed")
    model, feeds = network(dtype)
    prepared = import_and_simplify(model, CompileOptions(target=target)).model
    assert not {"Conv", "MatMul", "Cast", "Round"} & {node.op_type for node in prepared.graph}
    expected = run(prepared, feeds)
    artifact = effc.compile(model, target=target, output=tmp_path / "m", verify=False)
    with open_executor(artifact, None, 1) as executor:
        ((name, got),) = executor.run(feeds).items()
    np.testing.assert_array_equal(got, expected[name])
    assert np.abs(got.astype(int) - reference(model, feeds)[0]).max() <= 2
