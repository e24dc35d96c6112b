"""The client of specbench as `client` runs it, with the arguments and the output of client_control.py.

A program of its own, so that another version of specbench can be driven by it: PYTHONPATH says which.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import nullcontext
from typing import Any

from specbench.backends.server import traffic
from specbench.backends.server.client import Client
from specbench.backends.server.openai import OpenAI
from specbench.records import Load

try:
    from specbench.backends.server.traffic import LagMeter
except ImportError:  # an older one
    LagMeter = None  # type: ignore[assignment,misc]

ROWS: list[tuple[str, float, float]] = []


async def drive(port: int, load: str, prompts: list[str], tokens: int) -> dict[str, Any]:
    async with Client(f"http://127.0.0.1:{port}", key=None, timeout_s=600) as client:
        adapter, loop = OpenAI(), asyncio.get_running_loop()

        async def once(prompt: str, due_s: float) -> None:
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
            late_s = loop.time() - due_s
            chunks = await client.send(adapter.path, body)
            async with getattr(client, "turn", nullcontext()):  # as a session does; an older one has none
                await asyncio.sleep(0)
                answer = adapter.read(chunks)
            ROWS.append((prompt, late_s + answer.first_s, late_s + answer.last_s))

        async def now(prompt: str) -> None:
            await once(prompt, loop.time())

        if not load.endswith("/s") and hasattr(client, "open"):
            await client.open(int(load))
        meter: Any = nullcontext() if LagMeter is None else LagMeter()
        with meter:
            if load.endswith("/s"):
                rate = Load(1, float(load.removesuffix("/s")))
                await traffic.drive(prompts, rate, send=once, fill=now, seed="0")
            else:
                await traffic.each(prompts, int(load), now)
        lag = None if LagMeter is None else meter.found()
    return {"late_s": None if lag is None else lag.mean_s, "late_p99_s": None if lag is None else lag.p99_s}


if __name__ == "__main__":
    _port, _load, _requests, _tokens, _name = sys.argv[1:]
    spent_s = time.process_time()
    found = asyncio.run(drive(int(_port), _load, [f"{_name} {n}" for n in range(int(_requests))], int(_tokens)))
    print(json.dumps({"cpu_s": time.process_time() - spent_s, "rows": ROWS, **found}))
