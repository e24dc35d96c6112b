"""Spans by draining the device and by marks in its queue: the same story, told with and without waiting."""

from __future__ import annotations

import pytest

from specbench.clock import EventStopwatch, Stopwatch

MS = 1_000_000


class FakeQueue:
    """A device that runs behind the program: `launch` returns at once, the work is done later. Times in nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = self.done_ns = self.waits = 0

    def now(self) -> int:
        return self.now_ns

    def think(self, ns: int) -> None:
        self.now_ns += ns

    def launch(self, ns: int) -> None:
        self.done_ns = max(self.done_ns, self.now_ns) + ns

    def wait(self) -> None:
        self.waits += 1
        self.now_ns = max(self.now_ns, self.done_ns)

    def event(self) -> FakeEvent:
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, queue: FakeQueue) -> None:
        self.queue = queue

    def record(self) -> None:
        self.at_ns = max(self.queue.now_ns, self.queue.done_ns)

    def synchronize(self) -> None:
        self.queue.wait()

    def elapsed_time(self, later: FakeEvent) -> float:
        return (later.at_ns - self.at_ns) / 1e6


def rounds(queue: FakeQueue, watch: Stopwatch | EventStopwatch) -> None:
    """Three rounds: four short passes, one long one, and a look at the result, which waits for both."""
    for _ in range(3):
        for _ in range(4):
            queue.launch(2 * MS)
        watch.lap("draft")
        queue.launch(20 * MS)
        watch.lap("verify")
        queue.wait()
        queue.think(1 * MS)
        watch.lap("other")


def test_both_ways_to_the_same_spans():
    drained, marked = FakeQueue(), FakeQueue()
    one, other = Stopwatch(drained.wait, drained.now), EventStopwatch(marked.event)
    rounds(drained, one)
    rounds(marked, other)
    assert marked.waits == 3 < drained.waits  # only the looks
    for watch in (one, other):
        spans = [watch.seconds(name) for name in ("draft", "verify", "other")]
        assert spans == pytest.approx([0.024, 0.060, 0.003])
        assert watch.total_s == pytest.approx(sum(spans)) and watch.seconds("nothing") == 0.0


def test_time_that_only_python_took_is_in_its_span():
    queue = FakeQueue()
    watch = EventStopwatch(queue.event)
    queue.think(7 * MS)  # a look-up, say
    watch.lap("draft")
    queue.launch(5 * MS)
    watch.lap("verify")
    assert watch.seconds("draft") == pytest.approx(0.007) and watch.seconds("verify") == pytest.approx(0.005)
