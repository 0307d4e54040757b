"""A TCP proxy whose connections break, hang or are refused at a given byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Trouble:
    """What happens to one connection.

    Attributes:
        what: ``cut`` ends both sides, ``hang`` passes nothing on any more.
        after: Bytes that pass before; 0: at once.
        upward: Whether bytes to the server are counted, or those from it.
    """

    what: Literal["cut", "hang"]
    after: int
    upward: bool = True


class Proxy:
    """Passes connections on to a port of the loopback; a context manager.

    Attributes:
        port: Where it listens.
        troubles: What happens to the next connections, in order; then all is well.
        always: What happens to every connection.
    """

    def __init__(self, server: int) -> None:
        self.server = server
        self.troubles: list[Trouble] = []
        self.always: Trouble | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        _end(self._listener, *self._open)

    def calm(self) -> None:
        """No more trouble; what hangs ends."""
        self.troubles, self.always = [], None
        _end(*self._open)
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                trouble = self.always or (self.troubles.pop(0) if self.troubles else None)
                server = socket.create_connection(("127.0.0.1", self.server))
                self._open += [client, server]
                for source, sink, upward in ((client, server, True), (server, client, False)):
                    mine = trouble if trouble and trouble.upward == upward else None
                    threading.Thread(target=_pass, args=(source, sink, mine), daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket, trouble: Trouble | None) -> None:
    left = trouble.after if trouble else 0
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 14):
            if trouble:
                data, left = data[:left], left - len(data[:left])
            sink.sendall(data)
            if trouble and left == 0:
                if trouble.what == "hang":
                    return
                break
    _end(source, sink)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
