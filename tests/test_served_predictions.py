"""What a probe of rounds and a replay predict of a server: planted costs and acceptance against planted trials."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from fake_served import LIMIT, SPEC, FakeServer, fake_served, turn_by_turn

from specbench.acceptance.positions import PositionWriter
from specbench.acceptance.replay import as_text
from specbench.acceptance.scores import Scores
from specbench.analysis.probed import probed
from specbench.analysis.summarise import summarise
from specbench.cost.model import decoding_seconds
from specbench.cost.stored import served_costs
from specbench.errors import ConfigError, StoreError
from specbench.records import CostPoint
from specbench.run.task import task_of
from specbench.run_record import ModelFacts
from specbench.store import RunWriter, StoredRun, read_run

SERVER = FakeServer(alpha=0.7, noise=0.0, slower={1: 1.0, 4: 1.5}, spec_slower={1: 1.0, 4: 3.0}, read_s=0.03)
PROMPTS = 24


def points(*, wide: float = 1.0, clients=(1, 4), gammas=range(9)) -> tuple[CostPoint, ...]:
    """Rounds as the fake server has them: the same at any gamma."""
    found = []
    for count in clients:
        for gamma in gammas:
            seconds = SERVER.round_s * SERVER.spec_slower[count] if gamma else SERVER.step_s * SERVER.slower[count]
            found.append(CostPoint(SPEC, 80, gamma + 1, seconds, seconds / wide, seconds * wide, 9, count, "round"))
    read_s = SERVER.read_s + SERVER.step_s  # up to the first token of an idle server
    found.append(CostPoint(None, 0, 50, read_s, read_s / wide, read_s * wide, 9))
    return (*found, CostPoint(SPEC, 0, 50, 1e-6, 1e-6, 1e-6, 9))


def planted(folder, probe: tuple[CostPoint, ...], server: FakeServer = SERVER, **changes) -> StoredRun:
    """A run with loads 1 and 4, the target's texts scored and the rounds of `probe`."""
    stored = fake_served(folder, server, gammas=(2, 4), concurrency=(1, 4), prompts=PROMPTS, **changes)
    rng = random.Random(0)
    with PositionWriter(stored.folder) as writer:
        for p in range(PROMPTS):
            accepts = np.array([rng.random() < SERVER.alpha for _ in range(LIMIT)][: LIMIT - 1], dtype=np.float32)
            nothing = np.zeros_like(accepts)
            scores = Scores(accepts, nothing, nothing + 1, nothing, nothing, nothing > 0)
            category = "code" if p % 2 else "chat"
            writer.append(as_text(scores, prompt_id=f"p{p}", category=category, draft=SPEC, repeat=0, limit=LIMIT))
    with RunWriter(stored.folder, stored.run) as writer:
        writer.update(probe=probe, probe_from="probe")
    return read_run(stored.folder)


def test_every_gamma_at_every_load_is_predicted_as_it_is_measured(tmp_path):
    summary = summarise(planted(tmp_path / "run", points()))
    (draft,) = summary.drafts
    # The last round of a text has no room for a draft, for which a replay counts a step and this fake a round.
    for row in draft.gammas:
        assert row.predicted_speedup == pytest.approx(row.speedup, rel=0.01)
        assert row.replay_tokens_per_round == pytest.approx(row.tokens_per_round, rel=1e-3)
    for load in summary.loads:
        assert load.predicted_speedup == pytest.approx(load.speedup, rel=0.02)
        assert load.predicted_speedup_low <= load.predicted_speedup <= load.predicted_speedup_high
    assert {load.concurrency for load in summary.loads} == {1, 4}
    # Also what was not measured, from the same probe.
    assert [row.gamma for row in draft.predicted] == list(range(1, 9))
    assert [row.batch for row in draft.batches] == [1, 4] and min(row.gamma for row in draft.batches) > 4
    assert draft.batches[1].speedup < draft.batches[0].speedup


@pytest.mark.parametrize("tells", ["rounds", "totals", "drafts"])
def test_a_replay_is_held_against_the_rounds_that_the_server_told_and_no_others(tmp_path, tells):
    stored = planted(tmp_path / "run", (), replace(SERVER, tells=tells))
    if tells == "rounds":  # of one text it told nothing
        last = replace(stored.trials[-1], drafted=(), accepted=(), told=None)
        stored = replace(stored, trials=(*stored.trials[:-1], last))
    assert "replay-disagrees" not in [one.code for one in summarise(stored).warnings]
    if tells == "totals":
        more = [t.told and t.arm.gamma == 4 and replace(t.told, rounds=t.told.rounds + 3) for t in stored.trials]
        trials = tuple(replace(t, told=told or t.told) for t, told in zip(stored.trials, more, strict=True))
        (found,) = [one for one in summarise(replace(stored, trials=trials)).warnings if one.code == "replay-disagrees"]
        assert [(gap["gamma"], gap["prompts"]) for gap in found.values["gaps"]] == [(4, PROMPTS)]


@pytest.mark.parametrize("clients", [1, 2, 4])
def test_the_walk_from_end_to_end_is_the_walk_turn_by_turn(clients):
    rng = random.Random(clients)
    turn_s = {1: 0.010, 4: 0.024}
    for number in range(20):
        texts = rng.randint(clients, 15)
        turns = [64 if number % 2 else rng.randint(1, 64) for _ in range(texts)]
        read_s = [rng.choice((0.0, rng.random())) for _ in range(texts)]
        found = decoding_seconds(
            [range(texts)],
            clients,
            np.array(turns, dtype=float),
            {size: np.full(texts, seconds) for size, seconds in turn_s.items()},
            np.array(read_s),
        )
        assert found == pytest.approx(turn_by_turn(turns, clients, turn_s, read_s))


def test_what_a_prompt_of_another_takes_is_in_a_prediction(tmp_path):
    """Answers of one length are read together, those of many lengths wait for each other."""
    cheap = [replace(p, median_s=SERVER.step_s) if not p.context and p.model is None else p for p in points()]
    for probe, right in ((points(), True), (tuple(cheap), False)):
        load = summarise(planted(tmp_path / f"{right}", probe)).loads[-1]
        assert (abs(load.predicted_speedup / load.speedup - 1) < 0.02) is right


def test_the_interval_of_a_prediction_holds_what_is_uncertain_in_the_costs(tmp_path):
    widths = []
    for wide in (1.001, 1.1):
        load = summarise(planted(tmp_path / f"{wide}", points(wide=wide))).loads[0]
        widths.append(np.log(load.predicted_speedup_high / load.predicted_speedup_low))
    assert widths[1] > np.log(1.1) > widths[0]


def test_the_interval_of_a_prediction_holds_how_the_machine_moved_since_the_probe(tmp_path):
    """All costs 20 % higher then: the same speedup, and who knows whether all of them moved alike."""
    slower = [replace(p, **{k: 1.2 * getattr(p, k) for k in ("median_s", "low_s", "high_s")}) for p in points()]
    same, moved = (
        summarise(planted(tmp_path / name, tuple(probe))).loads[0]
        for name, probe in (("same", points()), ("moved", slower))
    )
    assert moved.predicted_speedup == pytest.approx(same.predicted_speedup)
    wide, narrow = (np.log(row.predicted_speedup_high / row.predicted_speedup_low) for row in (moved, same))
    assert wide > 2 * 1.9 * np.log(1.2) > 5 * narrow


@pytest.mark.full
def test_a_load_that_was_not_probed_has_no_prediction_and_one_that_was_only_probed_is_in_the_schedule(tmp_path):
    summary = summarise(planted(tmp_path / "one", points(clients=(1,))))
    assert [load.predicted_speedup is None for load in summary.loads] == [False, False, True, True]
    eight = (replace(p, batch=8) for p in points(clients=(1,)) if p.context)
    stored = planted(tmp_path / "two", (*points(clients=(1,), gammas=range(5)), *eight))
    steps = summarise(stored).drafts[0].schedule.steps
    assert [(step.concurrency, step.measured) for step in steps] == [(1, True), (4, True), (8, False)]


def probe_of(stored: StoredRun, probe: tuple[CostPoint, ...], folder, **changes) -> None:
    """The folder of a probe in the setting of the run."""
    folder.mkdir()
    record = replace(
        stored.run,
        command="probe",
        drafts={SPEC: ModelFacts(SPEC)},
        probe=probe,
        probe_from=None,
        revision=0,
        **changes,
    )
    with RunWriter(folder, record) as writer:
        writer.update(status="finished")


def test_costs_are_those_of_this_engine_these_drafts_and_these_gammas(tmp_path):
    stored = planted(tmp_path / "run", ())
    probe_of(stored, points(), tmp_path / "probe")
    costs = served_costs(tmp_path / "probe", stored.run)
    assert costs.points == points() and costs.source == str(tmp_path / "probe")
    rounds = probed(read_run(tmp_path / "probe")).rounds
    assert [(r.concurrency, r.gamma) for r in rounds] == [(c, g) for c in (1, 4) for g in range(1, 9)]
    assert rounds[0].steps == pytest.approx(SERVER.round_s / SERVER.step_s)
    engine = replace(stored.run.provenance, engine="another")
    probe_of(stored, points(), tmp_path / "engine", provenance=engine)
    config = stored.run.config
    probe_of(stored, points(), tmp_path / "narrow", config=replace(config, gamma=(2,)))
    probe_of(stored, points(), tmp_path / "busy", config=replace(config, concurrency=(4,)))
    for name, says in (
        ("engine", "engine another, not"),
        ("narrow", "no rounds at gamma 4 with 1 at once"),
        ("busy", "--gamma 1..4 --concurrency 1"),
        ("run", "holds no probe"),
    ):
        with pytest.raises(StoreError, match=says):
            served_costs(tmp_path / name, stored.run)


@pytest.mark.full
def test_a_look_up_that_found_little_is_named_and_not_predicted(tmp_path):
    stored = planted(tmp_path / "run", ())
    probe_of(stored, points(gammas=range(3)), tmp_path / "probe")
    costs = served_costs(tmp_path / "probe", stored.run)
    (caution,) = [one for one in costs.cautions if one.code == "rounds-not-probed"]
    assert "in the probe demo:draft drafted no more than 2: beyond that" in caution.message
    probe_of(stored, points(gammas=range(1)), tmp_path / "nothing")
    cautions = served_costs(tmp_path / "nothing", stored.run).cautions
    assert "in the probe demo:draft drafted nothing: beyond that" in " ".join(one.message for one in cautions)
    two, four = summarise(planted(tmp_path / "costed", costs.points)).drafts[0].gammas
    assert two.predicted_speedup is not None and four.predicted_speedup is None


def test_a_running_server_is_not_predicted_from_another(tmp_path):
    keys = {"server": "http://127.0.0.1:1", "spec_server": "http://127.0.0.1:2", "gamma": "2"}
    with pytest.raises(ConfigError, match="A running server is not predicted"):
        task_of("sweep", keys, costs=tmp_path)
