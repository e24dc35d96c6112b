"""The client's own promises, with a server that closes connections before it answers."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from specbench.backends.server.client import Client, FailedError

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"a": 1}'


def closing(times):
    """A server that reads a request and hangs up, so many times, and then answers; its address and what it saw."""
    listening = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve():
        while len(seen) <= times:
            connection, _ = listening.accept()
            with connection:
                request = b""
                while not request.endswith(b"}"):  # with a part unread, closing is a reset
                    request += connection.recv(65536)
                seen.append(request)
                if len(seen) > times:
                    connection.sendall(ANSWER)
        listening.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listening.getsockname()[1]}", seen


async def posted(url):
    async with Client(url, key=None, timeout_s=10) as client:
        return await client.post("/tokenize", {"content": "x"})


def test_a_connection_that_closes_before_the_answer_is_asked_again_once():
    url, seen = closing(1)
    assert asyncio.run(posted(url)) == {"a": 1}
    assert len(seen) == 2


def test_and_not_twice():
    url, seen = closing(2)
    with pytest.raises(FailedError):
        asyncio.run(posted(url))
    assert len(seen) == 2
