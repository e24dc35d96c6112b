"""Warm-ups on a device that loads what it runs at the first call: predictions take what a round spends outside the
models from them, so the first call must not be among them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from specbench.acceptance.loop import Generation
from specbench.bench import Bench
from specbench.config import RunConfig
from specbench.records import Arm, Round, Times

FIRST_S, LATER_S = 0.030, 0.001
ARMS = (Arm("baseline"), Arm("speculative", "d", 1), Arm("speculative", "d", 4))


class FakeEngine:
    """Spends `FIRST_S` outside the models the first time an arm runs, and `LATER_S` from then on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seen: set[Arm] = set()

    def warm(self, ids: Any, widths: Any) -> None: ...

    def generate(self, ids: Any, arm: Arm, *, max_new_tokens: int, seed_text: str) -> Generation:
        other_s = LATER_S if arm in self.seen or self.device == "cpu" else FIRST_S
        self.seen.add(arm)
        return Generation([1, 2], [Round(1, 0)], "length", Times(0.1, 0.0, 0.0, 0.1, other_s, 0.2 + other_s))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_loaded_before_the_warm_ups_that_are_kept(device):
    kept: list[Any] = []
    engine: Any = FakeEngine(device)
    writer: Any = SimpleNamespace(append=kept.append)
    nothing: Any = None
    bench = Bench(engine, RunConfig(target="t", draft=("d",)), writer, nothing, nothing, {}, 0)
    one = SimpleNamespace(ids=[1, 2, 3], prompt=SimpleNamespace(id="p"))
    item: Any = SimpleNamespace(id="p", sha256="0", category=None, items=[one])
    bench.warm_up(item, ARMS)
    assert [trial.arm for trial in kept] == list(ARMS) and all(trial.warmup for trial in kept)
    assert {trial.times.other_s for trial in kept} == {LATER_S}
