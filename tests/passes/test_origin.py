"""Which tensor of the user's model a value stands for, through import and passes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from reference import assert_origins
from small_net import small_net

from effc.frontend import import_model
from effc.passes.origin import forget_origin, origin, restore_names, stand_for
from effc.passes.registry import simplify

DATA = Path(__file__).parents[3] / "shared" / "data" / "models"


def model_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> agraph {text}')


def test_folded_values_stand_for_the_result() -> None:
    """The convolution with folded BatchNormalization gives what the latter gave."""
    model = simplify(import_model(small_net()))[0]
    origins = [origin(v) for node in model.graph for v in node.outputs]
    assert "bn" in origins
    assert "point" not in origins
    assert assert_origins(small_net(), model) >= 12


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("cifar10_resnet32_bn_fp32", {"input": (1, 3, 32, 32)}),
        ("mlperf_tiny_ic01_resnet8_fp32", {}),
        ("cifar10_tiniest_fp32", {"input": (1, 3, 32, 32)}),
    ],
)
def test_real_models(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
    path = DATA / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    model = simplify(import_model(path, shapes=shapes))[0]
    known = assert_origins(onnx.load(path), model)
    assert known >= 0.8 * len(model.graph)


def test_names_within_functions_mean_nothing() -> None:
    """A function's own ``a`` is not the model's ``a``; what it returns is what the call gives."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20, "own" : 1]>
        agraph (float[4] x) => (float[4] y) { a = Neg(x) b = own.f(a) y = Exp(b) }
        <domain: "own", opset_import: ["" : 20]> f (z) => (r) { a = Abs(z) r = Sqrt(a) }"""
    )
    imported = import_model(model)
    origins = {node.op_type: origin(node.outputs[0]) for node in imported.graph}
    assert origins == {"Neg": "a", "Abs": None, "Sqrt": "b", "Exp": "y"}


def test_written_models_have_the_names_again() -> None:
    model = simplify(import_model(small_net()))[0]
    restore_names(model.graph)
    names = [v.name for node in model.graph for v in node.outputs]
    assert "bn" in names
    assert "point" not in names
    assert len(set(names)) == len(names)
    assert all(not v.metadata_props for node in model.graph for v in node.outputs)


def test_taken_names_stay() -> None:
    model = import_model(model_of("(float[4] x) => (float[4] y) { a = Neg(x) y = Abs(a) }"))
    negated, result = (node.outputs[0] for node in model.graph)
    stand_for(negated, ir.Value(name="y"))
    restore_names(model.graph)
    assert (negated.name, origin(negated), result.name) == ("a", "y", "y")
    forget_origin(negated)
    assert origin(negated) is None
    stand_for(negated, ir.Value(name="a"))
    assert origin(negated) == "a"
