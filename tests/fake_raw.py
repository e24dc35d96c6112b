"""A fake server that sends bytes, whatever they are: what it answers is planted whole, by path."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class FakeRaw:
    """`say` gives the pieces of an answer to the head of a request; a number among them is a pause in seconds. `heads`
    are those that came, and `connections` how many were made. With `context` it speaks TLS; with `tunnel` only after it
    was asked for one in plain text, and gave that head; `greeting` is sent before anything is asked."""

    say: Callable[[str], Iterator[bytes | float]]
    context: ssl.SSLContext | None = None
    tunnel: str = ""
    greeting: bytes = b""
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> FakeRaw:
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http{'' if self.context is None else 's'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self.greeting:
                connection.sendall(self.greeting)
            if self.tunnel:
                self.heads.append(_request(connection))
                connection.sendall(f"{self.tunnel}\r\n\r\n".encode())
            if self.context is not None:
                connection = self.context.wrap_socket(connection, server_side=True)
            with connection:
                while request := _request(connection):
                    self.heads.append(request)
                    for piece in self.say(request):
                        if isinstance(piece, bytes):
                            connection.sendall(piece)
                        elif piece < 0:
                            return  # closes
                        else:
                            time.sleep(piece)


def _request(connection: socket.socket) -> str:
    """The head of a request, its body read and dropped; empty at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return ""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head.decode("latin-1")


def answer(body: bytes, kind: str = "application/json", status: str = "200 OK", more: str = "") -> bytes:
    """A whole answer, of known length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode("latin-1") + body
