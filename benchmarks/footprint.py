"""Compile time, library size and arena of models, each compiled by the command line.

    python benchmarks/footprint.py MODEL.onnx [MODEL.onnx ...] [--target android] [--tune none]
                                   [--shape NAME:1,3,224,224]

Prints seconds of wall time of ``effc compile --no-verify`` (a fresh process), library bytes without
weights, of which the runtime, and the arena beside its lower bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def effc(*words: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("effc")), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"effc {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--target", default="android")
    parser.add_argument("--tune", default="none")
    parser.add_argument("--shape", action="append", default=[])
    args = parser.parse_args()
    shapes = [word for shape in args.shape for word in ("--shape", shape)]
    with tempfile.TemporaryDirectory() as folder:
        for path in args.models:
            out = Path(folder) / path.stem
            start = time.perf_counter()
            effc(
                "compile",
                str(path),
                "--target",
                args.target,
                "--tune",
                args.tune,
                "--no-verify",
                "-q",
                "-o",
                str(out),
                *shapes,
            )
            seconds = time.perf_counter() - start
            info = json.loads(effc("inspect", str(out), "--json"))
            arena, bound = info["arena_bytes"], info["arena_lower_bound_bytes"]
            code = info["library_bytes"] - info["weights_bytes"]
            print(
                f"{path.stem:44s} {args.target:12s} compile {seconds:6.1f} s  library "
                f"{info['library_bytes'] / 1e6:7.2f} MB, without weights {code / 1e3:6.1f} kB, "
                f"runtime {info.get('runtime_bytes', 0) / 1e3:5.1f} kB  arena {arena} B = "
                f"{arena / max(bound, 1):.4f} x lower bound",
                flush=True,
            )


if __name__ == "__main__":
    main()
