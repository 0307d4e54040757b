"""Models as C source: the same bits from two compilers as from the library for this machine, sizes.

    python benchmarks/c_source.py [--data ../shared/data] [--model MODEL.onnx ...] [--samples 200]
                                  [--json FILE]

Without --model: the four int8 networks of MLPerf Tiny below the data folder. Compiles what
``effc compile --target c`` writes with GCC and with Clang (of the package ziglang), -std=c11
-Wall -Wextra -Werror, -O2, and with AddressSanitizer and UndefinedBehaviorSanitizer where the
compiler has them. Prints how many samples gave the bytes of the host's library, lines of the
kernels, bytes for a Cortex-M4 (Clang -Os), and the time of one inference here beside that of the
host's library.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcu import samples

import effc
from effc.samples import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "c_source")]
from c_compilers import SANITIZERS  # noqa: E402 - as the tests compile sources
from programs import build, run  # noqa: E402

COLUMNS = ("lines", "code", "weights", "arena", "stack", "host_us", "gcc_us", "clang_us")


def measure(path: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One network."""
    artifact = effc.compile(path, target="c", output=folder / "c", name="net", verify=False)
    manifest = artifact.manifest
    tensors = [Tensor.of(entry) for entry in manifest["inputs"]]
    given = list(samples(path, args.data, tensors, args.samples))
    with effc.load(effc.compile(path, output=folder / "host", verify=False)) as host:
        expected = [host.run(sample) for sample in given]
        row: dict[str, Any] = {"host_us": host.bench(runs=50).median_ms * 1e3}
    kernels = artifact.folder / "src" / "net_kernels.c"
    row |= {"lines": len(kernels.read_text().splitlines()), "code": manifest["code_bytes"]}
    row |= {key: manifest[f"{key}_bytes"] for key in ("weights", "arena", "stack")}
    for compiler, sanitizers in SANITIZERS.items():
        for kind, flags in (("", ("-O2",)), (" sanitized", ("-O1", *sanitizers))):
            program = build(artifact, compiler, folder, *flags)
            start = time.perf_counter()
            found = run(program, artifact, given)
            if not kind:
                row[f"{compiler}_us"] = (time.perf_counter() - start) / len(given) * 1e6
            equal = sum(
                all(a[name].tobytes() == b[name].tobytes() for name in b)
                for a, b in zip(found, expected, strict=True)
            )
            row[f"equal {compiler}{kind}"] = f"{equal}/{len(given)}"
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", type=Path, nargs="*")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    paths = args.model or sorted((args.data / "models").glob("mlperf_tiny_*_int8.onnx"))
    version = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True)
    print(version.stdout.splitlines()[0])
    rows = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            rows[path.stem] = row = measure(path, args, Path(folder))
        numbers = ", ".join(f"{key} {row[key]:.6g}" for key in COLUMNS)
        equal = ", ".join(f"{key[6:]} {value}" for key, value in row.items() if "equal" in key)
        print(f"{path.stem}: {numbers}; equal: {equal}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
