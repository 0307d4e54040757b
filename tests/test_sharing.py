"""Weights that several programs share: every pointer still leads to its bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import toy_program

import effc
from effc.program import Call, Pointer, Program, StorageClass
from effc.sharing import share_weights

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"


def program_of(tensors: list[bytes]) -> Program:
    """A program with one call per tensor, which points to its start and into its middle."""
    blocks, calls = [], []
    blob = bytearray()
    for number, data in enumerate(tensors):
        blocks.append((len(blob), len(data)))
        pointers = tuple(
            Pointer(StorageClass.WEIGHTS, 0, len(blob) + inner) for inner in (0, len(data) // 2)
        )
        calls.append(Call(f"f{number}", (*pointers, Pointer(StorageClass.ARENA)), 1, "r", ()))
        blob += data.ljust(-(-len(data) // 64) * 64, b"\0")
    weights = np.frombuffer(bytes(blob), np.uint8)
    return replace(toy_program(), calls=tuple(calls), weights=weights, weight_blocks=tuple(blocks))


def seen(program: Program, tensors: list[bytes]) -> list[bytes]:
    """What each pointer of ``program_of`` leads to."""
    found = []
    for call, data in zip(program.calls, tensors, strict=True):
        for pointer, inner in zip(call.pointers[:2], (0, len(data) // 2), strict=True):
            end = pointer.offset + len(data) - inner
            found.append(program.weights[pointer.offset : end].tobytes())
    return found


TENSORS = st.lists(st.sampled_from([bytes([i]) * n for i in range(4) for n in (1, 64, 100)]))


@given(st.lists(TENSORS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_pointers_lead_to_the_same_bytes(contents: list[list[bytes]]) -> None:
    programs = [program_of(list(dict.fromkeys(tensors))) for tensors in contents]
    before = [seen(p, list(dict.fromkeys(t))) for p, t in zip(programs, contents, strict=True)]
    first = programs[0].weights.tobytes()
    share_weights(programs)
    after = [seen(p, list(dict.fromkeys(t))) for p, t in zip(programs, contents, strict=True)]
    assert before == after
    assert all(p.weights is programs[0].weights for p in programs)
    assert programs[0].weights.tobytes().startswith(first)  # the first one's order is kept
    distinct = {tensor for tensors in contents for tensor in tensors}
    assert programs[0].weights.size == sum(-(-len(t) // 64) * 64 for t in distinct)
    offsets = [p.offset for program in programs for c in program.calls for p in c.pointers[::2]]
    assert all(offset % 64 == 0 for offset in offsets)


def test_three_abis_need_one_set_of_weights() -> None:
    """Configurations that agree exist for the whole example, and every library is verified."""
    abis = ["arm64-v8a", "armeabi-v7a", "x86_64"]
    alone = effc.compile(EXAMPLE, "android", verify=False)
    artifact = effc.compile(EXAMPLE, "android", abi=abis, weights="file")
    assert [entry["abi"] for entry in artifact.libraries] == abis
    size = alone.manifest["weights_bytes"]
    assert {entry["weights_bytes"] for entry in artifact.libraries} == {size}
    assert all(entry["verification"]["ok"] for entry in artifact.libraries)
    assert (artifact.folder / "weights/digits.bin").stat().st_size == size + 64
    assert all((artifact.folder / e["library"]).stat().st_size < 60000 for e in artifact.libraries)
