"""Warm-ups on a device that loads what it runs at the first call, and plans anew for a prompt of another length: on an
H100 the first prompt of a length took 74 ms to read and the next of that length 14; for a draft 59 and 3."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from specbench.acceptance.loop import Generation
from specbench.config import RunConfig
from specbench.records import Arm, Round, Times
from specbench.run.bench import Bench
from specbench.run.session import _whole

FIRST_S, LATER_S = 0.030, 0.001
ARMS = (Arm("baseline"), Arm("speculative", "d", 1), Arm("speculative", "d", 4))


class FakeEngine:
    """Spends `FIRST_S` outside the models the first time an arm runs, and `LATER_S` from then on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seen: set[Any] = set()

    def warm(self, ids: Any, widths: Any) -> None: ...

    def generate(self, ids: Any, arm: Arm, *, max_new_tokens: int, seed_text: str) -> Generation:
        other_s = self._spend(arm)
        prefill_s, draft_s = self._spend((None, len(ids))), self._spend((arm.draft, len(ids))) if arm.draft else 0.0
        total_s = prefill_s + draft_s + other_s
        return Generation([1, 2], [Round(1, 0)], "length", Times(prefill_s, draft_s, 0.0, 0.0, other_s, total_s))

    def _spend(self, what: Any) -> float:
        known = what in self.seen or self.device == "cpu"
        self.seen.add(what)
        return LATER_S if known else FIRST_S


def bench_of(engine: Any, kept: list[Any]) -> Bench:
    writer: Any = SimpleNamespace(append=kept.append)
    observer: Any = SimpleNamespace(trial=lambda _: None)
    nothing: Any = None
    return Bench(engine, RunConfig(target="t", draft=("d",)), writer, nothing, observer, Counter(), 0)


def unit(length: int) -> Any:
    one = SimpleNamespace(ids=[1] * length, prompt=SimpleNamespace(id="p"))
    return SimpleNamespace(id="p", sha256="0", category=None, items=[one])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_loaded_before_the_warm_ups_that_are_kept(device):
    kept: list[Any] = []
    bench_of(FakeEngine(device), kept).warm_up(unit(3), ARMS)
    assert [trial.arm for trial in kept] == list(ARMS) and all(trial.warmup for trial in kept)
    assert {trial.times.other_s for trial in kept} == {LATER_S}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_arm_pays_for_a_new_length(device):
    kept: list[Any] = []
    bench, config = bench_of(FakeEngine(device), kept), RunConfig(target="t", draft=("d",))
    bench.close = lambda *_: None  # type: ignore[method-assign]
    bench.warm_up(unit(3), ARMS)
    for length in (7, 8):
        assert _whole(bench, unit(length), ARMS, set(), set())
    timed = [trial for trial in kept if not trial.warmup]
    assert len(timed) == 2 * len(ARMS) * config.repeats
    assert {trial.times.prefill_s for trial in timed} == {LATER_S}
    assert {trial.times.draft_prefill_s for trial in timed if trial.arm.draft} == {LATER_S}


def test_a_unit_that_is_done_is_not_read_again():
    engine = FakeEngine("cuda")
    bench = bench_of(engine, [])
    bench.close = lambda *_: None  # type: ignore[method-assign]
    _whole(bench, unit(9), ARMS, {("p", arm, 0) for arm in ARMS}, set())
    assert not engine.seen
