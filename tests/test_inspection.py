"""What ``effc explain`` finds by which name."""

from __future__ import annotations

from typing import Any

import pytest

from effc.errors import UsageError
from effc.inspection import explain_layer


def layer(name: str, macs: int, *nodes: str) -> dict[str, Any]:
    return {"name": name, "macs": macs, "nodes": list(nodes)}


MANIFEST = {
    "layers": [
        layer("k000_toquads", 0, "conv/ToQuads"),
        layer("k001_convinteger", 9, "conv/ConvInteger", "conv/Requantize"),
        layer("k002_conv", 5, "conv2", "relu2"),
    ],
    "passes": [
        {"name": "prune_weights", "applied": ["conv: 75.0% zeros", "conv2: 50.0% zeros"]},
        {"name": "integerize", "applied": ["conv"]},
        {"name": "fold_scale", "applied": [], "refused": ["relu2: no scale"]},
    ],
}
for entry in MANIFEST["passes"]:
    entry.setdefault("refused", [])


@pytest.mark.parametrize(
    ("name", "found", "passes"),
    [
        ("k001_convinteger", "k001_convinteger", ["prune_weights", "integerize"]),
        ("conv/ToQuads", "k000_toquads", ["prune_weights", "integerize"]),
        ("conv", "k001_convinteger", ["prune_weights", "integerize"]),
        ("conv2", "k002_conv", ["prune_weights", "fold_scale"]),
    ],
)
def test_layers_by_name_of_layer_node_and_what_it_stems_from(
    name: str, found: str, passes: list[str]
) -> None:
    result = explain_layer(MANIFEST, name)
    assert result["name"] == found
    assert [entry["pass"] for entry in result["passes"]] == passes


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError, match="did you mean conv2"):
        explain_layer(MANIFEST, "conv3")
