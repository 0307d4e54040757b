"""The report: well-formed, self-contained, complete, escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from effc.report import render_report

_VOID = {"meta", "br"}


def manifest(**changes: Any) -> dict[str, Any]:
    """A manifest with two layers."""
    layer = {
        "name": "k000_conv",
        "op": "Conv",
        "kernel": "conv_direct",
        "macs": 1000,
        "sparsity": 0.5,
        "pattern": "unstructured",
        "config": {"lanes": 8},
        "why": "fastest of 2",
        "seconds": None,
        "variants": ["dotprod"],
        "nodes": ["conv<1>", "relu&1"],
        "inputs": [[1, 3, 8, 8]],
        "outputs": [[1, 8, 8, 8]],
        "alternatives": [],
        "refused": [],
    }
    view = {**layer, "name": "k001_view", "op": "Reshape", "kernel": "view", "macs": 0}
    port = {"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8], "bytes": 768}
    error = {
        "name": "y",
        "dtype": "float32",
        "ok": True,
        "max_abs_error": 1e-7,
        "max_rel_error": 1e-6,
        "snr_db": 130.2,
        "snr_limit_db": 95.0,
        "limit_steps": 0,
        "mismatches": 0,
        "elements": 512,
    }
    return {
        "effc_version": "0.1.0",
        "name": "toy",
        "target": "android",
        "abi": "arm64-v8a",
        "machine": {
            "arch": "aarch64",
            "os": "android",
            "triple": "aarch64-linux-android",
            "cpu": "cortex-a53",
            "features": ["+neon"],
            "android_api": 21,
        },
        "inputs": [port],
        "outputs": [{**port, "name": "y"}],
        "arena_bytes": 4096,
        "arena_lower_bound_bytes": 4032,
        "scratch_bytes_per_thread": 128,
        "weights_bytes": 9000,
        "code_bytes": 5000,
        "runtime_bytes": 3000,
        "library_bytes": 16000,
        "flash_bytes": 0,
        "stack_bytes": 0,
        "needed_libraries": ["libc.so"],
        "undefined_symbols": ["memcpy"],
        "segment_alignment": 16384,
        "macs": 1000,
        "threads": 1,
        "layers": [layer, view],
        "steps": ["k000_conv"],
        "passes": [{"name": "fold", "applied": ["conv<1>"], "refused": ["bn: not constant"]}],
        "memory_plan": [
            {"name": "t<0>", "offset": 0, "bytes": 2048, "first": 0, "last": 0},
            {"name": "t1", "offset": 2048, "bytes": 1984, "first": 0, "last": 0},
        ],
        "memory_peak": {
            "region": "k000_conv",
            "step": 0,
            "live": [{"name": "t<0>", "bytes": 2048}, {"name": "t1", "bytes": 1984}],
            "shared_bytes": 0,
            "order_bound_bytes": 4032,
            "order_proven": True,
            "plan_proven": True,
            "optimal": False,
        },
        "tuning": {"mode": "none"},
        "levels": None,
        "source": {"sha256": "ab" * 32, "opset": 17},
        "verification": {
            "ok": True,
            "device": "qemu",
            "against": "onnxruntime 1",
            "samples": 1,
            "outputs": [error],
            "notes": [],
            "variants": [{"name": "dotprod", "ok": True, "identical": True, "snr_db": 300.0}],
        },
        "variants": [{"name": "dotprod", "features": ["dotprod"], "functions": 3}],
        "tools": {"numpy": "2", "onnx": None},
        **changes,
    }


class _Checker(HTMLParser):
    """Counts tags, keeps text, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href"), f"{tag} loads {value}"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(html: str) -> _Checker:
    """Parse a page, requiring balanced tags and no references to elsewhere."""
    checker = _Checker()
    checker.feed(html)
    assert checker.open == []
    assert "script" not in checker.seen
    assert "http" not in html
    assert "url(" not in html
    return checker


def test_page_is_complete_and_self_contained() -> None:
    page = check(render_report(manifest()))
    for text in ("toy", "android", "130.2 dB", "95.0 dB", "conv<1>, relu&1", "conv_direct"):
        assert text in page.text
    assert page.seen.count("svg") == 1
    assert page.seen.count("rect") == 3
    assert "bn: not constant" in page.text


def test_measured_times_get_a_column() -> None:
    layers = manifest()["layers"]
    assert "each layer alone" not in check(render_report(manifest())).text
    timed = manifest(layers=[{**layers[0], "seconds": 2.5e-5}, layers[1]])
    page = check(render_report(timed))
    assert "25 µs" in page.text
    assert "100.0 %" in page.text


def test_empty_parts_are_left_out() -> None:
    empty = manifest(verification=None, memory_plan=[], passes=[], layers=[], macs=0, arena_bytes=0)
    page = check(render_report(empty))
    assert "not verified" in page.text
    assert "svg" not in page.seen


def test_failed_outputs_are_named() -> None:
    verification = manifest()["verification"]
    failed = {**verification["outputs"][0], "ok": False, "snr_db": 10.0}
    page = check(
        render_report(manifest(verification={**verification, "ok": False, "outputs": [failed]}))
    )
    assert "failed" in page.text
    assert "10.0 dB" in page.text


def test_equal_manifests_give_equal_pages() -> None:
    assert render_report(manifest()) == render_report(manifest())


def levels(**changes: Any) -> dict[str, Any]:
    """A record of levels chosen from measured times."""
    steps = [
        {"sparsity": 0.0, "seconds": 4e-4},
        {"sparsity": 0.5, "seconds": 3e-4},
        {"sparsity": 0.75, "seconds": None},
        {"sparsity": 0.9, "seconds": 1e-4},
    ]
    row = {
        "name": "conv<1>",
        "scheme": "block-punched 8x4",
        "sparsity": 0.9,
        "error": 0.5,
        "seconds": 1e-4,
        "dense_seconds": 4e-4,
        "kernel": "conv_sparse",
        "dense_kernel": "winograd",
        "levels": steps,
    }
    same = {**row, "name": "conv2", "sparsity": 0.0, "seconds": 4e-4, "kernel": "winograd"}
    return {
        "goal": {"speedup": 1.5},
        "dense_ms": 0.9,
        "rest_ms": 0.1,
        "fastest_ms": 0.3,
        "probe_ms": 0.61,
        "rounds": [{"predicted_ms": 0.6, "measured_ms": 0.61, "goal_ms": 0.6}],
        "errors": {"method": "sum of the layers' own errors", "note": "no calibration data"},
        "chosen": {"ms": 0.6, "error": 0.5},
        "front": [{"ms": ms, "error": 0.9 - ms} for ms in (0.3, 0.6, 0.9)],
        "uniform": [{"sparsity": s, "ms": 0.9 - s / 2, "error": s} for s in (0.0, 0.5, 0.9)],
        "layers": [row, same],
        "achieved": {"ms": 0.62, "dense_ms": 0.9, "goal_ms": 0.6, "speedup": 1.45, "reached": True},
        **changes,
    }


def test_levels_are_plotted() -> None:
    page = check(render_report(manifest(levels=levels())))
    for text in (
        "1.5 times faster than dense",
        "0.62 ms",
        "no calibration data",
        "4.00x",
        "90.0 %",
    ):
        assert text in page.text
    assert "conv_sparse dense winograd" in page.text
    assert "all layers at 50%: 0.65 ms" in page.text
    assert "0%: 400 µs; 50%: 300 µs; 90%: 100 µs" in page.text
    # three points of the front, the chosen one, one in the legend, one in the curve of each layer
    assert page.seen.count("circle") == 3 + 1 + 1 + 2
    assert page.seen.count("polyline") == 1 + 2
    assert "was missed" not in page.text


def test_missed_goals_and_levels_without_a_measured_artifact() -> None:
    missed = {**levels()["achieved"], "reached": False}
    page = check(render_report(manifest(levels=levels(achieved=missed))))
    assert "the goal of 0.6 ms was missed" in page.text
    record = levels(goal={"latency_ms": 0.6}, uniform=[])
    del record["achieved"]
    page = check(render_report(manifest(levels=record)))
    assert "at most 0.6 ms" in page.text
    assert "0.61 ms, 1.48 times faster" in page.text
