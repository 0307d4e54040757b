"""The Python API: compile, load, run; what is lazy; determinism."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import effc

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
MODEL = EXAMPLE / "digits.onnx"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The digits example for this machine."""
    return effc.compile(MODEL, output=tmp_path_factory.mktemp("api") / "digits")


def small_model(scale: float = 2.0) -> onnx.ModelProto:
    """``y = x * scale`` with one dynamic axis."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "scale"], ["y"], "mul")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(scale, np.float32), "scale")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_nothing_is_reported_to_anyone(tmp_path: Path) -> None:
    """ONNX Runtime keeps an identifier of the device on disk for its telemetry."""
    code = "import effc, onnxruntime, sys\nonnxruntime.InferenceSession(sys.argv[1])"
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | places
    subprocess.run([sys.executable, "-c", code, MODEL], check=True, env=environment, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    code = "import sys, effc; print({'numpy', 'onnx', 'tvm', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert set(effc.__all__) <= set(dir(effc))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = effc.nonsense


def test_compiled_model_answers_like_onnxruntime(artifact: effc.Artifact) -> None:
    with np.load(EXAMPLE / "digits_test.npz") as data:
        images, labels = data["x"], data["y"]
    session = ort.InferenceSession(MODEL)
    runner = effc.load(artifact)
    right = 0
    for image, label in zip(images[:64], labels[:64], strict=True):
        want = session.run(None, {"image": image[None]})[0]
        got = runner.run({"image": image[None]})["probabilities"]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        right += int(got.argmax() == label)
    assert right >= 62


def test_load_by_path_and_bench(artifact: effc.Artifact) -> None:
    with pytest.raises(effc.UsageError, match="threads"):
        effc.load(artifact, threads=0)
    stats = effc.load(artifact.path).bench(runs=5, warmup=1)
    assert (stats.runs, stats.warmup, stats.threads) == (5, 1, 1)
    assert stats.median_ms > 0


def test_same_input_same_bytes(artifact: effc.Artifact, tmp_path: Path) -> None:
    again = effc.compile(MODEL, output=tmp_path / "again", name="digits")
    for name in ("manifest.json", "report.html", "selftest.npz", artifact.manifest["library"]):
        assert (again.folder / name).read_bytes() == (artifact.folder / name).read_bytes(), name


def test_model_in_memory_without_output(tmp_path: Path) -> None:
    artifact = effc.compile(small_model(), shapes={"x": (4, 3)}, name="scale")
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(effc.load(artifact).run({"x": x})["y"], 2 * x)
    folder = artifact.folder
    assert folder.is_dir()
    del artifact
    assert not folder.exists()


def test_replaced_artifact_is_loaded_anew(tmp_path: Path) -> None:
    x = np.ones((1, 3), np.float32)
    runners = []
    for scale in (2.0, 3.0):
        model, shapes = small_model(scale), {"x": (1, 3)}
        artifact = effc.compile(model, output=tmp_path / "m", shapes=shapes, verify=False)
        runners.append(effc.load(artifact))
    assert [float(runner.run({"x": x})["y"][0, 0]) for runner in runners] == [2.0, 3.0]


def test_constant_inputs(tmp_path: Path) -> None:
    model = small_model()
    scale = model.graph.initializer.pop()
    model.graph.input.append(helper.make_tensor_value_info(scale.name, TensorProto.FLOAT, []))
    artifact = effc.compile(model, shapes={"x": (1, 3)}, constants={"scale": 5.0})
    assert [port["name"] for port in artifact.manifest["inputs"]] == ["x"]
    y = effc.load(artifact).run({"x": np.ones((1, 3), np.float32)})["y"]
    np.testing.assert_array_equal(y, np.full((1, 3), 5.0))


def test_failed_verification_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effc.reference import Reference

    original = Reference.__call__
    monkeypatch.setattr(
        Reference,
        "__call__",
        lambda self, inputs: {k: v * 1.01 for k, v in original(self, inputs).items()},
    )
    with pytest.raises(effc.QualityError, match="y: the compiled model does not match") as caught:
        effc.compile(small_model(), output=tmp_path / "m", shapes={"x": (1, 3)})
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": "hots"}, "did you mean host"),
        ({"name": "2nd model"}, "--name m_2nd_model"),
        ({"threads": 0}, "1 to 64"),
        ({"tune": "some"}, "none, quick, full"),
        ({"tune": 0}, "positive"),
        ({"shapes": {"x": (0, 3)}}, "positive numbers"),
        ({"shapes": {"z": (1, 3)}}, "z"),
        ({}, "--shape"),
    ],
)
def test_wrong_options(options: dict[str, object], text: str) -> None:
    with pytest.raises(effc.UsageError, match=text):
        effc.compile(small_model(), **options)  # type: ignore[arg-type]


def test_artifact_for_another_machine_is_refused(tmp_path: Path) -> None:
    shapes = {"x": (1, 3)}
    artifact = effc.compile(small_model(), target="android", shapes=shapes, verify=False)
    with pytest.raises(effc.DeviceError):
        effc.load(artifact)


@pytest.mark.parametrize("target", ["android", "android-armv7", "linux-arm64"])
def test_arm_targets_are_verified_under_qemu(target: str) -> None:
    emulator = "qemu-arm" if "v7" in target else "qemu-aarch64"
    if shutil.which(emulator) is None:
        pytest.skip(f"{emulator} is not installed (apt-get install qemu-user)")
    artifact = effc.compile(MODEL, target=target)
    assert artifact.manifest["verification"]["device"] == "qemu"
    assert artifact.manifest["segment_alignment"] == (4096 if "v7" in target else 16384)
