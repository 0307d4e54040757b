"""Values that are printed where they are read: never past something that changes them.

Random straight-line programs over two buffers that may be the same memory are compared with their
meaning, statement by statement, in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from programs_of_stages import call, stage
from tvm import tirx

from effc.kernels.builder import bind, local, loop, vload, vstore
from effc.kernels.lanes import concat

SIZE = 12
Statement = tuple[str, int, int, int, int]
STATEMENTS = st.tuples(
    st.sampled_from(["load", "add", "shuffle", "store", "accumulate", "loop"]),
    *(st.integers(0, 99) for _ in range(4)),
)


def emit(program: Sequence[Statement], x: Any, y: Any) -> None:
    """The program as TIR; values are bound by name as templates do."""
    values = [bind(vload(x, 0, 2))]
    sums = local(2, "int32")
    vstore(sums, 0, tirx.Broadcast(tirx.const(0, "int32"), 2), 2)
    for kind, a, b, c, _ in program:
        left, right = values[a % len(values)], values[b % len(values)]
        if kind == "load":
            values.append(bind(vload((x, y)[a % 2], b % (SIZE - 1), 2)))
        elif kind == "add":
            values.append(bind(left + right))
        elif kind == "shuffle":
            values.append(bind(concat([left, right], [c % 4, (c // 4) % 4])))
        elif kind == "store":
            vstore((x, y)[b % 2], c % (SIZE - 1), left, 2)
        elif kind == "accumulate":
            vstore(sums, 0, vload(sums, 0, 2) + left, 2)
            values.append(bind(vload(sums, 0, 2)))
        else:
            with loop(2) as i:
                inner = bind(vload(x, i + c % (SIZE - 2), 2) + left)
                vstore(y, i * 2 + b % (SIZE - 4), inner, 2)
    vstore(y, 0, values[-1], 2)


def compute(program: Sequence[Statement], x: np.ndarray, y: np.ndarray) -> None:
    """What the program does."""
    values = [x[0:2].copy()]
    sums = np.zeros(2, np.int32)
    for kind, a, b, c, _ in program:
        left, right = values[a % len(values)], values[b % len(values)]
        if kind == "load":
            at = b % (SIZE - 1)
            values.append((x, y)[a % 2][at : at + 2].copy())
        elif kind == "add":
            values.append(left + right)
        elif kind == "shuffle":
            values.append(np.concatenate([left, right])[[c % 4, (c // 4) % 4]])
        elif kind == "store":
            at = c % (SIZE - 1)
            (x, y)[b % 2][at : at + 2] = left
        elif kind == "accumulate":
            sums = sums + left
            values.append(sums.copy())
        else:
            for i in range(2):
                at, to = i + c % (SIZE - 2), i * 2 + b % (SIZE - 4)
                y[to : to + 2] = x[at : at + 2] + left
    y[0:2] = values[-1]


@settings(max_examples=60, deadline=None)
@given(st.lists(STATEMENTS, min_size=2, max_size=14), st.booleans())
def test_any_program(program: list[Statement], same: bool) -> None:
    x = np.arange(1, SIZE + 1, dtype=np.int32)
    y = x if same else np.arange(100, 100 + SIZE, dtype=np.int32)
    wanted_x = x.copy()
    wanted_y = wanted_x if same else y.copy()
    compute(program, wanted_x, wanted_y)

    def body(source: Any, out: Any, begin: Any, end: Any) -> None:
        emit(program, source, out)

    params = [("x", "int32", SIZE), ("y", "int32", SIZE)]
    text = call(stage(params, body), [x, y])
    np.testing.assert_array_equal(x, wanted_x, err_msg=text)
    np.testing.assert_array_equal(y, wanted_y, err_msg=text)


def test_values_have_no_variable_where_they_need_none() -> None:
    def body(source: Any, out: Any, begin: Any, end: Any) -> None:
        with loop(5) as i:
            wide = bind(tirx.Cast("int32", bind(source[i])))
            vstore(out, i, bind(wide * wide), 1)
            vstore(out, i, bind(wide + tirx.const(-3, "int32")), 1)

    x, y = np.arange(5, dtype=np.int8), np.zeros(5, np.int32)
    text = call(stage([("x", "int8", 5), ("y", "int32", 5)], body), [x, y])
    assert text == (
        "void k(const int8_t *x, int32_t *y)\n"
        "{\n"
        "    for (int32_t i = 0; i < 5; i++) {\n"
        "        const int32_t t1 = x[i];\n"
        "        y[i] = t1 * t1;\n"
        "        y[i] = t1 - 3;\n"
        "    }\n"
        "}\n"
    )


def test_dead_values_and_unused_parameters() -> None:
    def body(source: Any, unused: Any, out: Any, begin: Any, end: Any) -> None:
        counter = local(1, "int32")
        vstore(counter, 0, tirx.const(0, "int32"), 1)
        with loop(3) as i:
            bind(source[i] * 2)
            vstore(counter, 0, counter[0] + 1, 1)
            vstore(out, i, source[i], 1)

    x, y = np.arange(3, dtype=np.int32), np.zeros(3, np.int32)
    params = [("x", "int32", 3), ("w", "int32", 3), ("y", "int32", 3)]
    text = call(stage(params, body), [x, x.copy(), y])
    np.testing.assert_array_equal(y, x)
    assert "(void)w;" in text
    assert "t1" not in text
