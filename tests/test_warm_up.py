"""Warm-ups on a device that loads what it runs at the first call, and plans anew for a prompt of another length: on an
H100 the first prompt of a length took 74 ms to read and the next of that length 14; for a draft 59 and 3."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from specbench.acceptance.loop import Generation
from specbench.backends.base import Item, Unit
from specbench.backends.local.session import LocalSession
from specbench.config import RunConfig
from specbench.errors import EngineError
from specbench.records import Arm, Prompt, Round, Times
from specbench.run.losses import Losses
from specbench.run.session import Measurement
from specbench.run_record import Provenance, RunRecord
from specbench.store import StoredRun

FIRST_S, LATER_S = 0.030, 0.001
ARMS = (Arm("baseline"), Arm("speculative", "d", 1), Arm("speculative", "d", 4))


class FakeEngine:
    """Spends `FIRST_S` outside the models the first time an arm runs, and `LATER_S` from then on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seen: set[Any] = set()

    def warm(self, ids: Any, widths: Any) -> None: ...

    def start(self, prompts: Any, arm: Arm, **_: Any) -> Any:
        return SimpleNamespace(finish=lambda: [self._generated(prompts[0], arm)])

    def _generated(self, ids: Any, arm: Arm) -> Generation:
        other_s = self._spend(arm)
        prefill_s, draft_s = self._spend((None, len(ids))), self._spend((arm.draft, len(ids))) if arm.draft else 0.0
        total_s = prefill_s + draft_s + other_s
        return Generation([1, 2], [Round(1, 0)], "length", Times(prefill_s, draft_s, 0.0, 0.0, other_s, total_s))

    def _spend(self, what: Any) -> float:
        known = what in self.seen or self.device == "cpu"
        self.seen.add(what)
        return LATER_S if known else FIRST_S


def measurement_of(engine: Any, tmp_path: Path) -> tuple[Measurement, list[Any]]:
    config = RunConfig(target="t", draft=("d",), gamma=(1, 4), temperature=1.0, slice_tokens=0)
    kept: list[Any] = []
    run = RunRecord(
        status="started", command="measure", config=config, provenance=Provenance("fake"), trials_planned=0, probe=()
    )
    writer: Any = SimpleNamespace(append=kept.append, folder=tmp_path, run=run)
    observer: Any = SimpleNamespace(**dict.fromkeys(("trial", "begin", "left", "say"), lambda *_: None))
    session = LocalSession(engine, config, tmp_path)
    stored = StoredRun(tmp_path, run, (), torn=False)
    losses = Losses(writer, (), None)
    return Measurement(session, config, writer, cast(Any, None), stored, losses, observer), kept


def unit(length: int) -> Unit:
    return Unit(f"p{length}", "0", None, (Item(Prompt(f"p{length}", (), "0"), [1] * length),))


@pytest.fixture(autouse=True)
def no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurement, "_scores", lambda *_: None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_loaded_before_the_warm_ups_that_are_kept(device, tmp_path):
    measurement, kept = measurement_of(FakeEngine(device), tmp_path)
    measurement.run([unit(3)], (1, 4), None)
    warm = [trial for trial in kept if trial.warmup]
    assert [trial.arm for trial in warm] == [ARMS[0], Arm("baseline-again"), *ARMS[1:]]
    assert {trial.times.other_s for trial in warm} == {LATER_S}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_arm_pays_for_a_new_length(device, tmp_path):
    measurement, kept = measurement_of(FakeEngine(device), tmp_path)
    measurement.run([unit(3), unit(7), unit(8)], (1, 4), None)
    timed = [trial for trial in kept if not trial.warmup]
    assert len(timed) == 3 * 4 * RunConfig(target="t").repeats
    assert {trial.times.prefill_s for trial in timed} == {LATER_S}
    assert {trial.times.draft_prefill_s for trial in timed if trial.arm.draft} == {LATER_S}


def test_a_unit_that_is_done_is_not_read_again(tmp_path):
    engine = FakeEngine("cuda")
    session = LocalSession(cast(Any, engine), RunConfig(target="t", draft=("d",)), tmp_path)
    with session.block([unit(9)], ()):
        pass
    assert not engine.seen


def test_a_run_whose_prompts_were_all_lost_before_says_so(tmp_path):
    measurement, _ = measurement_of(FakeEngine("cpu"), tmp_path)
    measurement._losses.ids = {"p3"}
    with pytest.raises(EngineError, match="Not a single prompt was measured"):
        measurement.run([unit(3)], (1, 4), None)
