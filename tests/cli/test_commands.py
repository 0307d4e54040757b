"""The commands, called as a user calls them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from effc.samples import write_npz

from .conftest import EXAMPLE, Effc

MODEL = EXAMPLE / "digits.onnx"
SAMPLES = EXAMPLE / "digits_test.npz"


def test_help_is_light(effc: Effc) -> None:
    code = (
        "import sys\nfrom effc.cli.app import app\n"
        "try:\n app(['--help'])\nexcept SystemExit:\n pass\n"
        "heavy = {'numpy', 'onnx', 'tvm', 'onnxruntime', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("compile", "run", "verify", "bench", "inspect", "explain", "tune", "doctor"):
        assert command in done.stdout


def test_version(effc: Effc) -> None:
    answer = effc("--version")
    assert answer.code == 0
    assert answer.out.startswith("effc 0.")


def test_compile_prints_one_json_object(effc: Effc, tmp_path: Path) -> None:
    answer = effc("compile", MODEL, "--target", "host", "--json", "-v")
    result = answer.json
    assert answer.code == 0
    assert result["ok"] is True
    assert result["verification"]["outputs"][0]["snr_db"] > 90
    assert (tmp_path / "digits" / "manifest.json").is_file()
    assert (tmp_path / "digits" / result["library"]).is_file()
    assert (tmp_path / "digits" / "include" / "digits.h").is_file()
    assert (tmp_path / "digits" / "include" / "effc.h").is_file()
    assert (tmp_path / "digits" / "report.html").is_file()


def test_stopping_after_a_phase(effc: Effc, tmp_path: Path) -> None:
    flags = ("--prune", "unstructured", "--sparsity", 0.5, "--stop-after", "passes", "--dump", "d")
    answer = effc("compile", MODEL, "--target", "host", *flags, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["stopped_after"] == "passes"
    assert set(answer.json["files"]) == {"d/1-import.onnx", "d/2-passes.onnx", "d/2-passes.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert effc("compile", MODEL, "--target", "host", "--stop-after", "end").code == 2


def test_default_output_is_not_replaced_by_another_target(effc: Effc, tmp_path: Path) -> None:
    assert effc("compile", MODEL, "--target", "host", "--no-verify").code == 0
    answer = effc("compile", MODEL, "--target", "linux-x86_64", "--no-verify")
    assert answer.code == 2
    assert "-o digits-linux-x86_64" in answer.err
    assert "unknown target" in effc("compile", MODEL, "--target", "hots").err


def test_run_stacked_samples(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    answer = effc("run", artifact, "--input", SAMPLES, "-o", "y.npz", "--json")
    assert answer.code == 0, answer.err
    with np.load(tmp_path / "y.npz") as result, np.load(SAMPLES) as data:
        accuracy = (result["probabilities"].argmax(axis=1) == data["y"]).mean()
    assert accuracy >= 0.98
    assert answer.json["samples"] == 360


def test_run_named_inputs(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    assert effc("run", artifact, "--input", "x.npz", "-o", "y.npz").code == 0
    with np.load(tmp_path / "y.npz") as result:
        np.testing.assert_allclose(result["probabilities"].sum(), 1.0, rtol=1e-5)


def test_outputs_of_any_name(tmp_path: Path) -> None:
    arrays = {name: np.arange(3) for name in ("file", "allow_pickle", "../up", "y:0", "名")}
    with (tmp_path / "y.npz").open("wb") as stream:
        write_npz(stream, arrays)
    with np.load(tmp_path / "y.npz") as result:
        assert set(result.files) == set(arrays)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]


@pytest.mark.parametrize("place", [".", "/proc/y.npz", "missing/y.npz"])
def test_outputs_that_cannot_be_written(
    effc: Effc, artifact: Path, tmp_path: Path, place: str
) -> None:
    answer = effc("run", artifact, "--input", SAMPLES, "-o", place)
    assert answer.code == 2
    assert f"-o {place}" in answer.err
    assert not list(tmp_path.iterdir())


def test_paths_that_are_no_text(effc: Effc) -> None:
    answer = effc("compile", os.fsdecode(b"\xff.onnx"), "--target", "host", "--json")
    assert answer.code == 2
    assert "no such file" in answer.json["error"]["what"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"picture": np.zeros((1, 1, 8, 8), np.float32)},
        {"image": np.zeros((1, 1, 8, 9), np.float32)},
        {"image": np.zeros((1, 1, 8, 8), np.float64)},
        {"x": np.zeros((4, 1, 9, 9), np.float32)},
        {"x": np.zeros((4, 1, 8, 8), np.float32), "y": np.zeros(3, np.int64)},
    ],
    ids=["name", "shape", "dtype", "sample shape", "labels"],
)
def test_unfit_inputs_are_refused(
    effc: Effc, artifact: Path, tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    answer = effc("run", artifact, "--input", "x.npz", "-o", "y.npz")
    assert answer.code == 3
    assert "Traceback" not in answer.err
    assert not (tmp_path / "y.npz").exists()


def test_verify_with_labels(effc: Effc, artifact: Path) -> None:
    answer = effc("verify", artifact, "--model", MODEL, "--input", SAMPLES, "--json")
    result = answer.json
    assert answer.code == 0
    assert result["ok"] is True
    assert result["samples"] == 360
    assert result["top1_agreement"] == 1.0
    assert result["accuracy"] == result["reference_accuracy"] >= 0.98
    assert {"name", "max_abs_error", "max_rel_error", "snr_db"} <= result["outputs"][0].keys()


def test_verify_against_golden_outputs(effc: Effc, artifact: Path) -> None:
    answer = effc("verify", artifact, "--json")
    assert answer.code == 0
    assert answer.json["against"] == "golden outputs"


def test_verify_finds_another_model(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    model = onnx.load(MODEL)
    for tensor in model.graph.initializer:
        if tensor.name == "dense.bias":
            values = onnx.numpy_helper.to_array(tensor) + np.arange(10, dtype=np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "other.onnx")
    answer = effc("verify", artifact, "--model", "other.onnx", "--json")
    assert answer.code == 1
    assert answer.json["ok"] is False
    assert "does not match" in answer.err


def test_inspect_artifact(effc: Effc, artifact: Path) -> None:
    result = effc("inspect", artifact, "--json").json
    assert result["target"] == "host"
    assert result["entry"] == "digits_run"
    for key in ("arena_bytes", "arena_lower_bound_bytes", "weights_bytes", "code_bytes"):
        assert isinstance(result[key], int)
    assert result["macs"] == sum(layer["macs"] for layer in result["layers"]) == 309248
    fields = {"name", "op", "kernel", "macs", "sparsity", "pattern", "config"}
    assert all(fields <= layer.keys() for layer in result["layers"])
    text = effc("inspect", artifact)
    assert text.code == 0
    assert "segments aligned to 16384" in text.out


def test_inspect_model(effc: Effc) -> None:
    result = effc("inspect", MODEL, "--json").json
    assert result["operators"]["Conv"] == 2
    assert result["macs"] == 309248
    assert result["parameters"] == 9930


def test_explain_by_node_name(effc: Effc, artifact: Path) -> None:
    answer = effc("explain", artifact, "conv2", "--json")
    assert answer.code == 0
    result = answer.json
    assert "conv2" in result["nodes"]
    assert result["why"]
    assert result["alternatives"]
    wrong = effc("explain", artifact, "conv3")
    assert wrong.code == 2
    assert "did you mean" in wrong.err


def test_lists(effc: Effc) -> None:
    targets = {entry["name"] for entry in effc("targets", "--json").json["targets"]}
    assert {"host", "android", "android-armv7", "android-x86_64", "linux-arm64"} <= targets
    devices = effc("devices", "--json", ADB="no-adb-here").json["devices"]
    assert [d["name"] for d in devices] == ["local", "qemu", "adb"]
    assert devices[2]["hint"] == "apt-get install adb"
    doctor = effc("doctor", "--json")
    assert doctor.code == 0
    assert doctor.json["ok"] is True


def test_export(effc: Effc, artifact: Path, tmp_path: Path) -> None:
    arguments = ("export", artifact, "--as", "cmake", "-o", "package")
    answer = effc(*arguments, "--package-version", "2.0.1", "--json")
    assert answer.code == 0, answer.err
    sizes = {entry["path"]: entry["bytes"] for entry in answer.json["files"]}
    assert sizes["lib/libdigits.so"] == (tmp_path / "package/lib/libdigits.so").stat().st_size
    assert answer.json["bytes"] == sum(sizes.values())
    assert "find_package(digits 2.0.1 CONFIG REQUIRED)" in answer.json["usage"]
    assert "target_link_libraries" in effc(*arguments).out
    refused = effc("export", artifact, "--as", "aar", "-o", "package", "--json")
    assert refused.code == 2
    assert "cannot be packed as an AAR" in refused.json["error"]["what"]


def test_several_abis_in_one_artifact(effc: Effc) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")
    flags = ("--target", "android", "--abi", "x86_64,arm64-v8a", "--weights", "file", "-o", "a")
    answer = effc("compile", MODEL, *flags, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["library"] == "lib/x86_64/libdigits.so"
    further = [(e["abi"], e["library"]) for e in answer.json["further_abis"]]
    assert further == [("arm64-v8a", "lib/arm64-v8a/libdigits.so")]
    assert "lib/arm64-v8a/libdigits.so for android" in effc("inspect", "a").out
    assert effc("verify", "a", "--model", MODEL, "--json").json["ok"] is True
    other = effc("verify", "a", "--abi", "arm64-v8a", "--json").json
    assert (other["ok"], other["device"]) == (True, "qemu")
    refused = effc("bench", "a", "--abi", "mips")
    assert refused.code == 2
    assert "x86_64, arm64-v8a" in refused.err


def test_nothing_runs_what_is_for_apple(effc: Effc) -> None:
    answer = effc("compile", MODEL, "--target", "ios", "-o", "a", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["verification"] is None
    refused = effc("verify", "a", "--json")
    assert refused.code == 5
    assert "Apple" in refused.json["error"]["what"]


def test_android_artifact_runs_emulated(effc: Effc, tmp_path: Path) -> None:
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")
    answer = effc("compile", MODEL, "--target", "android", "-o", "a.effc", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["verification"]["device"] == "qemu"
    assert (tmp_path / "a.effc").is_file()
    assert effc("verify", "a.effc", "--device", "qemu", "--json").json["ok"] is True
    refused = effc("verify", "a.effc", "--device", "local")
    assert refused.code == 5


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["compile"], 2, "Missing argument"),
        (["compile", "missing.onnx", "--target", "host"], 2, "no such file"),
        (["compile", MODEL, "--target", "androit"], 2, "android"),
        (["compile", MODEL, "--target", "host", "--shape", "nonsense"], 2, "NAME:1,3,224,224"),
        (["compile", MODEL, "--target", "host", "--tune", "much"], 2, "none, quick, full"),
        (["compile", MODEL, "--target", "host", "--name", "int"], 2, "--name m_int"),
        (["compile", MODEL, "--target", "host", "--threads", "0"], 2, "--threads"),
        (["compile", MODEL, "--target", "host", "-o", "no/such/folder"], 2, "does not exist"),
        (["compile", SAMPLES, "--target", "host"], 3, "not an ONNX model"),
        (["run", "missing", "--input", "x.npz", "-o", "y.npz"], 2, "no such artifact"),
        (["verify", MODEL, "--model", MODEL], 3, "not an effc artifact"),
        (["bench", EXAMPLE], 3, "not an effc artifact"),
        (["inspect", "missing"], 2, "no such file"),
        (["tune", MODEL, "--target", "android"], 2, "nothing can be measured here"),
        (["frobnicate"], 2, "frobnicate"),
        (["compile", MODEL, "--target", "host", "--sparsity", "0.5"], 2, "needs prune"),
        (["compile", MODEL, "--target", "host", "--max-drop", "1"], 2, "needs quantize int8"),
        (["compile", MODEL, "--target", "host", "--calibration", SAMPLES], 2, "nothing looks at"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_errors_have_codes_and_no_traceback(
    effc: Effc, arguments: list[object], code: int, text: str
) -> None:
    answer = effc(*arguments)
    assert answer.code == code, answer.err
    assert text in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""


def test_errors_as_json(effc: Effc) -> None:
    answer = effc("compile", SAMPLES, "--target", "host", "--json")
    assert answer.code == 3
    assert answer.json["ok"] is False
    assert answer.json["error"]["exit_code"] == 3


def test_flags_that_cannot_be_parsed_as_json(effc: Effc) -> None:
    answer = effc("compile", "--threads", "many", "--json")
    assert answer.code == answer.json["error"]["exit_code"] == 2
    assert "effc compile --help" in answer.json["error"]["hint"]


def test_no_command_shows_help(effc: Effc) -> None:
    answer = effc()
    assert answer.code == 0
    assert "compile" in answer.out


def test_all_unsupported_operators_at_once(effc: Effc, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["a"], "first"),
        helper.make_node("NonZero", ["scores"], ["b"], "second"),
    ]
    values = {"boxes": [1, 6, 4], "scores": [1, 2, 6]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in values.items()],
        [
            helper.make_tensor_value_info("a", TensorProto.INT64, [None, 3]),
            helper.make_tensor_value_info("b", TensorProto.INT64, [3, None]),
        ],
    )
    onnx.save(helper.make_model(graph), tmp_path / "odd.onnx")
    answer = effc("compile", "odd.onnx", "--target", "host")
    assert answer.code == 3
    assert "first" in answer.err
    assert "second" in answer.err
    assert not (tmp_path / "odd").exists()


def test_a_bug_of_ours_leaves_a_report(effc: Effc, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import effc.cli.build\n"
        "def broken(*a, **k): raise RuntimeError('boom')\n"
        "effc.cli.build.compile_command = broken\n"
    )
    answer = effc("compile", MODEL, "--target", "host", PYTHONPATH=str(tmp_path))
    assert answer.code == 70
    assert "boom" in answer.err
    assert "Traceback" not in answer.err
    (report,) = tmp_path.glob("effc-crash-*.txt")
    assert "Traceback" in report.read_text()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_that_becomes_another_error(effc: Effc, tmp_path: Path, name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, effc.cli.build\n"
        f"signal.signal(signal.{name}, signal.SIG_DFL)\n"  # nohup and the like ignore it
        "def broken(*a, **k):\n"
        f"    try: os.kill(os.getpid(), signal.{name})\n"
        "    except KeyboardInterrupt as stop: raise RuntimeError('lost') from stop\n"
        "effc.cli.build.compile_command = broken\n"
    )
    answer = effc("compile", MODEL, "--target", "host", PYTHONPATH=str(tmp_path))
    assert answer.code == 130, answer.err
    assert not list(tmp_path.glob("effc-crash-*.txt"))


def test_an_interrupt_while_something_is_cleaned_up(effc: Effc, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, time, effc.cli.build\n"
        "class Slow:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0)\n"
        "def work(*a, **k):\n"
        "    Slow()\n"
        "    time.sleep(20)\n"
        "effc.cli.build.compile_command = work\n"
    )
    answer = effc("compile", MODEL, "--target", "host", PYTHONPATH=str(tmp_path))
    assert answer.code == 130, answer.err
    assert "Traceback" not in answer.err


def _compiling(folder: Path) -> subprocess.Popen[str]:
    """A compilation that has begun to write below ``folder``."""
    command = [sys.executable, "-c", "from effc.cli import main; main()", "compile", str(MODEL)]
    process = subprocess.Popen(
        [*command, "--target", "host", "-o", "digits"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Jobs in the background of a shell script ignore interrupts, and so do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".digits.effc-tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    process = _compiling(tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_killed_process_is_cleaned_up_after(effc: Effc, tmp_path: Path) -> None:
    process = _compiling(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / "digits").exists()
    assert effc("compile", MODEL, "--target", "host", "-o", "digits", "--no-verify").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    json.loads((tmp_path / "digits" / "manifest.json").read_text())


def test_compare(effc: Effc, tmp_path: Path) -> None:
    assert effc("compile", MODEL, "--target", "host", "--no-verify", "-o", "d").code == 0
    answer = effc("compare", MODEL, "d", "--input", SAMPLES, "--report", "c.html", "--json")
    assert answer.code == 0
    result = answer.json
    assert result["samples"] > 1
    assert result["unmatched"] == []
    assert all(layer["own_snr_db"] > 100 for layer in result["layers"])
    assert "Compared with the float model" in (tmp_path / "c.html").read_text()
    answer = effc("compare", MODEL, "d")
    assert answer.code == 0
    assert result["layers"][0]["name"] in answer.out
    assert effc("compare", "none.onnx", "d").code == 2
    assert effc("compare", MODEL, "d", "--report", "no/c.html").code == 2
    assert effc("compare", MODEL, "d", "--device", "phone").code == 2
