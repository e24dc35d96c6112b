"""Servers are asked in a thread of its own: whatever happens on one side, the other hears of it and nothing runs on."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import closing
from functools import partial

import pytest

from specbench.backends.server.traffic import call, stream


async def numbers(ended, put):
    """Puts 0, 1, 2, .. until it is stopped."""
    try:
        for number in range(1000):
            put(number)
            await asyncio.sleep(0.005)
    finally:
        ended.append(threading.current_thread().name)


def test_values_come_while_the_work_goes_on():
    ended = []
    with closing(stream(partial(numbers, ended))) as found:
        assert [next(found), next(found)] == [0, 1] and not ended
    assert ended == ["servers_0"]


def test_an_error_of_the_work_is_raised_after_what_it_put():
    async def work(put):
        put(1)
        raise KeyError("two")

    found = stream(work)
    assert next(found) == 1
    with pytest.raises(KeyError, match="two"):
        next(found)


def test_a_result_from_within_a_running_loop():
    async def cell():
        return call(partial(asyncio.sleep, 0.001, "inner"))

    assert asyncio.run(cell()) == "inner"


def test_an_interrupt_ends_the_work_in_order():
    ended = []
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    before_s = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        for _ in stream(partial(numbers, ended)):
            pass
    assert ended == ["servers_0"] and time.perf_counter() - before_s < 2


def test_whoever_leaves_at_once_starts_nothing():
    ended = []
    with closing(stream(partial(numbers, ended))) as found:
        next(found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("servers")]
