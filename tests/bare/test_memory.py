"""RAM of whole networks on microcontrollers: exact figures, proofs, strips, what does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from shared_data import SHARED_DATA

import effc
from effc.errors import QualityError
from effc.execute import open_board
from effc.fit import StripChoice, fit_in_strips, strip_choices
from effc.imported import import_and_simplify
from effc.options import CompileOptions
from effc.pipeline import compile_model
from effc.samples import Tensor, generate

MODELS = SHARED_DATA / "models"
needs_data = pytest.mark.skipif(not MODELS.exists(), reason="needs ../shared/data")
RESNET = MODELS / "mlperf_tiny_ic01_resnet8_int8.onnx"

ARENAS = {  # bytes: what the plan has, what the project promised
    "ic01_resnet8": (33_360, 50_000),
    "kws01_dscnn": (8_928, 17_000),
    "vww01_mobilenetv1": (36_912, 56_000),
    "ad01_autoencoder": (1_408, 17_000),
}


@needs_data
@pytest.mark.parametrize("name", ARENAS)
def test_order_and_placement_are_proven(name: str) -> None:
    path = MODELS / f"mlperf_tiny_{name}_int8.onnx"
    program = compile_model(path, CompileOptions(target="cortex-m4", tune="none")).program
    peak = program.metadata["peak"]
    assert isinstance(peak, dict)
    expected, promised = ARENAS[name]
    assert program.arena_bytes == program.arena_lower_bound_bytes == expected <= promised
    assert program.scratch_bytes == 0
    assert all(peak[key] for key in ("optimal", "order_proven", "plan_proven"))


@needs_data
def test_strips_give_the_bits_of_the_whole_on_a_board(tmp_path: Path) -> None:
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed (tools/install-system-packages.sh)")
    whole = effc.compile(RESNET, output=tmp_path / "whole", verify=False)
    strips = effc.compile(
        RESNET, target="cortex-m4", ram="30k", output=tmp_path / "strips", verify=False
    )
    manifest = strips.manifest
    (done,) = [p["applied"] for p in manifest["passes"] if p["name"] == "split_into_strips"]
    assert "strips of" in done[0]
    needed = manifest["arena_bytes"] + manifest["stack_bytes"]
    assert needed + sum(p["bytes"] for p in manifest["inputs"] + manifest["outputs"]) <= 30 * 1024
    host = effc.load(whole)
    with open_board(strips, None) as board:
        for seed in range(3):
            feeds = generate([Tensor.of(entry) for entry in manifest["inputs"]], seed=seed)
            want, got = host.run(feeds), board.run(feeds)
            for name, array in want.items():
                np.testing.assert_array_equal(got[name], array)


@needs_data
def test_what_does_not_fit_is_explained() -> None:
    with pytest.raises(QualityError) as error:
        compile_model(RESNET, CompileOptions(target="cortex-m4", tune="none", ram=8192))
    text = str(error.value)
    for part in (
        "bytes of RAM more than there are",
        "at most 8192 bytes",
        "3072 input",
        "10 output",
        "in the arena at step",
        "16384 ",
        "no order of the layers needs less than",
        "first stages in strips of rows do not fit either",
    ):
        assert part in text, part


@needs_data
def test_least_work_that_fits_is_taken() -> None:
    model = import_and_simplify(RESNET, CompileOptions(target="cortex-m4")).model
    choices = strip_choices(model)
    assert choices == sorted(choices, key=lambda c: (c.extra, c.estimate, c.cut))
    asked: list[StripChoice] = []

    def plan(_: object, choice: StripChoice) -> tuple[str, int]:
        asked.append(choice)  # every cut has a floor, the first one too high
        return "found", 30_000 if choice.cut == first.cut else 24_000

    first = next(c for c in choices if c.estimate <= 28_000)
    found, choice = fit_in_strips(model, 28_000, plan)
    assert found == "found"
    assert choice is not None
    assert choice.cut != first.cut
    assert asked[0] == first
    assert [c.extra for c in asked] == sorted(c.extra for c in asked)
    assert len([c for c in asked if c.cut == first.cut]) <= 2
