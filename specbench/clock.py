"""Time spent by name, from one clock.

A GPU runs behind the Python that feeds it. So either the device is drained at both ends of a span, and never in
between, or the device itself notes when it came to each end: then nothing waits, and what is timed runs as it would.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any


def device_sync(device: str) -> Callable[[], None]:
    """The call that waits until `device` has done all its work; does nothing on a CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.synchronize
    if device.startswith("mps"):
        import torch

        return torch.mps.synchronize
    return lambda: None


class Clock(ABC):
    """Charges time to names."""

    @abstractmethod
    def lap(self, name: str) -> None:
        """End the span that began at the last lap (or at the start) and charge it to `name`."""

    @abstractmethod
    def resume(self) -> None:
        """Begin a span: the time since the last lap belonged to somebody else, and is charged to nothing."""

    @abstractmethod
    def _spent(self) -> Mapping[str, float]:
        """Seconds by name."""

    def seconds(self, name: str) -> float:
        return self._spent().get(name, 0.0)

    @property
    def total_s(self) -> float:
        return sum(self._spent().values())


class Stopwatch(Clock):
    """By the processor's own clock. `now` is in nanoseconds."""

    def __init__(self, sync: Callable[[], None] = lambda: None, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self._sync = sync
        self._now = now
        self._spent_ns: defaultdict[str, int] = defaultdict(int)
        self._last_ns = 0
        self.resume()

    def lap(self, name: str) -> None:
        self._sync()
        now_ns = self._now()
        self._spent_ns[name] += now_ns - self._last_ns
        self._last_ns = now_ns

    def resume(self) -> None:
        self._sync()
        self._last_ns = self._now()

    def _spent(self) -> Mapping[str, float]:
        return {name: spent_ns / 1e9 for name, spent_ns in self._spent_ns.items()}


class EventStopwatch(Clock):
    """By marks in the device's queue, as CUDA events are. `event` makes one, with `record()`, `synchronize()` and
    `elapsed_time(later)` in milliseconds. A mark behind an empty queue is passed at once, so time that only Python took
    is in its span as well. Reading a time waits for the last mark."""

    def __init__(self, event: Callable[[], Any]) -> None:
        self._event = event
        self._last = self._mark()
        self._marks: list[tuple[str | None, Any]] = []
        self._spent_s: defaultdict[str, float] = defaultdict(float)

    def lap(self, name: str) -> None:
        self._marks.append((name, self._mark()))

    def resume(self) -> None:
        self._marks.append((None, self._mark()))

    def _mark(self) -> Any:
        mark = self._event()
        mark.record()
        return mark

    def _spent(self) -> Mapping[str, float]:
        """Each mark is added up once."""
        if self._marks:
            self._marks[-1][1].synchronize()
        for name, mark in self._marks:
            if name is not None:
                self._spent_s[name] += self._last.elapsed_time(mark) / 1e3
            self._last = mark
        self._marks.clear()
        return self._spent_s
