"""Closed and open loops: who is asked when, and that the load is what it is called."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from specbench.backends.server.traffic import drive
from specbench.records import Load


class Scene:
    """A fake server on which every request takes `seconds[job]`; remembers how many ran at once."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds = seconds
        self.counted: list[int] = []
        self.due: dict[int, float] = {}
        self.filled = 0
        self.open = 0
        self.seen: dict[int, list[int]] = {}

    async def _ask(self, job: int, counted: bool) -> None:
        self.open += 1
        try:
            for _ in range(20):
                if counted:
                    self.seen.setdefault(job, []).append(self.open)
                await asyncio.sleep(self.seconds[job] / 20)
        finally:
            self.open -= 1

    async def send(self, job: int, due_s: float) -> None:
        self.due[job] = due_s
        await self._ask(job, counted=True)
        self.counted.append(job)

    async def fill(self, job: int) -> None:
        self.filled += 1
        await self._ask(job, counted=False)


def drove(scene: Scene, load: Load, *, jobs: int | None = None, seed: str = "s") -> Scene:
    every = list(scene.seconds)[:jobs]
    asyncio.run(drive(every, load, send=scene.send, fill=scene.fill, seed=seed))
    return scene


def test_one_at_a_time_keeps_the_order():
    scene = drove(Scene({0: 0.02, 1: 0.0, 2: 0.01}), Load(1))
    assert scene.counted == [0, 1, 2]
    assert {most for counts in scene.seen.values() for most in counts} == {1}
    assert scene.filled == 0


def test_the_load_holds_until_the_last_counted_answer():
    scene = drove(Scene({0: 0.02, 1: 0.02, 2: 0.02, 3: 0.3}), Load(3))
    assert sorted(scene.counted) == [0, 1, 2, 3]
    # All of the slow last request but its very start and end: without fillers it would have run alone.
    slow = scene.seen[3][1:-1]
    assert min(slow) >= 2, slow
    assert sum(count == 3 for count in slow) > 0.7 * len(slow)
    assert scene.filled >= 2
    assert scene.open == 0


def test_more_clients_than_prompts():
    scene = drove(Scene({0: 0.05, 1: 0.05}), Load(4))
    assert sorted(scene.counted) == [0, 1]
    assert max(max(counts) for counts in scene.seen.values()) == 4


def test_arrivals_at_random_do_not_wait_for_answers():
    scene = drove(Scene(dict.fromkeys(range(20), 0.2)), Load(1, rate=100.0))
    assert len(scene.counted) == 20
    assert max(max(counts) for counts in scene.seen.values()) > 5  # a closed loop of one would have had one
    assert scene.filled == 0


def test_arrivals_are_the_same_in_every_arm_and_have_the_rate():
    gaps = []
    for _ in range(2):
        scene = drove(Scene(dict.fromkeys(range(200), 0.0)), Load(1, rate=1000.0), seed="same")
        due = list(scene.due.values())
        gaps.append([after - before for before, after in pairwise(due)])
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-6)
    assert sum(gaps[0]) / len(gaps[0]) == pytest.approx(1 / 1000, rel=0.3)


@pytest.mark.parametrize("load", [Load(1), Load(3), Load(1, rate=500.0)])
def test_one_failure_ends_it_with_that_failure(load):
    scene = Scene(dict.fromkeys(range(6), 0.01))

    async def send(job: int, due_s: float) -> None:
        if job == 3:
            raise KeyError("planted")
        await scene.send(job, due_s)

    with pytest.raises(KeyError, match="planted"):
        asyncio.run(drive(list(range(6)), load, send=send, fill=scene.fill, seed="s"))
    assert scene.open == 0
