"""Builds the C source of artifacts with real compilers and runs samples through it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from c_compilers import compile_c

from effc.artifact import Artifact
from effc.samples import Arrays, Tensor

_MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include "{name}.h"

/* Reads so many samples from standard input, writes outputs. Everything lies in blocks of
 * its own, of exactly its size, so that AddressSanitizer sees any access beside them. */
int main(int argc, char **argv)
{{
    const size_t in_bytes[] = {{{in_bytes}}}, out_bytes[] = {{{out_bytes}}};
    enum {{ INPUTS = {name}_INPUT_COUNT, OUTPUTS = {name}_OUTPUT_COUNT }};
    void *in[INPUTS], *out[OUTPUTS];
    for (int i = 0; i < INPUTS; i++)
        in[i] = malloc(in_bytes[i]);
    for (int i = 0; i < OUTPUTS; i++)
        out[i] = malloc(out_bytes[i]);
    void *arena = aligned_alloc({name}_ARENA_ALIGNMENT, {name}_ARENA_BYTES + 16);
    for (int left = argc > 1 ? atoi(argv[1]) : 0; left > 0; left--) {{
        for (int i = 0; i < INPUTS; i++)
            if (fread(in[i], 1, in_bytes[i], stdin) != in_bytes[i])
                return 3;
        if ({name}_run((const void *const *)in, out, arena) != {name}_OK)
            return 1;
        for (int i = 0; i < OUTPUTS; i++)
            if (fwrite(out[i], 1, out_bytes[i], stdout) != out_bytes[i])
                return 2;
    }}
    for (int i = 0; i < INPUTS; i++)
        free(in[i]);
    for (int i = 0; i < OUTPUTS; i++)
        free(out[i]);
    free(arena);
    return 0;
}}
"""


def build(artifact: Artifact, compiler: str, folder: Path, *flags: str) -> Path:
    """Compile the sources of an artifact, warnings as errors, with a program around them."""
    manifest, name = artifact.manifest, artifact.name
    sizes = {
        kind: ", ".join(str(port["bytes"]) for port in manifest[kind])
        for kind in ("inputs", "outputs")
    }
    main = folder / "main.c"
    main.write_text(_MAIN.format(name=name, in_bytes=sizes["inputs"], out_bytes=sizes["outputs"]))
    sources = sorted((artifact.folder / "src").glob("*.c"))
    include = f"-I{artifact.folder / 'include'}"
    out = folder / f"run-{compiler}"
    return compile_c(compiler, [main, *sources], out, *(flags or ("-O2",)), include)


def run(program: Path, artifact: Artifact, samples: Sequence[Arrays]) -> list[Arrays]:
    """Outputs of every sample."""
    inputs, outputs = (
        [Tensor.of(entry) for entry in artifact.manifest[kind]] for kind in ("inputs", "outputs")
    )
    data = b"".join(np.ascontiguousarray(s[t.name]).tobytes() for s in samples for t in inputs)
    done = subprocess.run(
        [str(program), str(len(samples))], input=data, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:].decode("utf-8", "replace")
    found: list[Arrays] = []
    at = 0
    for _ in samples:
        found.append({})
        for tensor in outputs:
            count = int(np.prod(tensor.shape, dtype=np.int64))
            part = np.frombuffer(done.stdout, tensor.dtype, count, at)
            found[-1][tensor.name] = part.reshape(tensor.shape)
            at += part.nbytes
    assert at == len(done.stdout)
    return found
