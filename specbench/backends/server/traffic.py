"""When requests are sent: by clients that wait for their answers (a closed loop), or at random times (an open one).

In a closed loop of several clients the load would fall towards the end, when some have nothing left to ask. They go on
asking, uncounted, until the last counted answer is there, so that every counted request ran at the full load.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from specbench.records import Load

Job = TypeVar("Job")


async def drive(
    jobs: Sequence[Job],
    load: Load,
    *,
    send: Callable[[Job, float], Awaitable[None]],
    fill: Callable[[Job], Awaitable[None]],
    seed: str,
) -> None:
    """Send every job once with `send(job, due_s)`, `due_s` being the loop's clock when it was due, and return when all
    are answered. `fill` sends one that does not count. `seed` draws the arrivals of an open loop."""
    if load.rate is not None:
        await _open(jobs, load.rate, send, random.Random(seed))
    else:
        await _closed(jobs, load.concurrency, send, fill)


async def each(jobs: Sequence[Job], clients: int, send: Callable[[Job], Awaitable[None]]) -> None:
    """Send every job once from so many clients; nothing is timed."""
    waiting = deque(jobs)

    async def client() -> None:
        while waiting:
            await send(waiting.popleft())

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
    except* Exception as failures:
        raise _first(failures) from None


async def _closed(
    jobs: Sequence[Job],
    concurrency: int,
    send: Callable[[Job, float], Awaitable[None]],
    fill: Callable[[Job], Awaitable[None]],
) -> None:
    loop = asyncio.get_running_loop()
    waiting, open_jobs = deque(jobs), len(jobs)
    fillers: set[asyncio.Task[None]] = set()

    async def refill(first: int) -> None:
        turn = first
        while open_jobs:
            await fill(jobs[turn % len(jobs)])
            turn += concurrency

    async def client(number: int) -> None:
        nonlocal open_jobs
        while waiting:
            await send(waiting.popleft(), loop.time())
            open_jobs -= 1
        if open_jobs:
            fillers.add(asyncio.create_task(refill(number)))

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(client(number))
    except* Exception as failures:
        raise _first(failures) from None
    finally:
        for filler in fillers:
            filler.cancel()
        await asyncio.gather(*fillers, return_exceptions=True)


async def _open(
    jobs: Sequence[Job], rate: float, send: Callable[[Job, float], Awaitable[None]], draw: random.Random
) -> None:
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                due_s += draw.expovariate(rate)
                await asyncio.sleep(due_s - loop.time())
                group.create_task(_one(send, job, due_s))
    except* Exception as failures:
        raise _first(failures) from None


async def _one(send: Callable[[Job, float], Awaitable[None]], job: Job, due_s: float) -> None:
    await send(job, due_s)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """One failure is enough to say why; a group of them is a traceback."""
    found: BaseException = failures
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
