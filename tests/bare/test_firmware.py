"""What firmware builders get: archives that other toolchains link, budgets, clear errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_net import small_net

import effc
from effc import zig
from effc.artifact import Artifact
from effc.bare.toolchain import machine_flags
from effc.devices.catalog import get_target
from effc.errors import QualityError, UnsupportedError, UsageError
from effc.kernels.float_unit import float_refusal
from effc.kernels.region import Op, Region, TensorType, Value

FIRMWARE = """
#include "m.h"
int m_selftest(void *arena, void *const *outputs);
static uint8_t arena[m_ARENA_BYTES] __attribute__((aligned(m_ARENA_ALIGNMENT)));
static m_OUTPUT_0_TYPE y[m_OUTPUT_0_ELEMENTS];
static const int32_t shape[m_INPUT_0_RANK] = m_INPUT_0_SHAPE;
int volatile result;
int main(void)
{
    void *outputs[] = {y};
    result = m_selftest(arena, outputs) + shape[0];
    return result;
}
"""
MEMORY = """
#include <stddef.h>
void *memset(void *p, int c, size_t n)
{
    for (volatile char *q = p; n > 0; n--)
        *q++ = (char)c;
    return p;
}
void *memcpy(void *p, const void *s, size_t n)
{
    volatile char *q = p;
    for (const char *r = s; n > 0; n--)
        *q++ = *r++;
    return p;
}
"""
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None,
    reason="qemu-system-arm is not installed (tools/install-system-packages.sh)",
)


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    x = np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32)
    return effc.compress(small_net(), quantize="int8", calibration={"x": x})


@pytest.fixture(scope="module")
def artifact(quantized: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    if shutil.which("qemu-system-arm") is None:
        pytest.skip("qemu-system-arm is not installed (tools/install-system-packages.sh)")
    out = tmp_path_factory.mktemp("firmware") / "m"
    return effc.compile(quantized, target="cortex-m4", output=out, name="m")


def test_manifest_and_header_say_the_same(artifact: Artifact) -> None:
    manifest = artifact.manifest
    header = (artifact.folder / "include" / "m.h").read_text()
    for macro, key in (("ARENA", "arena"), ("FLASH", "flash"), ("STACK", "stack")):
        assert f"#define m_{macro}_BYTES {manifest[f'{key}_bytes']}\n" in header
    assert f"#define m_WEIGHTS_BYTES {manifest['weights_bytes']}\n" in header
    assert manifest["code_bytes"] + manifest["weights_bytes"] <= manifest["flash_bytes"]
    assert manifest["stack_bytes"] > 0
    assert manifest["verification"]["ok"]
    assert manifest["verification"]["device"] == "qemu"
    assert set(manifest["undefined_symbols"]) <= {"memcpy", "memset", "memmove"}


def sources(artifact: Artifact, folder: Path) -> list[Path]:
    """A firmware's own files, and the self-test."""
    (folder / "main.c").write_text(FIRMWARE)
    (folder / "memory.c").write_text(MEMORY)
    return [folder / "main.c", folder / "memory.c", artifact.folder / "selftest" / "m_selftest.c"]


def test_gcc_links_and_sizes_agree(artifact: Artifact, tmp_path: Path) -> None:
    gcc = shutil.which("arm-none-eabi-gcc")
    if gcc is None:
        pytest.skip("arm-none-eabi-gcc is not installed (tools/install-system-packages.sh)")
    flags = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Os"]
    flags += ["-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-e", "main"]
    files = [*map(str, sources(artifact, tmp_path)), str(artifact.library)]
    include = f"-I{artifact.folder / 'include'}"
    command = [gcc, *flags, "-Wl,--gc-sections", include, *files, "-lgcc", "-o", "firmware.elf"]
    subprocess.run(command, cwd=tmp_path, check=True)
    command = ["arm-none-eabi-nm", "-S", "firmware.elf"]
    listed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    sizes = {row[3]: int(row[1], 16) for row in rows if len(row) == 4}
    code = sum(size for name, size in sizes.items() if re.fullmatch(r"m_(f\d+|run|step)", name))
    assert 0.98 * artifact.manifest["code_bytes"] < code <= artifact.manifest["code_bytes"]
    assert sizes["m_weights"] == artifact.manifest["weights_bytes"]


def test_clang_links(artifact: Artifact, tmp_path: Path) -> None:
    flags = [*machine_flags(get_target("cortex-m4")), "-O2", "-ffreestanding", "-fno-builtin"]
    objects = []
    for source in sources(artifact, tmp_path):
        objects.append(tmp_path / f"{source.stem}.o")
        include = f"-I{artifact.folder / 'include'}"
        zig.clang([*flags, include, "-c", str(source), "-o", str(objects[-1])])
    out = tmp_path / "firmware.elf"
    zig.lld(["-m", "armelf", "-e", "main", *map(str, objects), str(artifact.library)], out)
    assert out.stat().st_size > artifact.manifest["weights_bytes"]


@needs_qemu
def test_compare_looks_into_the_arena(artifact: Artifact) -> None:
    comparison = effc.compare(small_net(), artifact, inputs={"x": np.ones((2, 3, 8, 8), "f4")})
    assert comparison.device == "qemu"
    known = [layer.output.snr_db for layer in comparison.layers if layer.output is not None]
    assert len(known) > 5
    assert min(known) > 10


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"ram": "2k"}, ["bytes of RAM more", "input x", "arena at step", "arena"]),
        ({"flash": 8192}, ["bytes of flash more", "code", "weights of"]),
    ],
)
def test_too_little_memory_is_broken_down(
    options: dict[str, int | str], names: list[str], quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(QualityError) as caught:
        effc.compile(quantized, target="cortex-m4", output=tmp_path / "m", verify=False, **options)
    for name in names:
        assert name in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_floats_are_moved_without_a_float_unit() -> None:
    target = get_target("cortex-m0plus")
    x = Value("x", TensorType((4,), "float32"))
    for op in ("Concat", "Insert", "BitCast", "GatherElements", "ScatterND"):
        region = Region("r", (moves := Op(op, (x,), (x,)),), moves, (x,), (x,))
        assert float_refusal(region, target) is None
    softmax = Op("Softmax", (x,), (x,))
    region = Region("r", (softmax,), softmax, (x,), (x,))
    assert "no floating-point unit" in (float_refusal(region, target) or "")


def test_floats_need_a_float_unit(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"deep.*no floating-point unit") as caught:
        effc.compile(small_net(), target="cortex-m0plus", output=tmp_path / "m", verify=False)
    assert "quantize" in str(caught.value)


def test_a_float_output_of_a_network_quantized_for_others_is_to_be_cut_off(tmp_path: Path) -> None:
    digits = Path(__file__).parents[2] / "examples" / "digits"
    samples = np.load(digits / "digits_test.npz")["x"][:16]
    options = {"quantize": "int8", "calibration": {"x": samples}}
    small = effc.compress(digits / "digits.onnx", **options)
    with pytest.raises(UnsupportedError, match="node softmax") as caught:
        effc.compile(small, target="riscv32", output=tmp_path / "m", verify=False)
    assert "cut these nodes off" in str(caught.value)


def test_a_softmax_at_the_end_is_quantized_for_want_of_a_float_unit() -> None:
    digits = Path(__file__).parents[2] / "examples" / "digits"
    samples = np.load(digits / "digits_test.npz")["x"][:16]
    made = effc.compile(
        digits / "digits.onnx", target="cortex-m0plus", quantize="int8", calibration={"x": samples}
    )
    assert made.manifest["verification"]["ok"]
    assert "SoftmaxInteger" in {layer["op"] for layer in made.manifest["layers"]}


def test_an_operator_that_needs_a_c_library_is_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Exp", ["x"], ["y"], "the_node")
    shape = [1, 3, 3]
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, shape)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    with pytest.raises(UnsupportedError, match="the_node"):
        effc.compile(model, target="cortex-m4", output=tmp_path / "m", verify=False)


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("host", {"ram": "64k"}),
        ("host", {"optimize": "size"}),
        ("cortex-m4", {"ram": "64q"}),
        ("cortex-m4", {"optimize": "small"}),
        ("cortex-m4", {"threads": 2}),
        ("cortex-m4", {"weights": "file"}),
        ("cortex-m4", {"abi": ["cortex-m4", "cortex-m7"]}),
        ("nucleo-l4r5", {}),
    ],
)
def test_options_that_mean_nothing(
    target: str, options: dict[str, Any], quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    with pytest.raises(UsageError):
        effc.compile(quantized, target=target, output=tmp_path / "m", **options)


@pytest.mark.parametrize(
    ("script", "code"), [(None, 4), ("exit 3", 5), ("echo nonsense, a lot of it", 5)]
)
def test_a_dead_emulator_is_reported(
    script: str | None,
    code: int,
    artifact: Artifact,
    tmp_path: Path,
) -> None:
    if script is not None:
        fake = tmp_path / "qemu-system-arm"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    done = subprocess.run(
        [*(sys.executable, "-c", "from effc.cli import main; main()"), "bench", artifact.path],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    assert "qemu-system-arm" in done.stderr
    assert "Traceback" not in done.stderr


@needs_qemu
def test_commands(artifact: Artifact, quantized: onnx.ModelProto, tmp_path: Path) -> None:
    """``run`` and ``verify`` with several samples, ``bench`` with layers."""
    x = np.random.default_rng(3).standard_normal((3, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    onnx.save(quantized, tmp_path / "m.onnx")

    def effc_json(*words: object) -> dict[str, Any]:
        command = [sys.executable, "-c", "from effc.cli import main; main()", *map(str, words)]
        done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    assert effc_json("run", artifact.path, "--input", "x.npz", "-o", "y.npz")["samples"] == 3
    assert np.load(tmp_path / "y.npz")["y"].shape == (3, 5)
    words = ("--model", "m.onnx", "--input", "x.npz")
    verified = effc_json("verify", artifact.path, *words)
    assert verified["ok"]
    assert verified["samples"] == 3
    assert effc_json("verify", artifact.path)["against"] == "golden outputs"
    bench = effc_json("bench", artifact.path, "--profile", "--device", "qemu")
    assert bench["simulated"] is True
    assert bench["instructions"] == bench["cycles"] > 0
    ms = bench["instructions"] / (bench["clock_mhz"] * 1e3)
    assert bench["latency_ms"]["median"] == pytest.approx(ms)
    assert 0 < bench["stack_bytes"] <= artifact.manifest["stack_bytes"] + 112
    assert 0.9 < sum(row["share"] for row in bench["per_layer"]) <= 1.0
