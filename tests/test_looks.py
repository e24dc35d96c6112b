"""A sweep that stops gammas on the way: real runs of tiny models, whose times are planted so that gamma decides."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_run import FakeDraft, fake_run, with_config, with_policy
from fake_summary import render_brief
from test_cli import call
from test_run import FakeObserver, config_for
from test_run import sweep as whole_sweep

from benchmarks.saving import as_swept
from specbench.acceptance.positions import read_positions
from specbench.analysis.compare import compared
from specbench.analysis.summarise import summarise
from specbench.backends.local.local import LocalEngine
from specbench.backends.local.session import LocalSession
from specbench.cost.plan import Costs
from specbench.records import CostPoint, Times
from specbench.report.dialect import said
from specbench.run import early_stopping
from specbench.run.plan import parts, plan_units
from specbench.run.session import run
from specbench.store import RunWriter, find_runs, read_run, trial_key

GAMMAS = (1, 2, 4, 8)
STEP_S, TOKEN_S, DRAFT_S = 0.02, 0.01, 0.01


@pytest.fixture(autouse=True)
def planted_times(monkeypatch):
    """Every further token of a pass costs half a step, and so does drafting it: more than it gives."""
    honest = LocalSession._answered

    def planted(self, job, arm, *found):
        answer = honest(self, job, arm, *found)
        trial = answer.trial
        drafted = trial.drafted if arm.draft else (0,) * (trial.output_tokens - len(answer.output))
        draft_s, verify_s = DRAFT_S * sum(drafted), sum(STEP_S + TOKEN_S * n for n in drafted)
        times = Times(0.001, 0.001, draft_s, verify_s, 0.0, 0.002 + draft_s + verify_s)
        return replace(answer, trial=replace(trial, times=times))

    def probe(self, ids, plan):
        costs = {(None, n): STEP_S + TOKEN_S * (n - 1) for n in range(1, max(GAMMAS) + 2)}
        for draft in self.drafts.values():
            costs |= {(draft.spec.reader, n): DRAFT_S for n in (1, 2)}
        costs = {key: CostPoint(key[0], 60, key[1], s, s, s, 9) for key, s in costs.items()}
        return Costs(tuple(costs.values()))

    monkeypatch.setattr(LocalSession, "_answered", planted)
    monkeypatch.setattr(LocalEngine, "probe", probe)


def sweep(lab, out, **flags):
    """Of short texts: the times are planted, however many tokens there are."""
    return whole_sweep(lab, out, **{"max_new_tokens": 8} | flags)


def counts(stored):
    return Counter(trial.arm.gamma for trial in stored.trials if not trial.warmup and trial.arm.gamma)


def test_a_gamma_that_is_ruled_out_is_measured_no_further(lab, tmp_path):
    observer = FakeObserver()
    stored = sweep(lab, tmp_path, gammas=GAMMAS, observer=observer)
    assert counts(stored) == {1: 12, 2: 12, 4: 10, 8: 10}
    assert stored.run.looks == (10,)
    assert [(one.gamma, one.prompts, one.planned) for one in stored.run.ruled_out] == [(4, 10, 12), (8, 10, 12)]
    assert [line for line in observer.lines if "is stopped after 10 of 12" in line]
    assert stored.status == "finished" and stored.run.trials_planned == 12 * 6
    assert observer.begun == (72, 0)
    # the whole run says what it would have stopped: the same, for the same reason
    whole = sweep(lab, tmp_path, gammas=GAMMAS, all_gammas=True)
    assert counts(whole) == dict.fromkeys(GAMMAS, 12)
    assert whole.run.looks == ()
    walked = as_swept(whole, read_positions(whole.folder))
    assert walked.run.ruled_out == stored.run.ruled_out
    assert counts(walked) == counts(stored)
    assert summarise(whole).verdict == summarise(stored).verdict == "NO-GO"


@pytest.mark.full
def test_every_reader_of_the_run_tells(lab, tmp_path):
    stored = sweep(lab, tmp_path, gammas=GAMMAS)
    summary = summarise(stored)
    (draft,) = summary.drafts
    assert [row.gamma for row in draft.gammas] == [1, 2] and {row.prompts for row in draft.gammas} == {12}
    assert [(row.gamma, row.prompts, row.planned) for row in draft.stopped] == [(4, 10, 12), (8, 10, 12)]
    assert summary.trials_spared == 4
    assert [row.gamma for row in draft.predicted] == list(range(1, 9))
    assert not [warning for warning in summary.warnings if warning.code in ("unfinished-run", "few-prompts")]
    page = render_brief(stored, summary)
    assert "- Gamma 8: stopped after 10 of 12 prompts, " in page
    assert "finished, 68 of 72 trials; 4 need not be run" in page
    shown = call("show", stored.folder)
    assert "gamma 8: stopped after 10 of 12 prompts" in " ".join(shown.stdout.split())
    assert "Ran 68 of 72 trials; the rest were ruled out." in " ".join(shown.stdout.split())
    found = json.loads(call("show", stored.folder, "--json").stdout)
    assert [row["gamma"] for row in found["drafts"][0]["stopped"]] == [4, 8]
    assert call("plan", stored.folder).exit_code == 0
    # a stopped gamma is compared no more than it is chosen
    assert [row.gamma for row in compared(stored, stored).drafts[0].gammas] == [1, 2]


@pytest.mark.full
def test_a_run_that_is_cut_anywhere_stops_the_same(lab, tmp_path):
    whole = sweep(lab, tmp_path / "whole", gammas=GAMMAS)
    for cut in (57, 60, 61, 63):  # before the look, right before and after it, and in the next prompt
        out = tmp_path / str(cut)
        with pytest.raises(KeyboardInterrupt):
            sweep(lab, out, gammas=GAMMAS, observer=FakeObserver(interrupt_after=cut))
        observer = FakeObserver()
        again = sweep(lab, out, gammas=GAMMAS, observer=observer)
        assert len(find_runs(out)) == 1
        assert again.run.ruled_out == whole.run.ruled_out and again.run.looks == (10,)
        assert {trial_key(t) for t in again.trials if not t.warmup} == {
            trial_key(t) for t in whole.trials if not t.warmup
        }
        assert observer.begun == (72 if cut <= 60 else 68, cut)
        resumed = again.trials[6 + cut :]
        warmed = {trial.arm.gamma for trial in resumed if trial.warmup}
        assert warmed == ({None, 1, 2, 4, 8} if cut <= 60 else {None, 1, 2})


@pytest.mark.full
def test_every_look_adds_to_what_was_ruled_out(lab, tmp_path, monkeypatch):
    """Two looks, of which each rules out one gamma."""
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"id": f"p{n}", "prompt": f"Say {n}."}) + "\n" for n in range(22)))
    honest, at = early_stopping.look, []

    def one_at_a_time(stored, texts, planned):
        at.append(len({trial.prompt_id for trial in stored.trials if not trial.warmup}))
        return honest(stored, texts, planned)[-1:]

    monkeypatch.setattr(early_stopping, "look", one_at_a_time)
    stored = sweep(lab, tmp_path, gammas=GAMMAS, workload=str(many), max_new_tokens=8)
    assert at == [10, 20] and stored.run.looks == (10, 20)
    assert [(one.gamma, one.prompts) for one in stored.run.ruled_out] == [(8, 10), (4, 20)]
    assert counts(stored) == {1: 22, 2: 22, 4: 20, 8: 10}
    assert summarise(stored).trials_spared == 2 + 12


@pytest.mark.full
def test_a_look_that_a_kill_lost_is_taken_again(lab, tmp_path, monkeypatch):
    honest = RunWriter.update

    def killed(self, **changes):
        if "looks" in changes:
            raise KeyboardInterrupt
        honest(self, **changes)

    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(lab, tmp_path, gammas=GAMMAS)
    (folder,) = find_runs(tmp_path)
    assert read_run(folder).run.looks == ()
    again = sweep(lab, tmp_path, gammas=GAMMAS)
    assert again.folder == folder
    assert counts(again) == {1: 12, 2: 12, 4: 10, 8: 10}


@pytest.mark.full
def test_the_other_setting_does_not_continue_it(lab, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, gammas=GAMMAS, observer=FakeObserver(interrupt_after=63))
    observer = FakeObserver()
    sweep(lab, tmp_path, gammas=GAMMAS, all_gammas=True, observer=observer)
    assert len(find_runs(tmp_path)) == 2
    assert [line for line in observer.lines if "all_gammas: False -> True" in line]


@pytest.mark.full
def test_few_prompts_few_gammas_and_measure_look_at_nothing(lab, tmp_path):
    assert counts(sweep(lab, tmp_path / "few", gammas=GAMMAS, limit=8)) == dict.fromkeys(GAMMAS, 8)
    assert counts(sweep(lab, tmp_path / "two", gammas=(1, 8))) == {1: 12, 8: 12}
    config = config_for(lab, tmp_path / "measure")
    assert counts(read_run(run(config, "measure", GAMMAS, FakeObserver()))) == dict.fromkeys(GAMMAS, 12)


@pytest.mark.full
def test_what_is_left_is_told_by_arm(lab, tmp_path):
    told = []

    class Listener(FakeObserver):
        def left(self, trials, units):
            told.append((sum(trials.values()), units, len(trials)))

    sweep(lab, tmp_path, gammas=GAMMAS, observer=Listener())
    assert told[0] == (72, 12, 6) and told[9] == (18, 3, 6)
    assert told[10:] == [(8, 2, 4), (4, 1, 4)]


@pytest.mark.full
def test_batches_are_looked_at_as_prompts_are(lab, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"id": f"p{n}", "prompt": f"Say {n}."}) + "\n" for n in range(24)))
    stored = sweep(
        lab, tmp_path, gammas=GAMMAS, workload=str(many), batch_size=2, probe_batch_sizes="1", max_new_tokens=6
    )
    # the planted probe is of batch 1: without a prediction nothing is ruled out
    assert stored.run.looks == (10,) and stored.run.ruled_out == ()
    assert counts(stored) == dict.fromkeys(GAMMAS, 12)


def test_the_first_prompts_are_of_every_category():
    from specbench.config import RunConfig

    names = ["a"] * 40 + ["b"] * 20 + ["c"] * 20
    encoded = [
        SimpleNamespace(prompt=SimpleNamespace(id=str(n), sha256=str(n), category=c)) for n, c in enumerate(names)
    ]
    for seed in range(20):
        order = [unit.category for unit in plan_units(encoded, RunConfig(seed=seed))[0]]
        for n in (8, 16, 40, 60):
            found = Counter(order[:n])
            assert abs(found["a"] - n / 2) <= 1 and abs(found["b"] - n / 4) <= 1 and abs(found["c"] - n / 4) <= 1
        ids = [unit.id for unit in plan_units(encoded, RunConfig(seed=seed))[0]]
        assert sorted(ids) == sorted(item.prompt.id for item in encoded) and ids != sorted(ids)


def test_under_a_time_budget_a_sure_verdict_ends_the_run(lab, tmp_path):
    observer = FakeObserver()
    stored = sweep(lab, tmp_path, gammas=(4, 8), time_budget_s=1e6, observer=observer)
    assert counts(stored) == {4: 10, 8: 10}
    assert stored.status == "finished" and "Stopped after 10 of 12: NO-GO is sure" in observer.lines
    assert (stored.run.ended_early.why, stored.run.spared) == ("NO-GO", 2 * 4)
    found = summarise(stored)
    assert found.verdict == "NO-GO"
    assert [said(warning) for warning in found.warnings if warning.code == "time-budget"] == [
        "the run ended after 10 of 12 prompts, since NO-GO was sure by then"
    ]


def test_a_verdict_that_is_not_sure_goes_on_to_the_last_prompt(lab, tmp_path):
    # between the two gammas lies the minimum that is asked for
    once = sweep(lab, tmp_path / "a", gammas=(1, 2), min_speedup=1.1)
    near = summarise(once).drafts[0].gammas[0].speedup
    stored = sweep(lab, tmp_path / "b", gammas=(1, 2), time_budget_s=1e6, min_speedup=near)
    assert counts(stored) == {1: 12, 2: 12}
    assert stored.run.ended_early is None


def test_a_mix_of_which_a_category_is_not_measured_yet_is_no_verdict_and_no_error(tmp_path):
    stored = with_config(
        fake_run(tmp_path / "r", {"d": FakeDraft({"code": 0.9})}, prompts={"code": 20}), time_budget_s=9.0
    )
    for mix, ends in ((None, "GO"), ({"code": 0.9, "rare": 0.1}, None)):
        looked = with_policy(stored, mix=mix)
        writer = SimpleNamespace(run=looked.run, update=lambda **changes: None)
        budget = early_stopping.TimeBudget(
            writer, SimpleNamespace(at=lambda units, found=looked: found), 40, lambda: 0.0
        )
        found = budget.ends(20)
        assert (found and found.why) == ends


def test_a_budget_looks_at_the_first_end_of_a_block_from_each_size_on(tmp_path, monkeypatch):
    """Servers get prompts block by block: ends at 8, 15, 23, .. never are 10, 20 or 40."""
    stored = with_config(
        fake_run(tmp_path / "r", {"d": FakeDraft({"code": 0.9})}, prompts={"code": 20}), time_budget_s=9.0
    )
    writer = SimpleNamespace(run=stored.run, update=lambda **changes: None)
    budget = early_stopping.TimeBudget(writer, SimpleNamespace(), 100, lambda: 0.0)
    looked: list[int] = []
    monkeypatch.setattr(budget, "_verdict", looked.append)
    done = 0
    for block in parts(range(100), 8):
        done += len(block)
        assert budget.ends(done) is None
    ends = [8, 15, 23, 31, 38, 46, 54, 62, 69, 77, 85, 92]
    assert looked == [next(end for end in ends if end >= size) for size in (10, 20, 40, 80)]


def test_when_the_time_is_up_the_run_ends_with_its_prompt_and_the_same_command_goes_on(lab, tmp_path):
    stored = sweep(lab, tmp_path, gammas=(1, 2), time_budget_s=1e-9)
    assert (stored.run.ended_early.why, stored.run.ended_early.prompts) == ("time", 1)
    assert stored.status == "interrupted"
    assert counts(stored) == {1: 1, 2: 1}
    again = sweep(lab, tmp_path, gammas=(1, 2))
    assert again.folder == stored.folder and again.status == "finished"
    assert again.run.ended_early is None
    assert counts(again) == {1: 12, 2: 12}
