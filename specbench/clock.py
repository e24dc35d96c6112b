"""Time spent by name, from one monotonic clock, with the device drained at span edges only.

A GPU runs behind the Python that feeds it, so a span is only true if the device is idle at both ends; draining
it more often than that would slow down what is timed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable


def device_sync(device: str) -> Callable[[], None]:
    """The call that waits until `device` has done all its work; does nothing on a CPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.synchronize
    if device.startswith("mps"):
        import torch

        return torch.mps.synchronize
    return lambda: None


class Stopwatch:
    """`lap(name)` charges the time since the previous lap to `name`. `now` is in nanoseconds."""

    def __init__(self, sync: Callable[[], None] = lambda: None, now: Callable[[], int] = time.perf_counter_ns) -> None:
        self._sync = sync
        self._now = now
        self._spent_ns: defaultdict[str, int] = defaultdict(int)
        sync()
        self._started_ns = self._last_ns = now()

    def lap(self, name: str) -> None:
        """End the span that began at the last lap (or at the start) and charge it to `name`."""
        self._sync()
        now_ns = self._now()
        self._spent_ns[name] += now_ns - self._last_ns
        self._last_ns = now_ns

    def seconds(self, name: str) -> float:
        """Seconds charged to `name` so far; 0.0 where nothing was."""
        return self._spent_ns[name] / 1e9

    @property
    def total_s(self) -> float:
        """Seconds from the start to the last lap: the sum of all names, by construction."""
        return (self._last_ns - self._started_ns) / 1e9
