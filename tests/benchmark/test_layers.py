"""Layers of several artifacts side by side: joined by the ONNX nodes that they share."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effc.benchmark.layers import layer_rows, layers_side_by_side


def row(op: str, nodes: list[str], ms: float) -> dict[str, Any]:
    return {"op": op, "kernel": f"k_{op}", "nodes": nodes, "ms": ms}


def test_different_cuts_of_one_model() -> None:
    """What one artifact fuses and another does in two steps is one row."""
    fused = [row("Conv", ["a", "relu", "b"], 6.0), row("Gemm", ["c"], 1.0)]
    apart = [
        row("ToQuads", ["q"], 0.5),
        row("Conv", ["a", "relu"], 1.0),
        row("Add", ["b"], 0.5),
        row("Gemm", ["c", "d"], 2.0),
    ]
    rows = layers_side_by_side([fused, apart])
    assert [r["nodes"] for r in rows] == [["a", "relu", "b"], ["c", "d"], ["q"]]
    assert [r["ms"] for r in rows] == [[6.0, 1.5], [1.0, 2.0], [None, 0.5]]
    assert [r["ratio"] for r in rows] == [[1.0, 0.25], [1.0, 2.0], [None, None]]
    assert rows[0]["ops"] == ["Conv", "Conv Add"]
    assert rows[2]["kernels"] == ["", "k_ToQuads"]


def test_nodes_that_passes_put_in_place_of_others() -> None:
    plain = [row("Conv", ["net/conv1", "net/relu1"], 4.0), row("Gemm", ["net/fc"], 1.0)]
    integer = [
        row("ToQuads", ["net/conv1/ToQuads"], 0.5),
        row("ConvInteger", ["net/conv1/ConvInteger", "net/conv1/Requantize"], 1.5),
        row("MatMulInteger", ["net/fc/x/MatMulInteger"], 0.5),
        row("Else", ["net"], 0.5),
    ]
    rows = layers_side_by_side([plain, integer])
    assert [r["ms"] for r in rows] == [[4.0, 2.0], [1.0, 0.5], [None, 0.5]]
    back = layers_side_by_side([integer, plain])
    assert [r["ms"] for r in back] == [[2.0, 4.0], [0.5, 1.0], [0.5, None]]


NODES = st.lists(st.sampled_from("abcdefgh"), max_size=3, unique=True)
PROFILE = st.lists(st.builds(row, st.just("Op"), NODES, st.floats(0.01, 10)), max_size=6)


@given(st.lists(PROFILE, min_size=1, max_size=3))
def test_nothing_is_lost(profiles: list[list[dict[str, Any]]]) -> None:
    common = [row("Op", ["common"], 1000.0)]
    profiles = [[*common, *profile] for profile in profiles]
    rows = layers_side_by_side(profiles)
    for number, profile in enumerate(profiles):
        total = sum(r["ms"][number] or 0.0 for r in rows)
        assert total == pytest.approx(sum(layer["ms"] for layer in profile))
    names = [node for r in rows for node in r["nodes"]]
    assert len(names) == len(set(names))


def test_other_models_are_not_put_side_by_side() -> None:
    """Also if a node happens to have the same name."""
    one = [row("Conv", ["a"], 5.0), row("Softmax", ["out"], 1.0)]
    other = [row("Conv", ["b"], 5.0), row("Softmax", ["out"], 1.0)]
    assert layers_side_by_side([one, other]) == []


def test_steps_of_a_layer_add_up() -> None:
    manifest = {
        "steps": ["pad", "k0", "k0"],
        "layers": [{"name": "k0", "op": "Conv", "kernel": "c", "macs": 3000, "nodes": ["n"]}],
    }
    pad, conv = layer_rows(manifest, [1000, 2000, 1000])
    assert (pad["op"], pad["nodes"], pad["share"]) == ("copy", [], 0.25)
    assert (conv["ms"], conv["nodes"]) == (0.003, ["n"])
    assert conv["gmacs"] == pytest.approx(1.0)
