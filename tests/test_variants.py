"""Versions of code chosen when an instance is made: built, linked, chosen, forced, verified."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dot_template import DotTemplate
from onnx import TensorProto, helper, numpy_helper
from small_net import images, small_net

import effc
import effc.passes.registry
from effc.devices.catalog import get_target
from effc.devices.host import missing_features
from effc.devices.target import Target, Variant
from effc.errors import DeviceError, InternalError, QualityError, UsageError
from effc.execute import open_executor
from effc.kernels import registry
from effc.kernels.versions import ranked_target, versions_of
from effc.options import CompileOptions
from effc.pipeline import compile_model

DEPTH, COUNT = 32, 24


def needs_qemu() -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")


def dot_model(dtype: int, extra: bool = False) -> onnx.ModelProto:
    """Integer products, behind them float code (one version), then more of the same kind."""
    weights = np.random.default_rng(0).integers(-128, 128, (DEPTH, COUNT), np.int8)
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["y"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["f"], ["t"]),
    ]
    if extra:
        nodes.append(helper.make_node("MatMulInteger", ["x", "w2"], ["z"]))
    outputs = [("y", TensorProto.INT32), ("t", TensorProto.FLOAT)]
    outputs += [("z", TensorProto.INT32)] if extra else []
    graph = helper.make_graph(
        nodes,
        "dot",
        [helper.make_tensor_value_info("x", dtype, [1, DEPTH])],
        [helper.make_tensor_value_info(name, kind, [1, COUNT]) for name, kind in outputs],
        [
            numpy_helper.from_array(weights, "w"),
            *([numpy_helper.from_array(weights[::-1].copy(), "w2")] if extra else []),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> DotTemplate:
    """The family of ``dot_template``, known to the compiler for one test; passes do nothing."""
    known, mine = registry.templates(), DotTemplate()
    monkeypatch.setattr(registry, "templates", lambda: (mine, *known))
    monkeypatch.setattr(effc.passes.registry, "simplify", lambda model: (model, []))
    return mine


def generic_x86() -> list[str]:
    """Variants of linux-x86_64 that this machine runs."""
    if missing_features(get_target("linux-x86_64").features) or effc_arch() != "x86_64":
        pytest.skip("not an x86-64 machine with AVX2")
    variants = get_target("linux-x86_64").variants
    return [v.name for v in variants if not missing_features(v.features)]


def effc_arch() -> str:
    return get_target("host").arch


@pytest.mark.parametrize("target", ["android", "linux-arm64"])
def test_arm_runs_every_variant_under_qemu(
    template: DotTemplate, target: str, tmp_path: Path
) -> None:
    needs_qemu()
    artifact = effc.compile(dot_model(TensorProto.INT8), target, tmp_path / "dot")
    about = artifact.manifest
    # i8mm adds nothing that the template uses, so it runs the version for dot products.
    assert [(v["name"], v["functions"]) for v in about["variants"]] == [("dotprod", 1)]
    assert about["verification"]["variants"] == [
        {"name": "dotprod", "ok": True, "identical": True, "snr_db": 300.0}
    ]
    by_op = {layer["op"]: layer["variants"] for layer in about["layers"]}
    assert by_op == {"MatMulInteger": ["dotprod"], "Elementwise": []}
    x = {"x": np.random.default_rng(1).integers(-128, 128, (1, DEPTH), np.int8)}
    results = {}
    for variant in ("base", "dotprod", None):
        with open_executor(artifact, "qemu", None, variant) as executor:
            results[variant] = executor.run(x)
            # An emulated processor is the weakest that runs the version asked for.
            assert executor.variant == (variant or "base")
            assert executor.bench(1, 0).runs == 1
    for got in results.values():
        for name, array in got.items():
            assert array.tobytes() == results[None][name].tobytes()


def test_the_processor_decides(template: DotTemplate, tmp_path: Path) -> None:
    """The weakest processor refuses the version that it could not run, a better one takes it."""
    needs_qemu()
    artifact = effc.compile(dot_model(TensorProto.INT8), "android", tmp_path / "dot", verify=False)
    x = {"x": np.ones((1, DEPTH), np.int8)}
    with open_executor(artifact, "qemu", None, None) as executor:
        assert "cortex-a72" in executor._place.command  # type: ignore[attr-defined]
        executor._asked = "dotprod"  # type: ignore[attr-defined]
        with pytest.raises(DeviceError, match="no such variant"):
            executor.run(x)
    with open_executor(artifact, "qemu", None, "dotprod") as executor:
        for cpu in ("cortex-a76", "max"):
            command = executor._place.command  # type: ignore[attr-defined]
            command[command.index("-cpu") + 1] = cpu
            executor._asked = None  # type: ignore[attr-defined]
            executor.run(x)
            assert executor.variant == "dotprod"


def test_i8mm_is_detected(template: DotTemplate, tmp_path: Path) -> None:
    needs_qemu()
    template.used = Both.used
    artifact = effc.compile(dot_model(TensorProto.INT8), "android", tmp_path / "dot")
    checked = artifact.manifest["verification"]["variants"]
    assert [(v["name"], v["identical"]) for v in checked] == [("dotprod", True), ("i8mm", True)]
    with open_executor(artifact, "qemu", None, "i8mm") as executor:
        executor._asked = None  # type: ignore[attr-defined]
        executor.run({"x": np.ones((1, DEPTH), np.int8)})
        assert executor.variant == "i8mm"


def test_x86_runs_what_this_machine_has(template: DotTemplate, tmp_path: Path) -> None:
    known = generic_x86()
    artifact = effc.compile(dot_model(TensorProto.UINT8), "linux-x86_64", tmp_path / "dot")
    about = artifact.manifest
    assert [v["name"] for v in about["variants"]] == ["avx512vnni", "avxvnni"]
    assert [v["name"] for v in about["verification"]["variants"]] == known[::-1]
    assert all(v["identical"] for v in about["verification"]["variants"])
    skipped = [n for n in about["verification"]["notes"] if "was not verified" in n]
    assert len(skipped) == 2 - len(known)
    x = {"x": np.random.default_rng(1).integers(0, 256, (1, DEPTH), np.uint8)}
    with effc.load(artifact) as best, effc.load(artifact, variant="base") as base:
        assert best.variant == [*known, "base"][0]
        assert base.variant == "base"
        assert best.run(x)["y"].tobytes() == base.run(x)["y"].tobytes()
    with pytest.raises(UsageError, match="no variant 'sse9'"):
        effc.load(artifact, variant="sse9")
    for lacking in {"avx512vnni", "avxvnni"} - set(known):
        with pytest.raises(DeviceError, match=lacking):
            effc.load(artifact, variant=lacking)
    with pytest.raises(DeviceError, match="QEMU does not emulate"):
        open_executor(artifact, "qemu", None, "avx512vnni")


def test_a_version_with_other_results_is_found(template: DotTemplate, tmp_path: Path) -> None:
    needs_qemu()
    template.error = 1
    with pytest.raises(QualityError, match="other integers"):
        effc.compile(dot_model(TensorProto.INT8), "android", tmp_path / "dot")


def test_versions_must_have_one_interface(template: DotTemplate) -> None:
    template.padding = 4
    with pytest.raises(InternalError, match=r"more than code.*weights"):
        compile_model(dot_model(TensorProto.INT8), CompileOptions("android"))


def test_equal_layers_share_each_version(template: DotTemplate) -> None:
    compiled = compile_model(dot_model(TensorProto.INT8, extra=True), CompileOptions("android"))
    calls = compiled.program.calls
    shared = {c.symbol for c in calls if c.symbol in compiled.program.variants[0].symbols}
    assert len(shared) == 1
    assert sum(c.symbol in shared for c in calls) == 2


def test_float_code_has_one_version(template: DotTemplate) -> None:
    """A model without integer code is the same with and without variants of its target."""
    graph = "(float[8] x) => (float[8] y) { y = Tanh(x) }"
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> agraph {graph}')
    assert compile_model(model, CompileOptions("android")).program.variants == ()


def test_same_input_same_bytes(template: DotTemplate, tmp_path: Path) -> None:
    model = dot_model(TensorProto.INT8, extra=True)
    libraries = []
    for name in ("a", "b"):
        made = effc.compile(model, "linux-arm64", tmp_path / name, name="net", verify=False)
        libraries.append(made.library.read_bytes())
    assert libraries[0] == libraries[1]


class Half(DotTemplate):
    used = frozenset({"fullfp16"})


class Both(DotTemplate):
    used = frozenset({"dotprod", "i8mm"})


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        (Both(), "android", {"base": "base", "dotprod": "dotprod", "i8mm": "i8mm"}),
        (Half(), "android", {"base": "base", "dotprod": "dotprod", "i8mm": "dotprod"}),
        (Both(), "linux-x86_64", dict.fromkeys(("base", "avxvnni", "avx512vnni"), "base")),
        (Both(), "pixel-8", {"base": "base"}),
    ],
)
def test_versions_of(template: Any, name: str, expected: dict[str, str]) -> None:
    assert versions_of(template, None, get_target(name)) == expected  # type: ignore[arg-type]


def test_alternatives_do_not_stand_for_each_other() -> None:
    """Of two variants neither of which has all of the other, each has its own version."""
    target = dataclasses.replace(
        get_target("android"),
        variants=(Variant("one", ("+dotprod",)), Variant("two", ("+i8mm",))),
        common="two",
    )
    assert versions_of(Both(), None, target) == {  # type: ignore[arg-type]
        "base": "base",
        "one": "one",
        "two": "two",
    }
    ranked: Target = ranked_target(Both(), None, target)  # type: ignore[arg-type]
    assert ranked.has("i8mm")
    assert not ranked.has("dotprod")
    assert ranked_target(Half(), None, target) is target  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["android", "linux-x86_64"])
def test_integer_models_use_them(target: str, tmp_path: Path) -> None:
    """Every integer product of a quantized network has versions; all give the same bits."""
    if target == "android":
        needs_qemu()
        expected = {"dotprod"}
    else:
        expected = set(generic_x86())
    data = {"x": images(24)}
    artifact = effc.compile(
        small_net(), target, tmp_path / "net", quantize="int8", calibration=data
    )
    layers = artifact.manifest["layers"]
    products = [la for la in layers if la["op"] in ("ConvInteger", "MatMulInteger")]
    assert len(products) >= 7
    assert all(la["variants"] for la in products if "plain" not in la["kernel"])
    assert not any(la["variants"] for la in layers if la not in products)
    checked = artifact.manifest["verification"]["variants"]
    assert {v["name"] for v in checked} == expected
    assert all(v["identical"] for v in checked)
