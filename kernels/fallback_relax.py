"""One operator through TVM's ONNX importer to a list of TIR calls.

In: an operator with static shapes. Out: ``Calls``: schedulable PrimFuncs with
the tensors they read and write, named ``i<n>`` (operand n), ``o<n>`` (result n),
``c<n>`` (constant of TVM's making) or ``t<n>`` (intermediate).
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax, te
from tvm.relax.frontend.onnx import from_onnx

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels.fallback_convert import Call
from effc.kernels.region import Op, TensorType, Value

__all__ = ["OPSET", "Calls", "import_op"]

OPSET = 20
"""The operator set of every graph that reaches the kernels."""


@dataclass
class Calls:
    """What an operator lowers to: calls in order, constants and intermediates."""

    calls: list[Call] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    temporaries: dict[str, TensorType] = field(default_factory=dict)


def import_op(op: Op, target: Target) -> Calls:
    """Import and legalize one operator.

    Constants that the region may bake are given to the importer as values,
    all others as inputs, so that the result depends on the signature only.

    Raises:
        UnsupportedError: TVM cannot, with its reason.
    """
    model = _one_node_model(op)
    tvm_target = tvm.target.Target(target.tvm())
    try:
        with _silence():
            module = from_onnx(model, opset=OPSET, keep_params_in_input=False)
        transform = relax.transform
        with tvm_target:
            module = tvm.transform.Sequential(
                [
                    transform.LegalizeOps(),
                    transform.AnnotateTIROpPattern(),
                    transform.FuseOps(),
                    transform.FuseTIR(),
                    transform.DeadCodeElimination(),
                ]
            )(module)
    except Exception as error:  # TVM raises many kinds
        raise UnsupportedError(f"TVM cannot import {op.op_type}", got=_last_line(error)) from error
    return _Walker(module, op).walk()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep TVM's importer from printing, warning and logging: a library stays quiet."""
    logger = logging.getLogger("relax.frontend.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:160] if lines else type(error).__name__


def _one_node_model(op: Op) -> onnx.ModelProto:
    """The operator as a model; equal operands become one input."""
    names = ["" if value is None else f"i{n}" for n, value in enumerate(op.inputs)]
    infos, initializers = [], []
    for name, value in zip(names, op.inputs, strict=True):
        if value is None:
            continue
        if value.baked and value.const is not None:
            initializers.append(numpy_helper.from_array(np.ascontiguousarray(value.const), name))
        else:
            infos.append(_info(name, value))
    outputs = [f"o{n}" for n in range(len(op.outputs))]
    while names and not names[-1]:
        names.pop()
    node = helper.make_node(op.op_type, names, outputs, domain=op.domain, name="node")
    for key, attr in op.attrs.items():
        node.attribute.append(_attribute(key, attr))
    graph = helper.make_graph(
        [node],
        "op",
        infos,
        [_info(name, value) for name, value in zip(outputs, op.outputs, strict=True)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def _attribute(key: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, np.ndarray):
        value = numpy_helper.from_array(value)
    return helper.make_attribute(key, value)


def _info(name: str, value: Value) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
    return helper.make_tensor_value_info(name, dtype, value.shape)


class _Walker:
    """Turns the imported function into calls over named tensors."""

    def __init__(self, module: Any, op: Op) -> None:
        self.module = module
        self.op = op
        self.result = Calls()
        self.names: dict[Any, Any] = {}  # relax variable -> name, or tuple of names

    def walk(self) -> Calls:
        main = self.module["main"]
        for param in main.params:
            self.names[param] = param.name
        for block in main.body.blocks:
            for binding in block.bindings:
                self.names[binding.var] = self._value(binding.value)
        self._rename_outputs(self._value(main.body.body))
        return self.result

    def _value(self, value: Any) -> Any:
        if isinstance(value, tvm.ir.Constant):
            return self._constant(value)
        if isinstance(value, tvm.ir.TupleGetItem):
            return self._value(value.tuple_value)[int(value.index)]
        if isinstance(value, tvm.ir.Tuple):
            return tuple(self._value(item) for item in value.fields)
        if value in self.names:
            return self.names[value]
        if isinstance(value, tvm.ir.Call):
            return self._call(value)
        raise UnsupportedError("TVM leaves an expression", got=type(value).__name__)

    def _constant(self, value: Any) -> str:
        array = value.value.numpy()
        name = f"c{len(self.result.constants)}"
        self.result.constants[name] = np.ascontiguousarray(array).reshape(array.shape)
        return name

    def _call(self, call: Any) -> Any:
        name = getattr(call.op, "name", str(call.op))
        if name != "relax.call_tir":
            raise UnsupportedError("TVM has no kernel", got=name)
        if len(call.args) > 2:
            raise UnsupportedError("the function takes symbolic sizes", got=name)
        inputs = [self._value(item) for item in call.args[1].fields]
        out = call.ty_args[0]
        fields = list(out.fields) if hasattr(out, "fields") else [out]
        outputs = tuple(self._temporary(item) for item in fields)
        func = self.module[call.args[0]]
        self.result.calls.append(Call(func, (*inputs, *outputs)))
        return outputs if hasattr(out, "fields") else outputs[0]

    def _temporary(self, type_: Any) -> str:
        shape = type_.shape
        if shape is None or not all(isinstance(dim, tvm.tirx.IntImm) for dim in shape):
            raise UnsupportedError("a shape depends on the data", got=str(type_))
        name = f"t{len(self.result.temporaries)}"
        self.result.temporaries[name] = TensorType(
            tuple(int(dim) for dim in shape), str(type_.dtype)
        )
        return name

    def _rename_outputs(self, returned: Any) -> None:
        """Call the tensors that the function returns ``o<n>``."""
        results = returned if isinstance(returned, tuple) else (returned,)
        if len(results) != len(self.op.outputs):
            raise UnsupportedError(
                "TVM returns another number of results",
                expected=len(self.op.outputs),
                got=len(results),
            )
        rename: dict[str, str] = {}
        copies: list[Call] = []
        for index, (name, value) in enumerate(zip(results, self.op.outputs, strict=True)):
            if name in self.result.temporaries and name not in rename:
                found = self.result.temporaries.pop(name)
                rename[name] = f"o{index}"
            else:  # an operand, a constant, or a result returned twice
                found = self._type(rename.get(name, name))
                copies.append(copy_call(rename.get(name, name), f"o{index}", value.type))
            if found != value.type:
                raise UnsupportedError(
                    "TVM returns another type", expected=str(value.type), got=str(found)
                )
        self.result.calls = [
            Call(call.func, tuple(rename.get(arg, arg) for arg in call.args))
            for call in self.result.calls
        ] + copies

    def _type(self, name: str) -> TensorType:
        """Type of an operand, a result or a constant."""
        if name in self.result.constants:
            array = self.result.constants[name]
            return TensorType(array.shape, array.dtype.name)
        values = self.op.inputs if name.startswith("i") else self.op.outputs
        value = values[int(name[1:])]
        if value is None:
            raise UnsupportedError("TVM returns an absent operand", where=name)
        return value.type


def copy_call(source: str, result: str, type_: TensorType) -> Call:
    """A call that copies one tensor to another."""
    x = te.placeholder(type_.shape, type_.dtype, name="x")
    y = te.compute(type_.shape, lambda *at: x[at] if at else x[()], name="y")
    return Call(te.create_prim_func([x, y]), (source, result))
