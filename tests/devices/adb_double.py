"""A double of adb's server with phones behind it, for the real ``adb`` client.

Protocol: OVERVIEW.TXT, SERVICES.TXT and SYNC.TXT of Android's adb sources, and
``shell_protocol.h`` for shells with exit codes. A phone is a folder: what a command names below
``/data``, ``/system``, ``/sys`` or as ``/proc/cpuinfo`` and the like lies in it, and programs for
Arm run under QEMU (``foreign.c``). As on a phone, a command whose client has gone gets SIGHUP,
its input ends and its output breaks; if it goes on, it is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VERSION = 41
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = 0, 1, 2, 3, 4
_INSIDE = re.compile(
    r"(?<![\w./-])/(?=data/|system/|sys/|proc/(?:cpuinfo|meminfo|version)\b|vendor/)"
)


class Cut(Exception):
    """The connection to the phone breaks."""


@dataclass
class Fault:
    """What goes wrong, a given number of times.

    Attributes:
        service: Pattern for the service that it happens to.
        act: Raises :class:`Cut` or ``OSError`` or sleeps, given the bytes that have passed.
        times: How often it happens.
        skip: How many such services are spared before.
    """

    service: str
    act: Callable[[int], None]
    times: int = 1
    skip: int = 0


def cut_after(count: int) -> Callable[[int], None]:
    def act(passed: int) -> None:
        if passed >= count:
            raise Cut

    return act


def full_after(count: int) -> Callable[[int], None]:
    def act(passed: int) -> None:
        if passed >= count:
            raise OSError(28, "No space left on device")

    return act


def hang(passed: int) -> None:
    time.sleep(3600)


@dataclass
class Phone:
    """One phone.

    Attributes:
        serial: As ``adb devices`` prints it.
        root: Its files.
        state: ``device``, ``offline``, ``unauthorized`` ...
        environment: Of its shell.
        features: Of its adb daemon.
        faults: What goes wrong there.
        services: What it was asked, in order.
        pushed: Names of files that arrived.
    """

    serial: str
    root: Path
    state: str = "device"
    environment: dict[str, str] = field(default_factory=dict)
    features: bytes = b"shell_v2,cmd"
    faults: list[Fault] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def fault(self, service: str) -> Callable[[int], None]:
        """What happens to a service of this name now."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.service, service):
                if fault.skip == 0:
                    fault.times -= 1
                    return fault.act
                fault.skip -= 1
        return lambda passed: None


class AdbDouble:
    """The server; a context manager. ``environment`` lets ``adb`` find it."""

    def __init__(self, *phones: Phone) -> None:
        self.phones = list(phones)
        double = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(Cut, OSError):
                    _Conversation(double, self.request).serve()

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                raise

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def environment(self) -> dict[str, str]:
        return {"ANDROID_ADB_SERVER_PORT": str(self._server.server_address[1])}

    def __enter__(self) -> AdbDouble:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def choose(self, how: str) -> Phone | str:
        """The phone of a transport request, or why there is none."""
        serial = how.removeprefix("serial:") if how.startswith("serial:") else ""
        found = [p for p in self.phones if not serial or p.serial == serial]
        if not found:
            return f"device '{serial}' not found" if serial else "no devices/emulators found"
        if len(found) > 1:
            return "more than one device/emulator"
        state = found[0].state
        if state == "unauthorized":
            return (
                "device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set\n"
                "Try 'adb kill-server' if that seems wrong.\n"
                "Otherwise check for a confirmation dialog on your device."
            )
        return found[0] if state == "device" else f"device {state}"


class _Conversation:
    """One connection of a client."""

    def __init__(self, double: AdbDouble, connection: socket.socket) -> None:
        self.double = double
        self.socket = connection
        self.phone: Phone | None = None

    def serve(self) -> None:
        while request := self._request():
            if not self._answer(request):
                return

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(min(count - len(data), 1 << 16))
            if not more:
                raise Cut
            data += more
        return data

    def _request(self) -> str:
        try:
            return self._read(int(self._read(4), 16)).decode()
        except Cut:
            return ""

    def _okay(self, text: bytes | None = None) -> None:
        body = b"" if text is None else f"{len(text):04x}".encode() + text
        self.socket.sendall(b"OKAY" + body)

    def _fail(self, text: str) -> None:
        data = text.encode()
        self.socket.sendall(b"FAIL" + f"{len(data):04x}".encode() + data)

    def _answer(self, request: str) -> bool:
        """Whether more may follow."""
        if request == "host:version":
            self._okay(f"{VERSION:04x}".encode())
        elif request == "host:devices":
            lines = [f"{p.serial}\t{p.state}\n" for p in self.double.phones]
            self._okay("".join(lines).encode())
        elif request.startswith(("host:tport:", "host:transport")):
            how = request.split(":", 2)[2] if request.count(":") > 1 else "any"
            if request.startswith("host:transport:"):
                how = f"serial:{how}"
            phone = self.double.choose(how)
            if isinstance(phone, str):
                self._fail(phone)
                return False
            self.phone = phone
            self._okay()
            if request.startswith("host:tport:"):
                self.socket.sendall(struct.pack("<Q", 1))
            return True
        elif request.endswith(":features") or request == "host:features":
            serial = re.match(r"host-serial:(.*):features", request)
            phone = self.double.choose(f"serial:{serial[1]}" if serial else "any")
            if isinstance(phone, str):
                self._fail(phone)
            else:
                self._okay(phone.features)
        elif self.phone is not None:
            self.phone.services.append(request)
            act = self.phone.fault(request)
            act(0)
            self._okay()
            if request.startswith("shell,v2"):
                _Shell(self.socket, self.phone, request.split(":", 1)[1], act).serve()
            elif request == "sync:":
                _Sync(self.socket, self._read, self.phone, act).serve()
        else:
            self._fail(f"unknown host service '{request}'")
        return False


class _Shell:
    """A command with packets for its streams and its exit code."""

    def __init__(
        self, connection: socket.socket, phone: Phone, command: str, act: Callable[[int], None]
    ) -> None:
        self.socket = connection
        self.phone = phone
        self.act = act
        self.passed = 0
        self.lock = threading.Lock()
        inside = _INSIDE.sub(f"{phone.root}/", command)
        self.process = subprocess.Popen(
            ["sh", "-c", inside],
            env=phone.environment,
            cwd=phone.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def serve(self) -> None:
        process = self.process
        assert process.stdout is not None
        assert process.stderr is not None
        streams = ((STDOUT, process.stdout), (STDERR, process.stderr))
        readers = [threading.Thread(target=self._pass_on, args=pair) for pair in streams]
        threading.Thread(target=self._take_input, daemon=True).start()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = process.wait()
        with contextlib.suppress(OSError, Cut):
            self._send(EXIT, bytes([code & 255 if code >= 0 else 128 - code]))

    def _send(self, kind: int, data: bytes) -> None:
        with self.lock:
            self.passed += len(data)
            self.act(self.passed)
            self.socket.sendall(struct.pack("<BI", kind, len(data)) + data)

    def _pass_on(self, kind: int, stream: Any) -> None:
        """Output of the command, with the names that it would have on a phone."""
        try:
            while data := stream.read1(1 << 15):
                self._send(kind, data.replace(os.fsencode(self.phone.root), b""))
        except (OSError, Cut):
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        stream.close()

    def _take_input(self) -> None:
        """Its input, until the client ends it or goes."""
        stdin = self.process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, Cut), stdin, self.socket.makefile("rb") as source:
            while header := source.read(5):
                kind, size = struct.unpack("<BI", header)
                data = source.read(size)
                if kind == CLOSE_STDIN:
                    return
                if kind == STDIN:
                    stdin.write(data)
                    stdin.flush()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGHUP)


class _Sync:
    """File transfer."""

    def __init__(
        self,
        connection: socket.socket,
        read: Callable[[int], bytes],
        phone: Phone,
        act: Callable[[int], None],
    ) -> None:
        self.socket = connection
        self.read = read
        self.phone = phone
        self.act = act
        self.passed = 0

    def serve(self) -> None:
        while True:
            kind, size = struct.unpack("<4sI", self.read(8))
            if kind == b"QUIT":
                return
            name = self.read(size).decode()
            if kind == b"STAT":
                self._stat(name)
            elif kind == b"SEND":
                self._receive(*name.rsplit(",", 1))
            elif kind == b"RECV":
                self._send(name)
            else:
                raise AssertionError(f"unexpected request {kind!r}")

    def _stat(self, name: str) -> None:
        try:
            found = os.lstat(f"{self.phone.root}{name}")  # behind a link that ends with a slash
            fields = (found.st_mode, found.st_size, int(found.st_mtime))
        except OSError:
            fields = (0, 0, 0)
        self.socket.sendall(b"STAT" + struct.pack("<III", *fields))

    def _receive(self, name: str, mode: str) -> None:
        path, complaint = self.phone.path(name), ""
        path.write_bytes(b"")
        while True:
            kind, size = struct.unpack("<4sI", self.read(8))
            if kind == b"DONE":
                break
            data = self.read(size)
            self.passed += size
            try:
                self.act(self.passed)
                with path.open("ab") as file:
                    file.write(data)
            except OSError as error:
                complaint = complaint or f"write failed: {error.strerror}"
        if complaint:
            path.unlink(missing_ok=True)
            self.socket.sendall(b"FAIL" + struct.pack("<I", len(complaint)) + complaint.encode())
            return
        path.chmod(int(mode) & 0o777)
        self.phone.pushed.append(path.name)
        self.socket.sendall(b"OKAY" + struct.pack("<I", 0))

    def _send(self, name: str) -> None:
        try:
            data = self.phone.path(name).read_bytes()
        except OSError as error:
            text = f"open failed: {error.strerror}".encode()
            self.socket.sendall(b"FAIL" + struct.pack("<I", len(text)) + text)
            return
        for start in range(0, len(data), 1 << 16):
            part = data[start : start + (1 << 16)]
            self.passed += len(part)
            self.act(self.passed)
            self.socket.sendall(b"DATA" + struct.pack("<I", len(part)) + part)
        self.socket.sendall(b"DONE" + struct.pack("<I", 0))
