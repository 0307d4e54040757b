"""An artifact for firmware on an emulated board or a real one, as ``effc.execute`` wants it.

The emulator runs for as long as the executor is open; samples go over its wire. Times are
instruction counts at the target's clock, exact and the same every time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from effc.bare.monitor import link_monitor
from effc.devices.address import Address
from effc.devices.catalog import get_target
from effc.devices.emulated import EmulatedBoard, board_command
from effc.devices.execution import Piece, checked_inputs
from effc.devices.serial_port import SerialBoard
from effc.devices.target import BASE
from effc.devices.wire import CallResult, Greeting
from effc.errors import DeviceError, InternalError
from effc.runtimes.loader import BenchStats, LayerTime
from effc.samples import Arrays, Tensor, generate, numpy_dtype

__all__ = ["BoardExecutor", "SerialExecutor"]

_TIMEOUT_S = 600.0
_ANSWER_S = 60.0


class BoardExecutor:
    """A library for firmware on the board that emulates its processor.

    Args:
        library: The archive.
        manifest: Its manifest.
        timeout_s: For one inference.

    Raises:
        ToolError: The emulator is missing.
        DeviceError: Nothing emulates the processor, or the emulator died.
    """

    device = "qemu"
    threads = 1
    variant = BASE

    def __init__(
        self, library: Path, manifest: Mapping[str, Any], timeout_s: float = _TIMEOUT_S
    ) -> None:
        self._describe(manifest)
        with tempfile.TemporaryDirectory(prefix="effc-board-") as folder:
            program = Path(folder) / "monitor.elf"
            self._board = link_monitor(library, manifest, self._target, program)
            command = board_command(self._board, program)
            where = f"{self._board.program} -M {self._board.machine}"
            self._meet(EmulatedBoard(command, where, timeout_s))  # loaded when it answers

    def _describe(self, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest
        self._inputs = [Tensor.of(entry) for entry in manifest["inputs"]]
        self._outputs = [Tensor.of(entry) for entry in manifest["outputs"]]
        self._target = get_target(manifest["target"])

    def _meet(self, link: EmulatedBoard | SerialBoard) -> None:
        """Ask who is at the other end of the wire."""
        self._link, self._monitor = link, link.monitor
        try:
            self._greeting = self._monitor.hello()
            self._check_model(self._greeting)
            self._check_counter(self._greeting)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """One inference; also checks that it stayed within its memory and its stack."""
        self._give(inputs)
        self._checked(self._monitor.run(), "stack of the model")
        return self._read_outputs()

    def trace(
        self, inputs: Mapping[str, np.ndarray], pieces: Sequence[Piece]
    ) -> tuple[Arrays, Arrays]:
        """Run once: the outputs, and tensors by name as they are after their steps."""
        self._give(inputs)
        stored: Arrays = {}
        arena = len(self._inputs) + len(self._outputs)
        for step in range(self._greeting.steps):
            self._checked(self._monitor.step(step), f"stack of step {step}")
            for piece in pieces:
                if piece.step == step:
                    block = arena if piece.output is None else len(self._inputs) + piece.output
                    tensor = Tensor(piece.name, piece.dtype, piece.shape)
                    stored[piece.name] = self._array(tensor, block, piece.offset)
        return self._read_outputs(), stored

    def count(self) -> tuple[int, int]:
        """Instructions of one inference, and bytes of stack that it used."""
        self._give(generate(self._inputs))
        took = self._checked(self._monitor.run(), "stack of the model")
        return self._instructions(took, self._greeting.run_overhead), took.stack_bytes

    def bench(self, runs: int, warmup: int) -> BenchStats:
        """Time of one inference at one instruction per cycle: every other one takes the same."""
        times = [self._nanoseconds(self.count()[0])]
        return BenchStats.from_nanoseconds(times, warmup=0, threads=1)

    def profile(self, runs: int, warmup: int) -> tuple[LayerTime, ...]:
        """Count every layer of one inference."""
        self._give(generate(self._inputs))
        counts: dict[str, int] = {}
        for step, layer in enumerate(self._manifest["steps"]):
            took = self._monitor.step(step)
            count = self._instructions(took, self._greeting.step_overhead)
            counts[layer] = counts.get(layer, 0) + count
        nodes = {layer["name"]: tuple(layer["nodes"]) for layer in self._manifest["layers"]}
        return tuple(
            LayerTime(name, nodes.get(name, ()), self._nanoseconds(count) / 1e6, count)
            for name, count in counts.items()
        )

    def close(self) -> None:
        """End the emulator, or give the port back."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _give(self, inputs: Mapping[str, np.ndarray]) -> None:
        arrays = checked_inputs(inputs, self._inputs)
        self._monitor.set_inputs(b"".join(array.tobytes() for array in arrays))

    def _read_outputs(self) -> Arrays:
        return {
            tensor.name: self._array(tensor, len(self._inputs) + number, 0)
            for number, tensor in enumerate(self._outputs)
        }

    def _array(self, tensor: Tensor, block: int, offset: int) -> np.ndarray:
        dtype = numpy_dtype(tensor.dtype)
        nbytes = int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize
        data = self._monitor.read(block, offset, nbytes)
        return np.frombuffer(bytearray(data), dtype).reshape(tensor.shape)

    def _checked(self, took: CallResult, what: str) -> CallResult:
        bound = int(self._manifest["stack_bytes"])
        bound += self._greeting.interrupt_stack_bytes
        if took.stack_bytes > bound:
            raise InternalError(
                "the stack is deeper than computed",
                where=what,
                expected=f"at most {bound} bytes",
                got=took.stack_bytes,
            )
        return took

    def _instructions(self, took: CallResult, overhead: int) -> int:
        """Instructions of a call, its return included."""
        interrupts = took.interrupts * self._greeting.interrupt_instructions
        return self._board.instructions(took.ticks - overhead) + 1 - interrupts

    def _nanoseconds(self, instructions: int) -> int:
        """Time at one instruction per cycle."""
        return round(instructions * 1000 / self._target.clock_mhz)

    def _check_model(self, greeting: Greeting) -> None:
        """Refuse a board with another model on it.

        Raises:
            DeviceError: Tensors or steps are not the artifact's.
        """
        ports = [*self._manifest["inputs"], *self._manifest["outputs"]]
        sizes = (*(int(port["bytes"]) for port in ports), int(self._manifest["arena_bytes"]))
        wanted = (len(self._inputs), len(self._outputs), len(self._manifest["steps"]), sizes)
        found = (greeting.inputs, greeting.outputs, greeting.steps, greeting.block_bytes)
        if wanted != found:
            raise DeviceError(
                "the board runs another model than the artifact's",
                where=self._monitor.where,
                expected=_model_text(*wanted),
                got=_model_text(*found),
                hint="export the artifact with --as monitor and flash that",
            )

    def _check_counter(self, greeting: Greeting) -> None:
        """Compare a loop of known length with what the counter says of it.

        Raises:
            DeviceError: Counts of this emulator would be wrong.
        """
        took = CallResult(greeting.loop_ticks, greeting.loop_interrupts, 0)
        counted = self._instructions(took, greeting.loop_overhead)
        if counted != greeting.loop_instructions:
            raise DeviceError(
                "the emulator does not count instructions exactly",
                where=self._board.machine,
                expected=greeting.loop_instructions,
                got=counted,
            )


class SerialExecutor(BoardExecutor):
    """The same on a board at a serial port, which counts cycles of its clock.

    Args:
        address: The port.
        manifest: Of the artifact that the board runs.
        timeout_s: For one inference.

    Raises:
        DeviceError: No board answers, or it runs something else.
    """

    def __init__(
        self, address: Address, manifest: Mapping[str, Any], timeout_s: float = _ANSWER_S
    ) -> None:
        self.device = str(address)
        self._describe(manifest)
        self._meet(SerialBoard(address.path, address.baud, timeout_s))

    def _instructions(self, took: CallResult, overhead: int) -> int:
        """Cycles: a board does not count instructions."""
        return took.ticks - overhead

    def _check_counter(self, greeting: Greeting) -> None:
        """Cycles of a loop depend on the processor."""


def _model_text(inputs: int, outputs: int, steps: int, sizes: Sequence[int]) -> str:
    return f"{inputs} inputs, {outputs} outputs, {steps} steps, bytes {list(sizes)}"
