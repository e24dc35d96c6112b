"""When requests are sent, from which thread, and how late we were ourselves.

They are sent by clients that wait for their answers (a closed loop), or at random times (an open one). In a closed
loop of several clients the load would fall towards the end, when some have nothing left to ask. They go on asking,
uncounted, until the last counted answer is there, so that every counted request ran at the full load. What clients ask
that come free at the same time leaves GAP_S apart, in the order in which they were free; a conversation's later turns
follow at once.

All of it runs in an event loop of a thread of its own: the caller, who may be in one already, waits for what comes, and
can be interrupted while it waits. A read that waits for us looks like a slow server, so our own lag is measured.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Self, TypeVar

import numpy as np

from specbench.records import ClientLag, Load

Job = TypeVar("Job")

# Longer than what requests overtake each other by on their way, and no limit to a rate that anyone measures.
GAP_S = 0.003


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
    line, sent_s = asyncio.Lock(), -GAP_S

    async def in_line() -> None:
        # Which of those that come free together is read first, and who waits for that, would else be luck.
        nonlocal sent_s
        async with line:
            await asyncio.sleep(max(0.0, sent_s + GAP_S - loop.time()))
            sent_s = loop.time()

    async def refill(first: int) -> None:
        turn = first
        while open_jobs:
            await in_line()
            await fill(jobs[turn % len(jobs)])
            turn += concurrency

    async def client(number: int) -> None:
        nonlocal open_jobs
        while waiting:
            job = waiting.popleft()
            await in_line()
            await send(job, loop.time())
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


TICK_S = 0.01


class LagMeter:
    """While it is entered, the event loop is asked to wake every TICK_S; how much later it wakes is how long a read
    would have waited."""

    def __init__(self) -> None:
        self._late_s: list[float] = []

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._began_s, self._spent_s = self._loop.time(), time.process_time()
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._wall_s = self._loop.time() - self._began_s
        self._spent_s = time.process_time() - self._spent_s

    def _wait(self) -> None:
        self._due_s = self._loop.time() + TICK_S
        self._timer = self._loop.call_at(self._due_s, self._wake)

    def _wake(self) -> None:
        late_s = self._loop.time() - self._due_s
        # Whoever came while nobody woke waited as well, each a tick less.
        while late_s >= 0:
            self._late_s.append(late_s)
            late_s -= TICK_S
        self._wait()

    def found(self) -> ClientLag | None:
        """After it was left; None for a span too short to tell."""
        if not self._late_s:
            return None
        mean_s, p99_s = float(np.mean(self._late_s)), float(np.percentile(self._late_s, 99))
        return ClientLag(mean_s, p99_s, self._spent_s / self._wall_s)


T = TypeVar("T")


def stream(work: Callable[[Callable[[T], None]], Awaitable[None]]) -> Generator[T, None, None]:
    """What `work` puts, as it puts it; `work` is cancelled where nobody listens any more. Close it, or read it to its
    end. Raises what `work` raises."""
    events: SimpleQueue[tuple[T] | None] = SimpleQueue()
    loop = asyncio.new_event_loop()
    task: asyncio.Task[None] | None = None
    left = False

    async def main() -> None:
        nonlocal task
        task = asyncio.current_task()
        if not left:
            await work(lambda value: events.put((value,)))

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())

    with ThreadPoolExecutor(1, "servers") as thread:
        done = thread.submit(run)
        done.add_done_callback(lambda _: events.put(None))
        try:
            while (event := events.get()) is not None:
                yield event[0]
        finally:
            # Whoever listens no longer is interrupted, or has failed: what was asked is given up, in order.
            left = True
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(lambda: task is not None and task.cancel())
        done.result()


def call(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns. Raises what it raises."""

    async def put_result(put: Callable[[T], None]) -> None:
        put(await work())

    (value,) = stream(put_result)
    return value
