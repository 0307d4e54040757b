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
        },
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
