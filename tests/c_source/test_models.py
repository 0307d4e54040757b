"""Whole models as C source: strict compilers, sanitizers, the host's results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from c_compilers import SANITIZERS
from onnx import TensorProto, helper
from programs import build, run
from shared_data import SHARED_DATA
from small_net import images, small_net

import effc
from effc.artifact import Artifact
from effc.errors import ToolError, UsageError
from effc.execute import open_executor, open_tracer

MODELS = SHARED_DATA / "models"


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    """The small network in 8 bits; what goes in and comes out is float32."""
    return effc.compress(small_net(), quantize="int8", calibration={"x": images(32)})


@pytest.fixture(scope="module")
def artifact(quantized: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("c")
    return effc.compile(quantized, target="c", output=folder / "net", name="net")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("sanitized", [False, True])
def test_integers_are_those_of_the_host(
    compiler: str, sanitized: bool, quantized: onnx.ModelProto, artifact: Artifact, tmp_path: Path
) -> None:
    host = effc.compile(quantized, target="host", output=tmp_path / "host", verify=False)
    samples = [{"x": x[None]} for x in images(20, seed=3)]
    flags = ("-O1", *SANITIZERS[compiler]) if sanitized else ("-O2",)
    found = run(build(artifact, compiler, tmp_path, *flags), artifact, samples)
    with effc.load(host) as runner:
        for sample, outputs in zip(samples, found, strict=True):
            np.testing.assert_array_equal(outputs["y"], runner.run(sample)["y"])


def test_floats_are_within_rounding(tmp_path: Path) -> None:
    """Compilers may contract and reorder nothing else: errors as of any float32 evaluation."""
    artifact = effc.compile(small_net(), target="c", output=tmp_path / "net", name="net")
    host = effc.compile(small_net(), target="host", output=tmp_path / "host", verify=False)
    samples = [{"x": x[None]} for x in images(5, seed=3)]
    found = run(build(artifact, "gcc", tmp_path, "-O1", *SANITIZERS["gcc"]), artifact, samples)
    with effc.load(host) as runner:
        for sample, outputs in zip(samples, found, strict=True):
            want = runner.run(sample)["y"]
            # 10 layers, sums of at most 216 terms: |error| <= 10 * 216 * eps * largest value.
            limit = 10 * 216 * np.finfo(np.float32).eps * np.abs(want).max()
            np.testing.assert_allclose(outputs["y"], want, rtol=0, atol=limit)


def test_what_an_artifact_holds(artifact: Artifact) -> None:
    names = {"net.c", "net_kernels.c", "net_kernels.h", "net_weights.c"}
    assert {f.name for f in (artifact.folder / "src").iterdir()} == names
    assert artifact.manifest["library"] == "src/net.c"
    assert artifact.manifest["verification"]["ok"]
    texts = {f: (artifact.folder / "src" / f).read_text() for f in names}
    assert "tvm" not in "".join(texts.values()).lower()
    assert "float" not in texts["net_weights.c"]
    assert max(len(line) for text in texts.values() for line in text.splitlines()) <= 110
    header = (artifact.folder / "include" / "net.h").read_text()
    assert f"#define net_ARENA_BYTES {artifact.manifest['arena_bytes']}\n" in header


def test_the_same_model_gives_the_same_source(
    quantized: onnx.ModelProto, artifact: Artifact, tmp_path: Path
) -> None:
    again = effc.compile(quantized, target="c", output=tmp_path / "net", name="net")
    assert again.manifest["files"] == artifact.manifest["files"]


def test_runs_is_timed_and_traced_on_this_machine(artifact: Artifact) -> None:
    x = images(1, seed=5)
    with open_executor(artifact, None, None) as opened, open_tracer(artifact, None) as tracer:
        assert opened.device == "local"
        outputs = opened.run({"x": x})["y"]
        traced, _ = tracer.trace({"x": x}, [])
        np.testing.assert_array_equal(outputs, traced["y"])
        assert opened.bench(runs=3, warmup=1).median_ms > 0
    with effc.load(artifact) as runner:
        np.testing.assert_array_equal(runner.run({"x": x})["y"], outputs)
        layers = runner.profile(runs=3, warmup=1)
    with pytest.raises(UsageError, match="cortex-m4"):
        open_executor(artifact, "qemu", None)
    assert [layer.name for layer in layers] == list(dict.fromkeys(artifact.manifest["steps"]))


def test_the_command_line(artifact: Artifact) -> None:
    def effc_command(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from effc.cli import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    path = str(artifact.path)
    timed = effc_command("bench", path, "--runs", "3", "--json")
    assert timed.returncode == 0, timed.stderr
    assert json.loads(timed.stdout)["device"] == "local"
    refused = effc_command("run", path, "--device", "qemu", "--input", "x.npz", "-o", "y.npz")
    assert refused.returncode == UsageError.exit_code


def test_a_compiler_that_refuses_the_source_is_reported(artifact: Artifact, tmp_path: Path) -> None:
    broken = tmp_path / "src"
    broken.mkdir()
    (tmp_path / "include").mkdir()
    (broken / "net.c").write_text("this is no C\n")
    from effc.c_source.hosted import hosted_library

    with pytest.raises(ToolError, match=r"net\.c:1"):
        hosted_library(broken / "net.c", artifact.manifest)


def test_float16_models_are_exact_where_their_operators_are(tmp_path: Path) -> None:
    half = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4])
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["m"], "square"),
        helper.make_node("Add", ["m", "w"], ["y"], "shift"),
    ]
    w = np.array([0.5, -0.1, 3, 1e-7], np.float16)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [4])
    weights = [onnx.numpy_helper.from_array(w, "w")]
    model = helper.make_model(helper.make_graph(nodes, "g", [half], [result], weights))
    artifact = effc.compile(model, target="c", output=tmp_path / "c", name="net")
    x = np.array([1.3, -0.1, 300, 1e-4], np.float16)
    (found,) = run(build(artifact, "gcc", tmp_path, *SANITIZERS["gcc"]), artifact, [{"x": x}])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found["y"], x * x + w)


@pytest.mark.skipif(not MODELS.is_dir(), reason="needs ../shared beside the project")
@pytest.mark.parametrize("board", ["c", "esp32-s3"])
def test_keyword_spotting_in_200_samples(board: str, tmp_path: Path) -> None:
    model = MODELS / "mlperf_tiny_kws01_dscnn_int8.onnx"
    artifact = effc.compile(model, target=board, output=tmp_path / "c", name="kws")
    host = effc.compile(model, target="host", output=tmp_path / "host", verify=False)
    data = np.load(SHARED_DATA / "data" / "kws01_mfcc_int8.npz")["x"][:200]
    samples = [{"input_1": x[None]} for x in data]
    found = run(build(artifact, "gcc", tmp_path), artifact, samples)
    with effc.load(host) as runner:
        for sample, outputs in zip(samples, found, strict=True):
            np.testing.assert_array_equal(outputs["Identity"], runner.run(sample)["Identity"])
