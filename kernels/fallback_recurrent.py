"""LSTM, GRU and RNN as two kinds of stages per direction.

``x W^T + Wb`` of all steps and batch entries is computed first, in parallel.
Then each batch entry runs through time (``fallback_recurrent_cell``). Weights are transposed to
``[in, gates]``, so that every product is a sum of rows scaled by one input element, vectorized over
the gates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.errors import UnsupportedError
from effc.kernels.builder import Param, T, bind, loop, splat, stage_func, vload, vstore
from effc.kernels.fallback_convert import Lowered, Packed, Piece
from effc.kernels.fallback_recurrent_activations import activations
from effc.kernels.fallback_recurrent_cell import Cell, RecurrentShape, product
from effc.kernels.lanes import dtype_lanes
from effc.kernels.region import Op, Value

__all__ = ["lower_recurrent"]

Expr = Any


def lower_recurrent(op: Op, target: Target) -> Lowered:
    """Lower one LSTM, GRU or RNN operator.

    Raises:
        UnsupportedError: An element type or activation is not covered.
    """
    if any(
        value is not None and value.dtype not in ("float32", "float64", "int32")
        for value in op.inputs
    ):
        raise UnsupportedError(f"{op.op_type} is supported in float32 and float64 only")
    shape = RecurrentShape.of(op)
    lowered = Lowered()
    w = _transposed(op, 1, lowered)
    r = _transposed(op, 2, lowered)
    lowered.temporaries["gates"] = shape.steps * shape.batch * shape.width * shape.itemsize
    lowered.temporaries["state"] = shape.batch * (shape.width + 3 * shape.hidden) * shape.itemsize
    lanes = dtype_lanes(target, shape.dtype)
    for direction in range(shape.directions):
        lowered.pieces.append(_projection(op, shape, direction, w, lanes))
        lowered.pieces.append(_recurrence(op, shape, direction, r, lanes))
    return lowered


def _pack(weights: np.ndarray) -> np.ndarray:
    return np.swapaxes(weights, 1, 2)


def _transposed(op: Op, index: int, lowered: Lowered) -> tuple[str, Param]:
    """The operand as ``[directions, in, gates]``: packed if constant, else a stage makes it."""
    value = op.inputs[index]
    if value is None:
        raise UnsupportedError(f"{op.op_type} lacks operand {index}")
    name = f"p{index}"
    param = (name, value.dtype, value.type.size)
    if value.const is not None:
        lowered.packed[name] = Packed(index, _pack)
        return name, param
    _, rows, columns = value.shape

    def body(source: Any, result: Any, begin: Expr, end: Expr) -> None:
        with loop(begin, end) as d, loop(rows) as i, loop(columns) as j:
            T.buffer_store(
                result, source[(d * rows + i) * columns + j], [(d * columns + j) * rows + i]
            )

    func = stage_func([("w", value.dtype, value.type.size), param], body)
    lowered.temporaries[name] = value.type.nbytes
    lowered.pieces.append(Piece(func, (f"i{index}", name), value.shape[0]))
    return name, param


def _projection(
    op: Op, shape: RecurrentShape, direction: int, weights: tuple[str, Param], lanes: int
) -> Piece:
    """``gates[step, entry] = x W^T + Wb``."""
    bias = op.inputs[3] if len(op.inputs) > 3 else None
    name, weight_param = weights
    x = op.inputs[0]
    if x is None:
        raise UnsupportedError(f"{op.op_type} lacks operands")
    width = shape.width
    params = [
        ("x", x.dtype, x.type.size),
        weight_param,
        ("gates", shape.dtype, shape.steps * shape.batch * width),
    ]
    args = ["i0", name, "gates"]
    if bias is not None:
        params.append(("bias", bias.dtype, bias.type.size))
        args.append("i3")

    def body(source: Any, matrix: Any, gates: Any, *rest: Any) -> None:
        begin, end = rest[-2:]
        with loop(begin, end) as row:
            step, entry = tirx.indexdiv(row, shape.batch), tirx.indexmod(row, shape.batch)
            origin = bind(shape.x_row(step, entry))

            def start(j: Expr, n: int) -> Expr:
                if bias is None:
                    return splat(tirx.const(0, shape.dtype), n)
                return vload(rest[0], direction * 2 * width + j, n)

            product(
                shape.inputs,
                width,
                lanes,
                start,
                lambda i: source[origin + i],
                matrix,
                direction * shape.inputs * width,
                width,
                lambda j, value, n: vstore(gates, row * width + j, value, n),
            )

    return Piece(stage_func(params, body), tuple(args), shape.steps * shape.batch)


def _recurrence(
    op: Op, shape: RecurrentShape, direction: int, weights: tuple[str, Param], lanes: int
) -> Piece:
    """All steps of the batch entries ``[begin, end)`` in one direction."""
    name, weight_param = weights
    params: list[Param] = [
        weight_param,
        ("gates", shape.dtype, shape.steps * shape.batch * shape.width),
        ("state", shape.dtype, shape.batch * (shape.width + 3 * shape.hidden)),
    ]
    args = [name, "gates", "state"]
    roles = ["weights", "gates", "state"]
    for index, role in enumerate(("x", "w", "r", "bias", "lengths", "h0", "c0", "peephole")):
        value = op.inputs[index] if index < len(op.inputs) else None
        if index > 2 and value is not None:
            params.append((role, value.dtype, value.type.size))
            args.append(f"i{index}")
            roles.append(role)
    for index, (role, value) in enumerate(_outputs(op)):
        params.append((role, value.dtype, value.type.size))
        args.append(f"o{index}")
        roles.append(role)
    functions = activations(op, direction)

    def body(*buffers: Any) -> None:
        begin, end = buffers[-2:]
        named = dict(zip(roles, buffers, strict=False))
        with loop(begin, end) as entry:
            Cell(op, shape, direction, lanes, named, entry, functions).run()

    return Piece(stage_func(params, body), tuple(args), shape.batch)


def _outputs(op: Op) -> list[tuple[str, Value]]:
    """Roles of the results that are present (``Y`` is the only one of rank 4)."""
    roles = ["y", "yh", "yc"][: 3 if op.op_type == "LSTM" else 2]
    if len(op.outputs) == len(roles):
        return list(zip(roles, op.outputs, strict=True))
    only = op.outputs[0]
    if len(op.outputs) == 1 and (len(only.shape) == 4 or len(roles) == 2):
        return [("y" if len(only.shape) == 4 else "yh", only)]
    raise UnsupportedError(f"{op.op_type} with some results left out")
