"""A fake server with OpenAI's interface and planted times: it writes down when it sent what.

    python fake_times.py PORT TTFT_S TPOT_S TOKENS TRUTH

Each line of the file TRUTH is one answer: the last message, its tokens, and when the first and the last of them were
sent, in seconds after the request came in. PORT 0 is any; the port is the first line of stdout.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TextIO

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
MODELS = b'{"data":[{"id":"fake"}]}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


TOKEN = chunk(
    b'data: {"id":"chatcmpl-123456789","object":"chat.completion.chunk","created":1,"model":"fake",'
    b'"choices":[{"index":0,"delta":{"content":"word "},"logprobs":null,"finish_reason":null}]}\n\n'
)


def ending(tokens: int) -> bytes:
    return (
        chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n')
        + chunk(b'data: {"choices":[],"usage":{"completion_tokens":%d,"prompt_tokens":20}}\n\n' % tokens)
        + chunk(b"data: [DONE]\n\n")
        + b"0\r\n\r\n"
    )


class Server:
    def __init__(self, ttft_s: float, tpot_s: float, tokens: int, truth: TextIO) -> None:
        self.ttft_s, self.tpot_s, self.tokens, self.truth = ttft_s, tpot_s, tokens, truth

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request by request."""
        try:
            while line := await reader.readline():
                came_s, length = asyncio.get_running_loop().time(), 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    if header[:15].lower() == b"content-length:":
                        length = int(header[15:])
                if line.startswith(b"GET"):
                    status = b"200 OK" if b"models" in line else b"404 Not Found"
                    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(MODELS), MODELS))
                else:
                    await self.answer(json.loads(await reader.readexactly(length)), writer, came_s)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def answer(self, body: dict[str, object], writer: asyncio.StreamWriter, came_s: float) -> None:
        loop = asyncio.get_running_loop()
        tokens = min(self.tokens, int(str(body["max_tokens"])))
        sent_s: list[float] = []
        writer.write(HEAD)
        for number in range(tokens):
            await asyncio.sleep(came_s + self.ttft_s + number * self.tpot_s - loop.time())
            sent_s.append(loop.time() - came_s)
            writer.write(TOKEN if number < tokens - 1 else TOKEN + ending(tokens))
            if writer.is_closing():
                return
        messages = body["messages"]
        assert isinstance(messages, list)
        self.truth.write(json.dumps([messages[-1]["content"], tokens, sent_s[0], sent_s[-1]]) + "\n")


async def main() -> None:
    port, ttft_s, tpot_s, tokens, truth = sys.argv[1:]
    with Path(truth).open("a", buffering=1) as file:
        own = Server(float(ttft_s), float(tpot_s), int(tokens), file)
        server = await asyncio.start_server(own.serve, "127.0.0.1", int(port), backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
