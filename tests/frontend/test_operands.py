"""What ONNX's shape inference lets through is refused before a kernel is made of it."""

from __future__ import annotations

import onnx
import pytest

from effc.errors import ModelError
from effc.frontend import import_model

CONV = "<float[4,2,3,3] w = {" + ",".join(["1"] * 72) + "}>"
CASES = {
    "groups": ("float[1,4,6,6] x", CONV, "Conv<group = 4>(x, w)"),
    "no group": ("float[1,2,6,6] x", CONV, "Conv<group = 0>(x, w)"),
    "channels": ("float[1,4,6,6] x", CONV, "Conv(x, w)"),
    "outputs": ("float[1,6,6,6] x", CONV, "Conv<group = 3>(x, w)"),
    "kernel": ("float[1,2,6,6] x", CONV, "Conv<kernel_shape = [5, 5]>(x, w)"),
    "padding": ("float[1,2,6,6] x", CONV, "Conv<pads = [99999, 99999, 99999, 99999]>(x, w)"),
    "transposed": ("float[1,3,6,6] x", CONV, "ConvTranspose(x, w)"),
    "cropped": ("float[1,4,6,6] x", CONV, "ConvTranspose<pads = [9, 9, 9, 9]>(x, w)"),
    "transposed reach": (
        "float[1,4,6,6] x",
        CONV,
        "ConvTranspose<dilations = [99999, 99999], pads = [99999, 99999, 99999, 99999]>(x, w)",
    ),
    "dilation": (
        "float[1,1,4,4] x",
        "",
        "MaxPool<kernel_shape = [3, 3], dilations = [1000000000, 1000000000],"
        "pads = [1000000000, 1000000000, 1000000000, 1000000000]>(x)",
    ),
    "window": ("float[1,1,4,4] x", "", "LRN<size = 0>(x)"),
    "wide window": ("float[1,1,4,4] x", "", "LRN<size = 1000000000000>(x)"),
    "blocks": ("float[1,4,4,4] x", "", "DepthToSpace<blocksize = 3>(x)"),
    "blocks of space": ("float[1,4,4,5] x", "", "SpaceToDepth<blocksize = 2>(x)"),
    "types": ("float[4] x", "<double w = {0.0}>", "Clip(x, w)"),
    "axis": ("float[1,4] x", "", "Softmax<axis = 2>(x)"),
    "negative size": ("float[4] x", "<int64[2] p = {-10, 0}>", "Pad(x, p)"),
    "infinite scale": ("float[1,1,4,4] x", "<float[4] s = {1.0, 1.0, inf, 2.0}>", "Resize(x, , s)"),
}


@pytest.mark.parametrize("case", CASES)
def test_nonsense_is_refused(case: str) -> None:
    operand, weights, call = CASES[case]
    outputs = ",".join("abcd"[: operand.count(",") + 1])
    text = f"g ({operand}) => (float[{outputs}] y) {weights} {{ y = {call} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    with pytest.raises(ModelError):
        import_model(proto)
