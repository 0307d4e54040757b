"""Runs kernels of regions in this process, and ONNX Runtime as the judge.

A region is given as a list of ``Node``; its kernel's stages are compiled for this machine,
linked to a library and called over several splits of the parallel units, with canaries
around every buffer, or printed as C
(see ``printed``).
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import printed
from onnx import helper

from effc.devices.catalog import get_target
from effc.devices.target import Target
from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Config, Kernel, Stage, Template
from effc.lower import lower

Arrays = Mapping[str, np.ndarray]
_CANARY = 64  # bytes on either side of a buffer


def host(bits: int | None = None, cpu: str = "") -> Target:
    """A generic target for this machine: with 256-bit vectors, or as C if that is printed."""
    if bits is None and printed.codegen() != "llvm":
        return get_target("c")
    bits = bits or 256
    arch = platform.machine()
    triple = f"{arch}-linux-gnu"
    features = ("+avx2", "+fma", "+f16c") if arch == "x86_64" and not cpu else ()
    return Target(
        "host",
        arch,
        "linux",
        triple,
        triple,
        cpu,
        features,
        bits,
        16,
        32768,
        1 << 20,
        2,
        triple,
        "",
    )


@dataclass
class Node:
    """One ONNX node by tensor names."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str] = ("y",)
    attrs: dict[str, Any] = field(default_factory=dict)


def onnx_model(
    nodes: Sequence[Node],
    inputs: Arrays,
    constants: Arrays,
    outputs: Sequence[str],
    opset: int = 20,
) -> onnx.ModelProto:
    """A checked model whose output types are inferred."""
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node(n.op, list(n.inputs), list(n.outputs), **n.attrs) for n in nodes],
        "g",
        [helper.make_tensor_value_info(k, kind(v.dtype), v.shape) for k, v in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred)
    return inferred


def onnx_runtime(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs of ONNX Runtime on this model, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(
        zip(names, session.run(names, {k: np.asarray(v) for k, v in inputs.items()}), strict=True)
    )


def region_of(
    nodes: Sequence[Node],
    values: Arrays,
    inputs: Sequence[str],
    constants: Arrays,
    outputs: Sequence[str],
    *,
    anchored: bool,
) -> Region:
    """The region of ``nodes``; ``values`` holds an array of the right type per tensor name."""
    table = {
        name: Value(name, TensorType(tuple(a.shape), str(a.dtype)), constants.get(name))
        for name, a in values.items()
    }
    ops = tuple(
        Op(
            n.op,
            tuple(table[name] if name else None for name in n.inputs),
            tuple(table[name] for name in n.outputs if name),
            n.attrs,
        )
        for n in nodes
    )
    return Region(
        "r",
        ops,
        ops[0] if anchored else None,
        tuple(table[name] for name in inputs),
        tuple(table[name] for name in outputs),
    )


def make_region(
    nodes: Sequence[Node],
    inputs: Arrays,
    constants: Arrays,
    outputs: Sequence[str],
    *,
    anchored: bool,
) -> tuple[Region, dict[str, np.ndarray]]:
    """Region and ONNX Runtime's outputs for it."""
    made = [name for n in nodes for name in n.outputs if name]
    everything = onnx_runtime(onnx_model(nodes, inputs, constants, made), inputs)
    values = {**inputs, **constants, **everything}
    region = region_of(nodes, values, list(inputs), constants, outputs, anchored=anchored)
    return region, {name: everything[name] for name in outputs}


def library(functions: Mapping[str, Any], target: Target) -> ctypes.CDLL:
    """Compile and load stage functions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.o"
        path.write_bytes(lower(functions, target))
        command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-o", f"{folder}/k.so"]
        subprocess.run([*command, str(path), "-lm"], check=True, capture_output=True)
        return ctypes.CDLL(f"{folder}/k.so")


@dataclass(frozen=True)
class Shared:
    """The result ``shift`` bytes above an input."""

    source: str
    result: str
    shift: int = 0


def sharings(kernel: Kernel, names: Iterable[str]) -> list[Shared]:
    """Every way in which a result may lie over an input of ``names``, ranges at both ends."""
    found: dict[Shared, None] = {}
    for o in kernel.sharing:
        if o.source in names:
            found |= {Shared(o.source, o.result, at): None for ends in o.shifts for at in ends}
    return list(found)


def alignment(value: Value) -> int:
    """What a tensor's address is a multiple of: whole words for quads of several positions."""
    shape = value.shape
    quads = len(shape) > 3 and shape[-1] == 4 and prod(shape[2:-1]) > 1 and value.dtype == "int8"
    return 4 if quads else np.dtype(value.dtype).itemsize


class _Guarded:
    """Memory with canaries on both sides; ``offset`` bytes away from alignment."""

    def __init__(self, nbytes: int, offset: int) -> None:
        self.raw = np.full(nbytes + 2 * _CANARY + 64, 0xA5, np.uint8)
        base = -self.raw.ctypes.data % 64 + offset
        self.start, self.nbytes = base + _CANARY, nbytes

    @property
    def data(self) -> np.ndarray:
        return self.raw[self.start : self.start + self.nbytes]

    def part(self, start: int, nbytes: int) -> _Guarded:
        """Some bytes of it."""
        part = copy(self)
        part.start, part.nbytes = self.start + start, nbytes
        return part

    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.raw.ctypes.data + self.start)

    def intact(self) -> bool:
        around = np.r_[self.raw[: self.start], self.raw[self.start + self.nbytes :]]
        return bool((around == 0xA5).all())


def compiled(kernel: Kernel, target: Target) -> ctypes.CDLL | printed.Printed:
    """The stages of a kernel, for ``run_kernel``: on this machine, whatever it was built for."""
    if printed.codegen() != "llvm":
        return printed.Printed(kernel, printed.codegen())
    target = replace(target, os="linux")
    return library({f"k{i}": stage.func for i, stage in enumerate(kernel.stages)}, target)


def run_kernel(
    kernel: Kernel,
    region: Region,
    inputs: Arrays,
    target: Target,
    *,
    parts: Sequence[int] = (1, 3),
    inplace: tuple[str, str] | Shared | None = None,
    code: ctypes.CDLL | printed.Printed | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of a kernel; the same for every number of ``parts`` that the work is split into.

    On serial targets parts run in ascending order, on others in descending order. Printed code
    computes everything in one part.
    """
    code = code or compiled(kernel, target)
    if isinstance(code, printed.Printed):
        parts = (1,)
    results = []
    for count in parts:
        memory: dict[str, _Guarded] = {}
        for name, size in kernel.workspaces.items():
            memory[f"t:{name}"] = _Guarded(size, 0)
        for name, array in kernel.weights.items():
            memory[f"w:{name}"] = _filled(array, 0)
        for value in region.inputs:
            memory[value.name] = _filled(inputs[value.name], alignment(value))
        for value in region.outputs:
            memory[value.name] = _Guarded(value.type.nbytes, alignment(value))
        guarded = dict(memory)
        if inplace is not None:
            shared = inplace if isinstance(inplace, Shared) else Shared(*inplace)
            guarded[shared.result] = guarded[shared.source] = _overlapped(memory, shared)
        if isinstance(code, printed.Printed):
            _run_printed(code, kernel, memory, guarded)
        else:
            for index, stage in enumerate(kernel.stages):
                _run_stage(getattr(code, f"k{index}"), stage, memory, count, target.serial)
        for name, block in guarded.items():
            assert block.intact(), f"wrote outside {name}"
        results.append(
            {
                v.name: memory[v.name].data.copy().view(v.dtype).reshape(v.shape)
                for v in region.outputs
            }
        )
    for other in results[1:]:
        for name, array in other.items():
            assert array.tobytes() == results[0][name].tobytes(), "the split changes the result"
    return results[0]


def _filled(array: np.ndarray, offset: int) -> _Guarded:
    block = _Guarded(array.nbytes, offset)
    block.data[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    return block


def _overlapped(memory: dict[str, _Guarded], shared: Shared) -> _Guarded:
    """Put a result over an input, and return the memory that holds both."""
    source, result = memory[shared.source], memory[shared.result]
    low = min(shared.shift, 0)
    both = _Guarded(max(source.nbytes, shared.shift + result.nbytes) - low, source.start % 64)
    memory[shared.source] = both.part(-low, source.nbytes)
    memory[shared.source].data[:] = source.data
    memory[shared.result] = both.part(shared.shift - low, result.nbytes)
    return both


def _run_stage(
    function: Any, stage: Stage, memory: dict[str, _Guarded], parts: int, ascending: bool
) -> None:
    scratch = _Guarded(stage.scratch, 0)
    pointers = [scratch.pointer() if a == "scratch" else memory[a].pointer() for a in stage.args]
    bounds = [stage.extent * i // parts for i in range(parts + 1)]
    ranges = list(pairwise(bounds))
    for begin, end in ranges if ascending else reversed(ranges):
        function(*pointers, ctypes.c_int32(begin), ctypes.c_int32(end))
    assert scratch.intact(), "wrote outside the scratch"


def _run_printed(
    code: printed.Printed,
    kernel: Kernel,
    memory: Mapping[str, _Guarded],
    allocations: Mapping[str, _Guarded],
) -> None:
    """Run all stages on memory whose parts may lie in the same allocation."""
    scratch = _Guarded(max(stage.scratch for stage in kernel.stages), 0)
    of = {name: str(id(block)) for name, block in {**allocations, "scratch": scratch}.items()}
    blocks = {str(id(block)): block for block in (*allocations.values(), scratch)}
    code.run(
        {key: (block.data, block.start % 16) for key, block in blocks.items()},
        {
            name: (of[name], part.start - blocks[of[name]].start)
            for name, part in {**memory, "scratch": scratch}.items()
        },
    )


def check(
    template: Template,
    nodes: Sequence[Node],
    inputs: Arrays,
    constants: Arrays | None = None,
    outputs: Sequence[str] = ("y",),
    *,
    anchored: bool = True,
    target: Target | None = None,
    configs: Sequence[Config] | None = None,
    inplace: bool = False,
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Run every configuration of a template: (outputs, ONNX Runtime's outputs) each."""
    target = target or host()
    constants = constants or {}
    region, expected = make_region(nodes, inputs, constants, outputs, anchored=anchored)
    assert template.refuse(region, target) is None, template.refuse(region, target)
    found = []
    for config in configs or [c for c, _ in template.candidates(region, target)]:
        kernel = template.build(region, target, config)
        found.append((run_kernel(kernel, region, inputs, target), expected))
        for pair in kernel.inplace if inplace else ():
            found.append((run_kernel(kernel, region, inputs, target, inplace=pair), expected))
    return found


def assert_close(
    found: Sequence[tuple[Arrays, Arrays]], bound: float | Arrays, eps: float | None = None
) -> None:
    """Floats within ``eps * bound`` (element-wise or one number), everything else equal.

    ``bound`` is the magnitude of what is added up on the way to a result; ``eps``
    defaults to 4 units of the result's precision.
    """
    for got, expected in found:
        for name, want in expected.items():
            have = got[name]
            assert have.shape == want.shape
            assert have.dtype == want.dtype
            if want.dtype.kind != "f":
                np.testing.assert_array_equal(have, want)
                continue
            limit = bound[name] if isinstance(bound, Mapping) else bound
            unit = 4 * np.finfo(want.dtype).eps if eps is None else eps
            error = np.abs(have.astype(np.float64) - want)
            worst = float((error / (unit * np.asarray(limit) + 1e-30)).max(initial=0.0))
            assert worst <= 1, f"{name}: {worst} times the bound"
