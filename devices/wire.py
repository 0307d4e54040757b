"""The host's end of a wire to a board that runs the monitor (``runtimes/bare/monitor.h``).

Frames, little-endian: magic, kind, bytes of the payload, CRC-32 of kind, bytes and payload (one
word each), then the payload. The host asks, the board answers. Every wait has an end.
"""

from __future__ import annotations

import os
import select
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effc.errors import DeviceError, InternalError

__all__ = ["CallResult", "Greeting", "Monitor"]

_MAGIC = 0x43464645
_PROTOCOL = 1
_HELLO, _INPUT, _RUN, _STEP, _READ, _EXIT, _REFUSED, _FAULT = 1, 2, 3, 4, 5, 6, 0x100, 0x101
_HEAD = struct.Struct("<4I")
_HELLO_WORDS = struct.Struct("<9I4x4Q")
_RESULT = struct.Struct("<i3IQ")
_DAMAGE = {1: "the end of the stack", 2: "memory around the model's", 4: "an input"}
_MAX_PAYLOAD = 1 << 30


@dataclass(frozen=True)
class Greeting:
    """What a board says of itself and its model.

    Attributes:
        block_bytes: Of each input, each output, and the arena.
        inputs, outputs, steps: How many there are.
        stack_bytes: Size of the stack.
        interrupt_instructions, interrupt_stack_bytes: What an interrupt takes; they keep the
            counter going.
        loop_instructions, loop_interrupts, loop_ticks: A loop of known length and what it took.
        loop_overhead, run_overhead, step_overhead: Ticks of such calls that only return.
    """

    block_bytes: tuple[int, ...]
    inputs: int
    outputs: int
    steps: int
    stack_bytes: int
    interrupt_instructions: int
    interrupt_stack_bytes: int
    loop_instructions: int
    loop_interrupts: int
    loop_ticks: int
    loop_overhead: int
    run_overhead: int
    step_overhead: int


@dataclass(frozen=True)
class CallResult:
    """What a call of the model took: ticks, interrupts in between, bytes of stack."""

    ticks: int
    interrupts: int
    stack_bytes: int


class Monitor:
    """A board at the end of two file descriptors.

    Args:
        receive, send: Descriptors to read from and to write to; they become non-blocking.
        where: What to call the board in messages.
        complaint: Text that tells why the other side ended, where there is any.
        timeout_s: For one answer.
    """

    def __init__(
        self,
        receive: int,
        send: int,
        where: str,
        complaint: Callable[[], str],
        timeout_s: float,
    ) -> None:
        self._receive, self._send = receive, send
        self.where = where
        self._complaint = complaint
        self.timeout_s = timeout_s
        os.set_blocking(receive, False)
        os.set_blocking(send, False)

    def hello(self) -> Greeting:
        """Ask who is there.

        Raises:
            DeviceError: Nobody, or a monitor of another version.
        """
        answer = self._ask(_HELLO)
        if len(answer) < _HELLO_WORDS.size:
            raise self._error("the board answered nonsense", got=answer.hex())
        protocol, *words = _HELLO_WORDS.unpack_from(answer)
        if protocol != _PROTOCOL:
            raise self._error(
                "the board runs another version of the monitor", expected=_PROTOCOL, got=protocol
            )
        count = words[0] + words[1] + 1
        if len(answer) != _HELLO_WORDS.size + 4 * count:
            raise self._error("the board answered nonsense", got=answer.hex())
        sizes = struct.unpack_from(f"<{count}I", answer, _HELLO_WORDS.size)
        return Greeting(sizes, *words)

    def set_inputs(self, data: bytes) -> None:
        """Give all inputs, one behind the other."""
        self._ask(_INPUT, data)

    def run(self) -> CallResult:
        """Run one inference on the inputs.

        Raises:
            DeviceError: The board died, or the model wrote where it must not.
        """
        return self._result(self._ask(_RUN), "the model")

    def step(self, number: int) -> CallResult:
        """Run one step; otherwise as :meth:`run`."""
        return self._result(self._ask(_STEP, struct.pack("<I", number)), f"step {number}")

    def read(self, block: int, offset: int, nbytes: int) -> bytes:
        """Bytes of an input, an output or the arena, by its number among all of them."""
        data = self._ask(_READ, struct.pack("<3I", block, offset, nbytes))
        if len(data) != nbytes:
            raise self._error("the board answered nonsense", expected=nbytes, got=len(data))
        return data

    def exit(self) -> None:
        """End the program."""
        self._ask(_EXIT)

    def _result(self, answer: bytes, what: str) -> CallResult:
        if len(answer) != _RESULT.size:
            raise self._error("the board answered nonsense", got=answer.hex())
        status, stack, damage, interrupts, ticks = _RESULT.unpack(answer)
        if status != 0:
            raise InternalError("the model refused its arguments", where=what, got=status)
        if damage:
            places = ", ".join(text for bit, text in _DAMAGE.items() if damage & bit)
            raise self._error(f"{what} wrote over {places}")
        return CallResult(ticks, interrupts, stack)

    def _ask(self, kind: int, payload: bytes = b"") -> bytes:
        deadline = time.monotonic() + self.timeout_s
        self._write(_HEAD.pack(_MAGIC, kind, len(payload), _crc(kind, payload)), deadline)
        self._write(payload, deadline)
        answered, answer = self._frame(deadline)
        if answered == _FAULT:
            words = struct.unpack(f"<{len(answer) // 4}I", answer[: len(answer) // 4 * 4])
            raise self._error("the program faulted", got=" ".join(f"{w:#010x}" for w in words))
        if answered != kind:
            raise self._error("the board refused a request", got=f"{answered:#x} to {kind:#x}")
        return answer

    def _frame(self, deadline: float) -> tuple[int, bytes]:
        magic, kind, length, crc = _HEAD.unpack(self._read(_HEAD.size, deadline))
        if magic != _MAGIC or length > _MAX_PAYLOAD:
            raise self._error("the board answered nonsense", got=f"{magic:#x} {length}")
        payload = self._read(length, deadline)
        if crc != _crc(kind, payload):
            raise self._error("an answer of the board was damaged on its way")
        return kind, payload

    def _read(self, nbytes: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < nbytes:
            self._wait([self._receive], [], deadline)
            try:
                part = os.read(self._receive, nbytes - len(data))
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._error("the wire broke", got=error) from error
            if not part:
                raise self._error("the board's program ended", got=self._complaint() or None)
            data += part
        return bytes(data)

    def _write(self, data: bytes, deadline: float) -> None:
        left = memoryview(data)
        while left:
            self._wait([], [self._send], deadline)
            try:
                left = left[os.write(self._send, left) :]
            except BlockingIOError:
                continue
            except OSError as error:
                got = self._complaint() or error
                raise self._error("the board's program ended", got=got) from error

    def _wait(self, readers: Sequence[int], writers: Sequence[int], deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select(readers, writers, [], left)):
            raise self._error(
                "the board does not answer", expected=f"an answer within {self.timeout_s:g} s"
            )

    def _error(self, what: str, expected: object = None, got: object = None) -> DeviceError:
        return DeviceError(what, where=self.where, expected=expected, got=got)


def _crc(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<2I", kind, len(payload))))
