"""Several models, versions of a model and ONNX Runtime in one process: no clash of names."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import effc

from .conftest import EXAMPLE, need, run


@pytest.fixture(scope="module")
def changed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits example with other weights: another version of the model."""
    model = onnx.load(EXAMPLE / "digits.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(array[::-1].copy(), tensor.name))
    path = tmp_path_factory.mktemp("changed") / "digits.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def version_2(changed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The second version under the same name."""
    out = tmp_path_factory.mktemp("two") / "digits"
    return effc.compile(changed_model, "host", out, verify=False)


@pytest.fixture(scope="module")
def renamed(changed_model: Path, tmp_path_factory: pytest.TempPathFactory) -> effc.Artifact:
    """The second version under a name of its own."""
    out = tmp_path_factory.mktemp("renamed") / "digits_v2"
    return effc.compile(changed_model, "host", out, name="digits_v2", verify=False)


def exported(library: Path) -> set[str]:
    text = run([need("nm"), "-D", "--defined-only", library])
    return {line.split()[-1] for line in text.splitlines()}


def test_names_of_two_models_are_disjoint(digits: effc.Artifact, renamed: effc.Artifact) -> None:
    one, two = exported(digits.library), exported(renamed.library)
    assert not one & two
    assert all(name.startswith("digits_v2_") for name in two)


def test_linked_into_one_program(
    digits: effc.Artifact,
    renamed: effc.Artifact,
    tmp_path: Path,
    image: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Two versions under two names, with ONNX Runtime linked in front of both."""
    compiler = need("gcc")
    runtime = tmp_path / "libonnxruntime.so.1"
    runtime.symlink_to(next(Path(_onnxruntime_folder()).glob("libonnxruntime.so.*")))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "digits.h"\n#include "digits_v2.h"\n'
        "const void *OrtGetApiBase(void);\n"
        "int main(void) {\n"
        "    float x[64], a[10], b[10];\n"
        '    FILE *in = fopen("in.raw", "rb"), *out = fopen("out.raw", "wb");\n'
        "    effc_model *one = NULL, *two = NULL;\n"
        "    effc_tensor i = {x, sizeof x}, p = {a, sizeof a}, q = {b, sizeof b};\n"
        "    int bad = OrtGetApiBase() == NULL || fread(x, 4, 64, in) != 64;\n"
        "    bad |= digits_create(NULL, &one) | digits_v2_create(NULL, &two);\n"
        "    for (int k = 0; k < 3; k++)\n"
        "        bad |= digits_run(one, &i, &p) | digits_v2_run(two, &i, &q);\n"
        "    bad |= digits_run(two, &i, &p) != EFFC_WRONG_MODEL;\n"
        "    digits_destroy(one); digits_v2_destroy(two);\n"
        "    fwrite(a, 4, 10, out); fwrite(b, 4, 10, out);\n"
        "    return bad | fclose(out);\n}\n"
    )
    folders = [artifact.library.parent for artifact in (digits, renamed)]
    run(
        [
            *(compiler, "main.c", "-o", "main", "-Wall", "-Werror", runtime),
            *(f"-I{artifact.folder / 'include'}" for artifact in (digits, renamed)),
            *(f"-L{folder}" for folder in folders),
            *("-Wl,--no-as-needed", "-ldigits", "-ldigits_v2"),
            *(f"-Wl,-rpath,{folder}" for folder in (*folders, runtime.parent)),
        ],
        cwd=tmp_path,
    )
    image.tofile(tmp_path / "in.raw")
    run([tmp_path / "main"], cwd=tmp_path)
    got = np.fromfile(tmp_path / "out.raw", np.float32).reshape(2, 1, 10)
    with effc.load(renamed) as runner:
        other = runner.run({"image": image})["probabilities"]
    np.testing.assert_array_equal(got[0], probabilities)
    np.testing.assert_array_equal(got[1], other)
    assert not np.array_equal(got[0], got[1])


def test_same_name_twice_beside_onnx_runtime(
    digits: effc.Artifact,
    version_2: effc.Artifact,
    changed_model: Path,
    tmp_path: Path,
    image: np.ndarray,
) -> None:
    """Both versions of one name, loaded for all to see, and a session that runs between them."""
    np.save(tmp_path / "in.npy", image)
    (tmp_path / "use.py").write_text(
        "import ctypes, sys\n"
        "import numpy as np\n"
        "libraries, models = sys.argv[1:3], sys.argv[3:5]\n"
        "for path in libraries: ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)\n"
        "import onnxruntime\n"
        "from effc.runtimes.loader import Runner\n"
        "x = np.load('in.npy')\n"
        "runners = [Runner(path, {'name': 'digits'}, threads=2) for path in libraries]\n"
        "sessions = [onnxruntime.InferenceSession(m, providers=['CPUExecutionProvider'])\n"
        "            for m in models]\n"
        "for _ in range(3):\n"
        "    got = [r.run({'image': x})['probabilities'] for r in runners]\n"
        "    want = [s.run(None, {'image': x})[0] for s in sessions]\n"
        "    for g, w in zip(got, want): np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6)\n"
        "assert not np.allclose(got[0], got[1])\n"
        "print('all fine')\n"
    )
    said = run(
        [
            *(sys.executable, "use.py", digits.library, version_2.library),
            *(EXAMPLE / "digits.onnx", changed_model),
        ],
        cwd=tmp_path,
    )
    assert "all fine" in said


def _onnxruntime_folder() -> str:
    import onnxruntime

    folder = Path(onnxruntime.__file__).parent / "capi"
    if not list(folder.glob("libonnxruntime.so.*")):
        pytest.skip("this build of onnxruntime has no C library")
    return str(folder)
