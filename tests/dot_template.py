"""A small kernel family whose code differs by processor: an integer vector times a matrix.

``MatMulInteger(a [1, K], w [K, N]) -> int32 [1, N]``, K a multiple of 4 and N of a vector's lanes.
Weights lie as ``[N / lanes, K / 4, lanes, 4]``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from tvm import tirx

from effc.devices.target import Target
from effc.kernels.builder import local, loop, splat, stage_func, vload, vstore
from effc.kernels.region import Region
from effc.kernels.template import Config, Kernel, Stage, Template

INTRINSICS = {
    "aarch64": "llvm.aarch64.neon.sdot.v4i32.v16i8",
    "x86_64": "llvm.x86.avx512.vpdpbusd.256",
}


class DotTemplate(Template):
    """Dot products of four bytes where the processor has them.

    Attributes:
        used: What ``features`` says.
        error: Added to every result of the version with dot products, to be found.
        padding: Weights that only this version has, likewise.
    """

    name: ClassVar[str] = "test_dot"
    used = frozenset({"dotprod", "avxvnni", "avx512vnni"})
    error = 0
    padding = 0

    def refuse(self, region: Region, target: Target) -> str | None:
        return None if [op.op_type for op in region.ops] == ["MatMulInteger"] else "not for this"

    def features(self, region: Region) -> frozenset[str]:
        return self.used

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        return [({}, 1.0 if self._fast(target) else 4.0)]

    @staticmethod
    def _fast(target: Target) -> bool:
        return any(target.has(f) for f in ("dotprod", "avxvnni", "avx512vnni"))

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        a, w = region.ops[0].inputs
        assert a is not None
        assert w is not None
        assert w.const is not None
        depth, count = w.shape
        lanes = target.lanes
        fast = self._fast(target)
        packed = w.const.reshape(depth // 4, 4, count // lanes, lanes).transpose(2, 0, 3, 1)
        packed = np.append(packed, np.zeros(self.padding * fast, np.int8))

        def sums(a: Any, w: Any, acc: Any, at: Any, k: Any) -> Any:
            have = vload(acc, 0, lanes)
            if fast:
                word = tirx.reinterpret("int32", vload(a, k * 4, 4))
                bytes_ = tirx.reinterpret(f"{a.dtype}x{4 * lanes}", splat(word, lanes))
                weights = vload(w, at, 4 * lanes)
                name = INTRINSICS[target.arch]
                return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, have, bytes_, weights)
            for j in range(4):
                weights = tirx.Cast(f"int32x{lanes}", vload(w, at + j, lanes, 4))
                have += splat(tirx.Cast("int32", a[k * 4 + j]), lanes) * weights
            return have

        def body(a: Any, w: Any, y: Any, begin: Any, end: Any) -> None:
            with loop(begin, end) as unit:
                acc = local(lanes, "int32")
                wrong = self.error if fast else 0
                vstore(acc, 0, splat(tirx.const(wrong, "int32"), lanes), lanes)
                with loop(depth // 4) as k:
                    at = (unit * (depth // 4) + k) * (4 * lanes)
                    vstore(acc, 0, sums(a, w, acc, at, k), lanes)
                vstore(y, unit * lanes, vload(acc, 0, lanes), lanes)

        y = region.outputs[0]
        params = [("a", a.dtype, depth), ("w", "int8", packed.size), ("y", "int32", count)]
        func = stage_func(params, body)
        return Kernel(
            (Stage(func, (a.name, "w:w", y.name), count // lanes),), {"w": packed.astype(np.int8)}
        )
