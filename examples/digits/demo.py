"""Compile the digits network for this machine and for Android, check it, measure it.

    python examples/digits/demo.py [OUT]      # or: make demo

Everything goes through the command line, as a user would type it. OUT defaults to ``out``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODEL = HERE / "digits.onnx"
SAMPLES = HERE / "digits_test.npz"


def effc(*arguments: str) -> dict[str, Any]:
    """Run one command with --json and return what it printed."""
    command = [sys.executable, "-c", "from effc.cli import main; main()", *arguments, "--json"]
    print("$ effc", *arguments, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def show(out: Path, target: str) -> None:
    """Compile, verify and benchmark for one target."""
    artifact = str(out / f"digits-{target}")
    compiled = effc("compile", str(MODEL), "--target", target, "-o", artifact, "--name", "digits")
    checked = effc("verify", artifact, "--model", str(MODEL), "--input", str(SAMPLES))
    measured = effc("bench", artifact, "--runs", "200")
    latency = measured["latency_ms"]
    library = compiled["library_bytes"] / 1e3
    weights = compiled["weights_bytes"] / 1e3
    print(
        f"  library        {library:.1f} kB, of it weights {weights:.1f} kB\n"
        f"  accuracy       {100 * checked['reference_accuracy']:.2f} % in ONNX Runtime, "
        f"{100 * checked['accuracy']:.2f} % compiled ({checked['samples']} held-out images)\n"
        f"  same answer    {100 * checked['top1_agreement']:.2f} % of the images, "
        f"SNR {checked['outputs'][0]['snr_db']} dB\n"
        f"  latency        {1e3 * latency['median']:.1f} us median"
        + (" (emulated: says nothing about a phone)" if measured["emulated"] else "")
        + f"\n  report         {artifact}/report.html\n",
        flush=True,
    )


def main() -> None:
    """Host first; Android where an emulator can run it."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out")
    out.mkdir(parents=True, exist_ok=True)
    show(out, "host")
    if shutil.which("qemu-aarch64"):
        show(out, "android")
    else:
        artifact = str(out / "digits-android")
        arguments = ("-o", artifact, "--name", "digits", "--no-verify")
        effc("compile", str(MODEL), "--target", "android", *arguments)
        print(f"  not verified: qemu-aarch64 is missing; report {artifact}/report.html")


if __name__ == "__main__":
    main()
