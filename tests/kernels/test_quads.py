"""ToQuads and FromQuads with epilogues: ragged channels, every element size."""

from __future__ import annotations

import numpy as np
import pytest
from boards import Problem, run_on_board
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_cases import Node, check, targets

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.quads import FromQuadsTemplate, ToQuadsTemplate


@given(
    st.sampled_from(["int8", "uint8", "int32", "float32"]),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 23),
)
@settings(max_examples=12, deadline=None)
def test_there_and_back(dtype: str, channels: int, height: int, width: int) -> None:
    x = np.random.default_rng(channels).integers(0, 100, (2, channels, height, width)).astype(dtype)
    check(ToQuadsTemplate(), [Node("ToQuads", ["x"], attrs={"fill": 7})], {"x": x})
    last = Node("ToQuads", ["x"], attrs={"fill": 7, "last": 1})
    check(ToQuadsTemplate(), [last], {"x": np.ascontiguousarray(np.moveaxis(x, 1, -1))})
    quads = np.random.default_rng(1).integers(0, 100, (2, -(-channels // 4), height, width, 4))
    node = Node("FromQuads", ["x"], attrs={"channels": channels})
    check(FromQuadsTemplate(), [node], {"x": quads.astype(dtype)})


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.vector_bits}{t.cpu}")
def test_epilogues(target: Target) -> None:
    x = np.random.default_rng(0).standard_normal((1, 6, 5, 7)).astype(np.float32)
    nodes = [
        Node("ToQuads", ["x"], "t"),
        Node("Mul", ["t", "s"], "m", domain=""),
        Node("Cast", ["m"], attrs={"to": 3}, domain=""),
    ]
    scalar = {"s": np.array(20, np.float32)}
    check(ToQuadsTemplate(), nodes, {"x": x}, scalar, target=target)
    per_channel = {"s": np.arange(8, dtype=np.float32).reshape(2, 1, 1, 4)}
    check(ToQuadsTemplate(), nodes, {"x": x}, per_channel, target=target)
    q = np.random.default_rng(0).integers(0, 256, (1, 2, 5, 7, 4), np.uint8)
    nodes = [
        Node("FromQuads", ["x"], "f", {"channels": 6}),
        Node("Cast", ["f"], "c", {"to": 1}, domain=""),
        Node("Mul", ["c", "s"], domain=""),
    ]
    scales = {"s": np.linspace(1, 2, 6, dtype=np.float32).reshape(6, 1, 1)}
    check(FromQuadsTemplate(), nodes, {"x": q}, scales, target=target)


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
def test_three_channels_by_words_on_boards(core: str) -> None:
    rng = np.random.default_rng(5)
    problems: list[Problem] = [
        (
            [Node("ToQuads", ["x"], attrs={"fill": fill, "last": 1})],
            {"x": rng.integers(-128, 128, (1, *size, 3)).astype(np.int8)},
            {},
        )
        for size, fill in (((5, 7), -3), ((2, 2), 127), ((1, 3), -128), ((4, 4), 0))
    ]
    for result in run_on_board(problems, ToQuadsTemplate(), get_target(core)):
        np.testing.assert_array_equal(result.got, result.want)
