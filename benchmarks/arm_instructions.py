"""Instructions per inference of an arm64 artifact, counted exactly under QEMU.

    python benchmarks/arm_instructions.py --counter COUNT.PY MODEL.onnx [MODEL.onnx ...]
                                          [--target linux-arm64] [--precision f16]

``COUNT.PY exe RUNNER --runs-a 1 --runs-b 3 --cpu a76 --json -- ARGS`` is expected to run the static
test executable of the artifact with ``--runs 1`` and ``--runs 3`` under ``qemu-aarch64`` with an
instruction-counting plugin and to print the difference per run as JSON (``total``, ``ld``, ``ldB``,
``fmla`` ...). One thread. ``--cpu`` is the counter's name of a processor that has what the target
promises (by default Cortex-A76; i8mm needs more). ``--precision f16`` needs a target with half
arithmetic, raspberry-pi-5 for example.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from effc.options import CompileOptions
from effc.pipeline import compile_model


def count(path: Path, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Counts of one inference of one model."""
    compiled = compile_model(path, _options(args))
    runner = folder / f"{path.stem}.static"
    compiled.link_runner(runner)
    command = [sys.executable, str(args.counter), "exe", str(runner), "--cpu", args.cpu, "--json"]
    macs = sum(layer.macs for layer in compiled.layers)
    command += ["--runs-a", "1", "--runs-b", "3", "--macs", str(macs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.name}: the counter failed\n{done.stdout}\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _options(args: argparse.Namespace) -> CompileOptions:
    return CompileOptions(
        target=args.target, tune=args.tune, verify=False, precision=args.precision
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--counter", type=Path, required=True)
    parser.add_argument("--target", default="linux-arm64")
    parser.add_argument("--cpu", default="a76")
    parser.add_argument("--tune", default="none")
    parser.add_argument("--precision", default="f32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            row = count(path, args, Path(folder))
            print(
                f"{path.stem:16s} {row['total'] / 1e6:9.1f} M instructions"
                f"  {row['ldB'] / 1e6:9.1f} MB loaded  ratio to MACs/4 {row['ratio']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
