"""Times of layers, and of the layers of several artifacts side by side.

Artifacts of one model differ in how they cut it into layers: one fuses what another computes apart.
What they share are the names of ONNX nodes, so layers with a node in common are compared as groups.
A node that a pass put in place of another is called ``OTHER/Kind`` and counts as the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = ["layer_rows", "layers_side_by_side"]

_SHARED = 0.5
"""Of the first artifact's time that must lie in layers which all have."""


def layer_rows(manifest: Mapping[str, Any], steps_ns: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a profile in execution order, each with the ONNX nodes that the layer computes.

    Args:
        manifest: Of the artifact.
        steps_ns: Time of each step of its program.
    """
    known = {layer["name"]: layer for layer in manifest["layers"]}
    spent: dict[str, float] = {}
    for name, nanoseconds in zip(manifest["steps"], steps_ns, strict=True):
        spent[name] = spent.get(name, 0.0) + nanoseconds / 1e6
    total = sum(spent.values()) or 1.0
    rows = []
    for name, ms in spent.items():
        about = known.get(name, {})
        macs = about.get("macs", 0)
        rows.append(
            {
                "name": name,
                "op": about.get("op", "copy"),
                "kernel": about.get("kernel", ""),
                "nodes": list(about.get("nodes", ())),
                "macs": macs,
                "ms": ms,
                "share": ms / total,
                "gmacs": macs / ms / 1e6 if ms else 0.0,
            }
        )
    return rows


def layers_side_by_side(profiles: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Groups of layers that share ONNX nodes, in the first profile's order.

    Args:
        profiles: Rows of ``layer_rows``, one list per artifact.

    Returns:
        Nothing if the artifacts have little in common. Else ``nodes``; and per artifact ``ops``
        and ``kernels`` (empty where it has none of these layers), ``ms`` (``None`` there) and
        ``ratio`` to the first artifact.
    """
    import networkx as nx

    names = [{node for row in rows for node in row["nodes"]} for rows in profiles]
    plain = min(names, key=lambda nodes: sum(map(len, nodes)) / max(len(nodes), 1))
    graph = nx.Graph()
    for number, rows in enumerate(profiles):
        for place, row in enumerate(rows):
            graph.add_node((number, place))
            graph.add_edges_from(((number, place), _stem(node, plain)) for node in row["nodes"])
    groups = []
    for members in nx.connected_components(graph):
        layers = sorted(member for member in members if isinstance(member, tuple))
        nodes = [n for number, place in layers for n in profiles[number][place]["nodes"]]
        columns = [
            [profiles[n][place] for n, place in layers if n == number]
            for number in range(len(profiles))
        ]
        ms = [sum(row["ms"] for row in rows) if rows else None for rows in columns]
        groups.append(
            (
                layers[0],
                {
                    "nodes": list(dict.fromkeys(nodes)),
                    "ops": [" ".join(row["op"] for row in rows) for rows in columns],
                    "kernels": [" ".join(row["kernel"] for row in rows) for rows in columns],
                    "ms": ms,
                    "ratio": [value / ms[0] if value and ms[0] else None for value in ms],
                },
            )
        )
    found = [group for _, group in sorted(groups, key=lambda pair: pair[0])]
    shared = sum(group["ms"][0] for group in found if None not in group["ms"])
    return found if shared > _SHARED * sum(row["ms"] for row in profiles[0]) else []


def _stem(node: str, plain: Collection[str]) -> str:
    """The node that a node stands for; itself if it is none of the artifact with plain names."""
    stem = node
    while stem and stem not in plain:
        stem = stem.rpartition("/")[0]
    return stem or node
