"""How late the client itself is: a read that waits for us looks like a slow server."""

from __future__ import annotations

import asyncio
import time
from typing import Self

import numpy as np

from specbench.records import ClientLag

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
