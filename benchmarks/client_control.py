"""The control of `client`: bare sockets, and nothing looked at but whether a token came: what any client would see.

    python client_control.py PORT CLIENTS REQUESTS TOKENS NAME

With CLIENTS `50/s` requests arrive at random, so many a second. Prints one JSON object: seconds of CPU, and for each
request its prompt and the arrival of its first and of its last token, in seconds after it was due.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ROWS: list[tuple[str, float, float]] = []


async def ask(stream: Stream, prompt: str, tokens: int, due_s: float) -> None:
    reader, writer = stream
    body = json.dumps(
        {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
    ).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    while await reader.readline() != b"\r\n":
        pass
    seen: list[float] = []
    while size := int(await reader.readline(), 16):
        if b'"content":"' in await reader.readexactly(size + 2):
            seen.append(time.perf_counter() - due_s)
    await reader.readline()
    ROWS.append((prompt, seen[0], seen[-1]))


async def drive(port: int, load: str, prompts: list[str], tokens: int) -> None:
    idle: list[Stream] = []

    async def connected() -> Stream:
        return await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)

    async def once(prompt: str, due_s: float) -> None:
        stream = idle.pop() if idle else await connected()
        await ask(stream, prompt, tokens, due_s)
        idle.append(stream)

    async def client() -> None:
        while prompts:
            await once(prompts.pop(), time.perf_counter())

    if load.endswith("/s"):
        due_s, rate, draw = time.perf_counter(), float(load.removesuffix("/s")), random.Random(0)
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                due_s += draw.expovariate(rate)
                await asyncio.sleep(due_s - time.perf_counter())
                group.create_task(once(prompt, due_s))
    else:
        idle += [await connected() for _ in range(int(load))]
        async with asyncio.TaskGroup() as group:
            for _ in range(int(load)):
                group.create_task(client())
    for _, writer in idle:
        writer.close()


if __name__ == "__main__":
    _port, _load, _requests, _tokens, _name = sys.argv[1:]
    spent_s = time.process_time()
    asyncio.run(drive(int(_port), _load, [f"{_name} {n}" for n in range(int(_requests))], int(_tokens)))
    print(json.dumps({"cpu_s": time.process_time() - spent_s, "rows": ROWS}))
