"""Servers are asked in an event loop of a thread of its own: the caller, who may be in one already, waits for what
comes, and can be interrupted while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """The work is over, in an error or not."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Worker(Generic[T]):
    def __init__(self, work: Callable[[Callable[[T], None]], Awaitable[None]]) -> None:
        self._work = work
        self._events: SimpleQueue[tuple[T] | _End] = SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._left = False
        self._thread = Thread(target=self._run, name="servers", daemon=True)

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        if self._left:
            return
        await self._work(lambda value: self._events.put((value,)))

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        except BaseException as raised:
            error = raised
        self._events.put(_End(error))

    def events(self) -> Generator[T, None, None]:
        self._thread.start()
        over = False
        try:
            while True:
                event = self._events.get()
                if isinstance(event, _End):
                    over = True
                    if event.error is not None:
                        raise event.error
                    return
                yield event[0]
        finally:
            # Whoever listens no longer is interrupted, or has failed: what was asked is given up, in order.
            if not over:
                self._left = True
                with suppress(RuntimeError):  # it ended just now
                    self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def stream(work: Callable[[Callable[[T], None]], Awaitable[None]]) -> Generator[T, None, None]:
    """What `work` puts, as it puts it; `work` is cancelled where nobody listens any more. Close it, or read it to its
    end. Raises what `work` raises."""
    return _Worker(work).events()


def call(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns. Raises what it raises."""

    async def put_result(put: Callable[[T], None]) -> None:
        put(await work())

    (value,) = stream(put_result)
    return value
