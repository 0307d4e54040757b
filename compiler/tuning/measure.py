"""Measure compiled candidates on this machine or a device (``effc.tuning.testbed``).

All candidates of a batch are linked with ``driver.c`` and the runtime's thread
pool into one static executable; it runs once per layer and compares that
layer's candidates with each other (see ``driver.c`` for how). A candidate that
crashes or hangs takes its layer's run with it; the others are then measured
again, each alone.

Targets that the testbed cannot execute natively are not measured: an emulator's
time says nothing about the device. Instructions do: see ``counts`` for microcontrollers.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from effc.devices.target import Target
from effc.errors import ToolError
from effc.kernels.region import Region
from effc.tuning.build import Compiled, Content, float_bytes
from effc.tuning.testbed import Testbed

__all__ = ["Harness", "Timing"]

_HARNESS_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Timing:
    """What the driver says about a candidate.

    Attributes:
        seconds: Shortest round, ``None`` if the candidate failed.
        quartile: Lower quartile of the rounds in seconds.
        rounds: Rounds run; few if the candidate was clearly slower than another.
        error: Why there is no time.
    """

    seconds: float | None
    quartile: float | None = None
    rounds: int = 0
    error: str = ""


@dataclass(frozen=True)
class _Job:
    """A file for the driver.

    Attributes:
        name: Of the file.
        size: Its length.
        contents: Names of files that it names.
    """

    name: str
    size: int
    contents: tuple[str, ...]


class Harness:
    """Links and runs measurement executables.

    Args:
        target: What the candidates were compiled for.
        folder: Existing folder for executables.
        threads: Threads that share each run.
        cold: Whether weights come from memory, not from a cache.
        testbed: Where they run.
    """

    def __init__(
        self, target: Target, folder: Path, threads: int, cold: bool, testbed: Testbed
    ) -> None:
        self.target = target
        self.folder = folder
        self.threads = threads
        self.cold = cold
        self.testbed = testbed
        self._jobs: dict[str, int] = {}
        self.executable = folder / "bench"
        self.functions: dict[str, int] = {}

    def link(self, compiled: Sequence[Compiled]) -> None:
        """Link candidates into the executable that :meth:`run` starts.

        Raises:
            ToolError: Compiling or linking failed.
        """
        from effc import zig
        from effc.link import EMULATIONS
        from effc.musl import static_libc

        symbols = [stage.symbol for c in compiled for stage in c.stages]
        self.functions = {symbol: i for i, symbol in enumerate(symbols)}
        table = self.folder / "table.c"
        table.write_text(_table(symbols), "utf-8")
        zig.clang(
            [f"--target={self.target.runner_target}", "-c", "table.c", "-o", "table.o"],
            cwd=self.folder,
        )
        libc = static_libc(self.target)
        driver = _driver(self.target)
        objects = [table.with_suffix(".o"), *sorted(driver.glob("*.o"))]
        zig.lld(
            [
                *("-m", EMULATIONS[self.target.arch], "-static", "--gc-sections", "-s"),
                *(str(libc / "crt1.o"), *map(str, objects)),
                *(c.object for c in compiled if c.object),
                *("--start-group", *map(str, sorted(libc.glob("*.a"))), "--end-group"),
            ],
            self.executable,
        )
        self.executable.chmod(0o755)

    def send(self, jobs: Sequence[tuple[Region, Sequence[Compiled], float, int]]) -> None:
        """Make a batch ready on the testbed, with the arguments of :meth:`run` to come."""
        names = [name for job in jobs if job[1] for name in self._files(self._written(*job))]
        self.testbed.send(self.folder, list(dict.fromkeys(names)))

    def run(
        self, region: Region, compiled: Sequence[Compiled], budget_s: float, rounds: int
    ) -> list[Timing]:
        """Compare candidates of one layer.

        Args:
            region: The layer.
            compiled: Linked candidates for it.
            budget_s: No new round starts after this time (but at least eight rounds run).
            rounds: Most rounds to run.

        Raises:
            DeviceError: The testbed is gone.
        """
        try:
            return self._run(region, compiled, budget_s, rounds)
        except ToolError as error:
            if len(compiled) == 1:
                return [Timing(None, error=error.got if isinstance(error.got, str) else str(error))]
            alone = [self.run(region, [c], budget_s / len(compiled), rounds) for c in compiled]
            return [timing for timings in alone for timing in timings]

    def _run(
        self, region: Region, compiled: Sequence[Compiled], budget_s: float, rounds: int
    ) -> list[Timing]:
        job = self._written(region, compiled, budget_s, rounds)
        words = [job.name, str(job.size)]
        limit = _HARNESS_TIMEOUT_S + 4 * budget_s
        done = self.testbed.run(self.folder, self._files(job), words, limit)
        if done.code != 0:
            got = f"exit code {done.code}: {done.message[-200:]}"
            raise ToolError("a measurement failed", where=region.name, got=got)
        timings = []
        for line in done.out.splitlines():
            _, count, fastest, quartile = (int(word) for word in line.split())
            timings.append(Timing(fastest * 1e-9, quartile * 1e-9, count))
        return timings

    def _files(self, job: _Job) -> list[str]:
        return [self.executable.name, job.name, *job.contents]

    def _written(
        self, region: Region, compiled: Sequence[Compiled], budget_s: float, rounds: int
    ) -> _Job:
        """The file that describes a job; equal jobs share one."""
        text = self._job(region, compiled, budget_s, rounds)
        name = f"job{self._jobs.setdefault(text, len(self._jobs))}"
        (self.folder / name).write_text(text, "ascii")
        contents = (content.file for c in compiled for _, content in c.weights if content.file)
        return _Job(name, len(text), tuple(contents))

    def _job(
        self, region: Region, compiled: Sequence[Compiled], budget_s: float, rounds: int
    ) -> str:
        cpus = self.testbed.cpus
        first, helpers = cpus[-1], cpus[:-1][::-1][: self.threads - 1]
        buffers = _Buffers()
        for value in region.inputs:
            buffers.add("i", value.name, Content(value.type.nbytes, float_bytes(value.dtype)))
        for value in region.outputs:
            buffers.add("o", value.name, Content(value.type.nbytes))
        tails = [self._candidate_words(c, buffers) for c in compiled]
        mask = sum(1 << cpu for cpu in helpers if cpu < 64)
        words: list[object] = [self.threads, first, mask, self._evict_bytes(), int(self.cold)]
        words += [int(budget_s * 1e6), rounds, len(buffers.contents)]
        for role, content in buffers.contents:
            words += [role, content.element, content.nbytes, content.file or "-"]
        words.append(len(compiled))
        words += [word for tail in tails for word in tail]
        return " ".join(map(str, words))

    def _evict_bytes(self) -> int:
        """Enough foreign memory to push weights out of a core's private caches."""
        return 2 * self.target.l2_bytes

    def _candidate_words(self, compiled: Compiled, buffers: _Buffers) -> list[object]:
        names = {"scratch": -1}
        for number, (name, content) in enumerate(compiled.weights):
            names[f"w:{name}"] = buffers.shared("w", number, content)
        for number, (name, nbytes) in enumerate(compiled.workspaces):
            names[f"t:{name}"] = buffers.shared("o", number, Content(nbytes))
        scratch = max((stage.scratch for stage in compiled.stages), default=0)
        words: list[object] = [len(compiled.stages), scratch]
        for stage in compiled.stages:
            words += [self.functions[stage.symbol], len(stage.args)]
            for ref in stage.args:
                words += [names[ref] if ref in names else buffers.named[ref], 0]
            words += _split(stage.extent, stage.bounds, self.threads)
        return words


class _Buffers:
    """Memory of one job; candidates share what they do not need at the same time."""

    def __init__(self) -> None:
        self.contents: list[tuple[str, Content]] = []
        self.named: dict[str, int] = {}
        self.pooled: dict[tuple[str, int, int], int] = {}

    def add(self, role: str, name: str, content: Content) -> None:
        self.named[name] = len(self.contents)
        self.contents.append((role, content))

    def shared(self, role: str, number: int, content: Content) -> int:
        """Index of a buffer that other candidates may use as well; it grows as needed."""
        if content.file:
            self.contents.append((role, content))
            return len(self.contents) - 1
        key = (role, number, content.element)
        if key not in self.pooled:
            self.pooled[key] = len(self.contents)
            self.contents.append((role, content))
        index = self.pooled[key]
        largest = max(self.contents[index][1].nbytes, content.nbytes)
        self.contents[index] = (role, Content(largest, content.element))
        return index


def _split(extent: int, bounds: Sequence[int] | None, threads: int) -> list[int]:
    """First unit of each worker, as the runtime splits them, and the end."""
    if bounds is None or bounds[-1] == 0:
        return [-(-extent * worker // threads) for worker in range(threads + 1)]
    goals = [bounds[-1] * worker / threads for worker in range(threads)]
    return [bisect.bisect_left(bounds, goal) for goal in goals] + [extent]


def _driver(target: Target) -> Path:
    """Folder with the objects of the driver and of the runtime's thread pool."""
    from effc import zig

    core = resources.files("effc.runtimes") / "core"
    files = {f: (core / f).read_text("utf-8") for f in ("pool.c", "pool.h", "system.h", "effc.h")}
    files["driver.c"] = (resources.files("effc.tuning") / "driver.c").read_text("utf-8")

    def build(folder: Path) -> None:
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
        command = [str(zig.zig_path()), "cc", "-target", target.runner_target, "-O2"]
        for name in ("driver", "pool"):
            flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined"]
            zig.run_tool([*command, *flags, "-c", f"{name}.c", "-o", f"{name}.o"], cwd=folder)

    return zig.cached(("bench", target.runner_target, *files.values()), build)


def _table(symbols: Sequence[str]) -> str:
    lines = [f"void {symbol}(void);" for symbol in symbols]
    lines.append("typedef void (*stage_fn)(void);")
    lines.append(f"const stage_fn effc_bench_functions[] = {{{', '.join(symbols)}}};")
    return "\n".join(lines) + "\n"
