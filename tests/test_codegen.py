"""Generated C: golden files, awkward names, refusals."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toy_model import toy_object, toy_program

from effc.codegen import exported_symbols, generate_c
from effc.devices.catalog import get_target
from effc.errors import InternalError, UnsupportedError
from effc.kernels.region import TensorType
from effc.link import link_library
from effc.program import Call, CodeVariant, Pointer, Port, Program, StorageClass
from effc.runtimes.loader import Runner


def test_golden(golden: Callable[[str, str], None]) -> None:
    for name, text in generate_c(toy_program(bounds=True)).items():
        golden(name, text)


def with_variants(program: Program) -> Program:
    """Two further versions of the first function, one more of the second."""
    first, second = (program.calls[i].symbol for i in (0, 1))
    less = CodeVariant("dotprod", ("fullfp16", "dotprod"), {first: f"{first}_dotprod"})
    more = {first: f"{first}_i8mm", second: f"{second}_i8mm"}
    program.variants = (CodeVariant("i8mm", ("dotprod", "i8mm"), more), less)
    return program


def test_golden_variants(golden: Callable[[str, str], None]) -> None:
    golden("toy_variants.c", generate_c(with_variants(toy_program()))["toy.c"])


def test_a_feature_that_nothing_asks_for_is_refused() -> None:
    program = toy_program()
    program.variants = (CodeVariant("sve", ("sve",), {}),)
    with pytest.raises(InternalError, match="cannot ask the processor"):
        generate_c(program)


def test_equal_programs_give_equal_text() -> None:
    assert generate_c(toy_program()) == generate_c(toy_program())


def test_exports_are_prefixed() -> None:
    assert exported_symbols(toy_program("net")) == (
        "net_create",
        "net_destroy",
        "net_info",
        "net_run",
        "net_variant",
    )


def test_awkward_names_survive(tmp_path: Path) -> None:
    """Quotes, backslashes, trigraphs, comment ends and UTF-8 in tensor and node names."""
    program = toy_program()
    name = 'a"b\\c??/d*/é\n/*'
    node = 'x"\\??=ü'
    first = dataclasses.replace(program.calls[0], nodes=(node, "other"))
    program.inputs = (Port(name, program.inputs[0].type),)
    program.calls = (first, *program.calls[1:])
    target = get_target("host")
    out = tmp_path / "libtoy.so"
    link_library(program, [toy_object(target, tmp_path)], target, out)
    with Runner(out, {"name": "toy"}) as runner:
        assert [t.name for t in runner.inputs] == [name]
        assert runner.profile(runs=1)[0].nodes == (node, "other")


def replaced(**changes: object) -> Program:
    return dataclasses.replace(toy_program(), **changes)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (replaced(name="a-b"), "identifier"),
        (replaced(arena_bytes=32), "leaves its storage"),
        (replaced(scratch_bytes=-1), "leaves its storage"),
        (replaced(calls=(Call("f", (Pointer(StorageClass.INPUT, 1),), 1, "r", ()),)), "leaves"),
        (replaced(calls=(Call("f", (), 3, "r", (), (0, 2, 1, 3)),)), "cumulative"),
        (replaced(calls=(Call("f", (), 3, "r", (), (0, 1)),)), "cumulative"),
        (
            replaced(
                calls=(
                    Call("f", (), 1, "r", ()),
                    Call("f", (Pointer(StorageClass.INPUT),), 1, "r", ()),
                )
            ),
            "different numbers",
        ),
    ],
)
def test_broken_programs_are_refused(program: Program, match: str) -> None:
    with pytest.raises(InternalError, match=match):
        generate_c(program)


def test_unsupported_dtype() -> None:
    with pytest.raises(UnsupportedError, match="complex64"):
        generate_c(replaced(inputs=(Port("x", TensorType((1,), "complex64")),)))


def test_huge_bounds_are_scaled_to_32_bits() -> None:
    calls = (Call("f", (), 3, "r", (), (0, 2**40, 2**41, 3 * 2**40)),)
    text = generate_c(replaced(calls=calls))["toy.c"]
    line = next(x for x in text.splitlines() if "bounds_0[]" in x)
    numbers = [int(n) for n in line.split("{")[1].split("}")[0].split(",")]
    assert numbers[0] == 0
    assert numbers[-1] < 2**32
    assert np.allclose(np.diff(numbers) / numbers[-1], 1 / 3, atol=1e-6)


def test_model_without_calls_inputs_and_weights(tmp_path: Path) -> None:
    """A graph whose output is its input needs no step at all."""
    program = Program(
        name="empty",
        inputs=(),
        outputs=(),
        calls=(),
        weights=np.zeros(0, np.uint8),
        arena_bytes=0,
        arena_lower_bound_bytes=0,
        scratch_bytes=0,
    )
    out = tmp_path / "libempty.so"
    link_library(program, [], get_target("host"), out)
    with Runner(out, {"name": "empty"}) as runner:
        assert runner.run({}) == {}
    assert ctypes.CDLL(str(out)).empty_info is not None
