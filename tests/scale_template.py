"""A kernel template for tests of the tuner, whose candidates differ in time and may misbehave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from effc.devices.target import Target
from effc.kernels.builder import T, loop, stage_func
from effc.kernels.region import Op, Region, TensorType, Value
from effc.kernels.template import Choice, Config, Kernel, Stage, Template

SIZE = 4096


class Scale(Template):
    """``y = x * w`` with a knob that repeats the work, and ways to misbehave."""

    name: ClassVar[str] = "scale"

    def refuse(self, region: Region, target: Target) -> str | None:
        return None if region.ops[0].op_type == "Scale" else "not a Scale"

    def candidates(self, region: Region, target: Target) -> list[tuple[Config, float]]:
        repeats = region.ops[0].attrs["repeats"]
        # the prediction is wrong on purpose: the most work looks cheapest
        return sorted((({"repeat": r}, 100.0 - r) for r in repeats), key=lambda pair: pair[1])

    def build(self, region: Region, target: Target, config: Config) -> Kernel:
        repeat = int(config["repeat"])
        if repeat == 13:
            raise ValueError("an unlucky number")
        if repeat == 14:
            os.kill(os.getpid(), signal.SIGSEGV)
        if repeat == 15:
            time.sleep(60)
        if repeat == 17:
            Path(os.environ["EFFC_TEST_PIDS"], str(os.getpid())).touch()
            time.sleep(2)
        crash = 1 << 40 if repeat == 16 else 0

        def body(x, w, table, scratch, y, begin, end):  # type: ignore[no-untyped-def]
            with loop(begin, end) as i:
                with loop(repeat) as r:
                    T.buffer_store(scratch, x[i] * T.Cast("float32", r), [0])
                    T.buffer_store(y, scratch[0] + x[i] * w[i] + y[i], [i + crash])
                T.buffer_store(y, x[i] * w[i], [i + T.Cast("int32", table[0]) - 7])

        x, y = region.inputs[0].name, region.outputs[0].name
        params = [("x", "float32", SIZE), ("w", "float32", SIZE), ("table", "int64", 1)]
        func = stage_func([*params, ("scratch", "float32", 1), ("y", "float32", SIZE)], body)
        weights = {"w": np.ones(SIZE, np.float32), "table": np.full(1, 7)}
        stage = Stage(func, (x, "w:w", "w:table", "scratch", y), SIZE, scratch=64)
        return Kernel((stage,), weights)


def scale_region(*repeats: int, name: str = "r0") -> Region:
    x, y = (Value(n, TensorType((SIZE,), "float32")) for n in ("x", "y"))
    op = Op("Scale", (x,), (y,), {"repeats": repeats}, name)
    return Region(name, (op,), op, (x,), (y,))


def scale_choices(region: Region, target: Target) -> list[Choice]:
    """In place of ``registry.choices``: the template above as the only one."""
    template = Scale()
    if template.refuse(region, target):
        return []
    return [Choice(template, c, cost) for c, cost in template.candidates(region, target)]
