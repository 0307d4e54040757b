"""ONNX's backend node tests as cases: a model, inputs, and the outputs that it should give."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["COMPILE_TIME", "Array", "Case", "cases", "difference", "sample"]

Array = np.ndarray[Any, Any]

_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

COMPILE_TIME: dict[str, tuple[int, ...]] = {
    **{f"Reduce{name}": (1,) for name in _REDUCTIONS},
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (2,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Operands that decide shapes or structure, by position."""


@dataclass(frozen=True)
class Case:
    """One backend test.

    Attributes:
        operator: Operator under test (of the unexpanded form).
        inputs, outputs: First data set; None where an element is no numeric tensor.
        bindable: Names of inputs that an operator needs at compile time.
    """

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: dict[str, Array] | None
    outputs: tuple[Array, ...] | None
    rtol: float
    atol: float
    bindable: tuple[str, ...] = ()


def cases(match: Sequence[str] = ()) -> list[Case]:
    """Collect the node tests whose name contains one of ``match`` (all, if empty)."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = load_model_tests(kind="node")
    models = {test.name: test.model for test in tests}
    found = []
    for test in tests:
        if match and not any(part in test.name for part in match):
            continue
        plain = models.get(test.name.split("_expanded")[0]) or test.model
        found.append(_case(test, plain))
    return found


def sample(todo: Sequence[Case], count: int) -> list[Case]:
    """At most ``count`` cases of each operator, spread over its cases."""
    by_operator: dict[str, list[Case]] = {}
    for case in todo:
        by_operator.setdefault(case.operator, []).append(case)
    found = []
    for group in by_operator.values():
        chosen = min(count, len(group))
        found += [group[i * len(group) // chosen] for i in range(chosen)]
    return found


def _case(test: Any, plain: onnx.ModelProto) -> Case:
    model = test.model
    operator = "+".join(sorted({node.op_type for node in plain.graph.node}))
    names = [value.name for value in model.graph.input]
    feeds, results = test.data_sets[0]
    inputs, outputs = _tensors(feeds), _tensors(results)
    bindable = [
        node.input[index]
        for node in plain.graph.node
        for index in COMPILE_TIME.get(node.op_type, ())
        if index < len(node.input) and node.input[index] in names
    ]
    return Case(
        test.name,
        operator,
        model,
        None if inputs is None else dict(zip(names, inputs, strict=True)),
        None if outputs is None else tuple(outputs),
        test.rtol,
        test.atol,
        tuple(bindable),
    )


def _tensors(values: Iterable[Any]) -> list[Array] | None:
    """Arrays, or None if a value is a sequence, optional or string tensor."""
    arrays = []
    for value in values:
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        if not isinstance(value, np.ndarray | np.generic | int | float):
            return None
        array = np.asarray(value)
        if array.dtype.kind in "OUS":
            return None
        arrays.append(array)
    return arrays


_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def difference(case: Case, got: Sequence[Array]) -> str:
    """Why the outputs differ, or an empty string.

    The tests' absolute tolerance is widened to four units in the last place of the
    largest element: some expect the rounding noise of one implementation, and their
    relative tolerance is below a unit in the last place of float16.
    """
    assert case.outputs is not None
    for index, (mine, expected) in enumerate(zip(got, case.outputs, strict=True)):
        if mine.shape != expected.shape or mine.dtype != expected.dtype:
            return (
                f"output {index} is {mine.dtype}{mine.shape}, "
                f"expected {expected.dtype}{expected.shape}"
            )
        if expected.dtype.kind in "biu":
            if not np.array_equal(mine, expected):
                return f"output {index}: {int((mine != expected).sum())} of {expected.size} differ"
            continue
        exact = expected.astype(np.float64)
        finite = np.abs(exact[np.isfinite(exact)])
        noise = 4 * _EPSILON.get(expected.dtype.name, 0.0) * float(finite.max(initial=0.0))
        try:
            np.testing.assert_allclose(
                mine.astype(np.float64), exact, rtol=case.rtol, atol=max(case.atol, noise)
            )
        except AssertionError as error:
            return f"output {index}: " + " ".join(str(error).split()[:24])
    return ""
