"""What the Java class of a model adds to the C API, per inference, on this machine's JVM.

    python benchmarks/jni_overhead.py [--rounds 15] [--runs 20000]

The model adds two vectors of 256 numbers, so that nearly all of the time is overhead. Rounds of a C
program and of a Java program that does the same alternate; printed are the medians over the
rounds, and their differences. Needs gcc and a JDK.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path

from onnx import TensorProto, helper

import effc
from effc.packages.java import build_jar, build_native
from effc.packages.package import Package

_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "sum.h"
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}
int main(int count, char **words)
{
    static float a[256], b[256], y[256];
    effc_tensor in[] = {{a, sizeof a}, {b, sizeof b}}, out[] = {{y, sizeof y}};
    effc_model *model = NULL;
    int runs = count > 1 ? atoi(words[1]) : 1;
    if (sum_create(NULL, &model) != EFFC_OK)
        return 1;
    for (int i = 0; i < runs; i++)
        sum_run(model, in, out);
    double start = now();
    for (int i = 0; i < runs; i++)
        sum_run(model, in, out);
    printf("%f\n", (now() - start) / runs);
    return 0;
}
"""
_JAVA = """
import effc.models.Sum;
import java.nio.ByteBuffer;

public final class Loop {
    public static void main(String[] words) {
        int runs = Integer.parseInt(words[0]);
        ByteBuffer[] in = {Sum.allocate(Sum.inputs()[0]), Sum.allocate(Sum.inputs()[1])};
        ByteBuffer[] out = {Sum.allocate(Sum.outputs()[0])};
        float[] a = new float[256];
        float[] b = new float[256];
        float[] y = new float[256];
        try (Sum model = new Sum()) {
            for (int i = 0; i < runs; i++) {
                model.run(in, out);
                model.run(a, b, y);
            }
            long start = System.nanoTime();
            for (int i = 0; i < runs; i++) {
                model.run(in, out);
            }
            long middle = System.nanoTime();
            for (int i = 0; i < runs; i++) {
                model.run(a, b, y);
            }
            long end = System.nanoTime();
            double count = runs;
            System.out.println((middle - start) / count + " " + (end - middle) / count);
        }
    }
}
"""


def call(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout


def prepare(work: Path) -> tuple[list[object], list[object]]:
    """The commands of the C and of the Java program."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [256]) for n in ("a", "b", "y")]
    add = helper.make_node("Add", ["a", "b"], ["y"])
    graph = helper.make_graph([add], "sum", ports[:2], ports[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    artifact = effc.compile(model, name="sum", output=work / "sum")
    (work / "loop.c").write_text(_C)
    (work / "Loop.java").write_text(_JAVA)
    folder = artifact.library.parent
    flags = ["-O2", f"-I{artifact.folder / 'include'}", f"-L{folder}", f"-Wl,-rpath,{folder}"]
    call("gcc", work / "loop.c", *flags, "-lsum", "-o", work / "loop")
    package = Package(artifact, work)
    build_jar(package, work / "sum.jar")
    build_native(package, package.binaries[0], folder / "libsum_jni.so")
    call("javac", "-cp", work / "sum.jar", "-d", work, work / "Loop.java")
    java = ["java", f"-Djava.library.path={folder}", "-cp", f"{work / 'sum.jar'}:{work}", "Loop"]
    return [work / "loop"], java


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=20000)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        c, java = prepare(Path(work))
        for _ in range(args.rounds):
            rows.append((float(call(*c, args.runs)), *map(float, call(*java, args.runs).split())))
    plain, buffers, arrays = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"C API             {plain:8.0f} ns per inference")
    for name, value in (("Java, buffers", buffers), ("Java, arrays", arrays)):
        print(f"{name:17} {value:8.0f} ns, {value - plain:+.0f} ns")


if __name__ == "__main__":
    main()
