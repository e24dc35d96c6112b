"""Runs in batches, and runs with every kind of draft, end to end on tiny models."""

from __future__ import annotations

import pytest
from fake_summary import render_brief
from test_run import FakeObserver, sweep

from specbench.analysis.summarise import summarise
from specbench.errors import ConfigError, WorkloadError
from specbench.store import read_run


@pytest.fixture(scope="module")
def batched(lab, tmp_path_factory):
    drafts = [str(lab.near), f"{lab.near},cutoff=0.05", "ngram:n=2"]
    return sweep(lab, tmp_path_factory.mktemp("runs"), draft=drafts, batch_size=4)


@pytest.fixture(scope="module")
def alone(lab, tmp_path_factory):
    return sweep(lab, tmp_path_factory.mktemp("runs"), draft=[str(lab.near), "ngram:n=2"])


@pytest.mark.full
def test_a_batch_is_one_trial_with_the_counts_of_its_prompts(batched, alone):
    final = [trial for trial in batched.trials if not trial.warmup]
    assert len(final) == 3 * (2 + 3 * 2)
    for trial in final:
        assert len(trial.members) == 4
        assert trial.decode_tokens == trial.output_tokens - 4
        if trial.arm.draft is None or "cutoff" in trial.arm.draft:
            continue
        single = [t for t in alone.trials if not t.warmup and t.arm == trial.arm and t.prompt_id in trial.members]
        assert trial.output_tokens == sum(t.output_tokens for t in single)
        assert len(trial.drafted) == sum(len(t.drafted) for t in single)
        assert sum(trial.accepted) == sum(sum(t.accepted) for t in single)


def test_batches_are_summarised_like_prompts_and_replayed_exactly(batched):
    summary = summarise(batched)
    assert summary.batch_size == 4
    for draft in summary.drafts:
        for row in draft.gammas:
            assert row.prompts == 3
            assert row.identical_prompts == 3
            assert row.replay_rounds == row.rounds
    assert "replay-disagrees" not in [caution.code for caution in summary.warnings]
    page = render_brief(batched, summary)
    assert "3 batches of 4 prompts" in page
    assert "; batch 4" in page


def test_a_batch_is_predicted_with_the_costs_of_its_size(batched):
    draft = summarise(batched).drafts[0]
    row = draft.gammas[0]
    probed = next(one for one in draft.batches if one.batch == 4)
    by_gamma = {one.gamma: one for one in draft.predicted}
    assert by_gamma[probed.gamma].speedup == pytest.approx(probed.speedup)
    spent = sum((row.predicted_round_time.draft_s, row.predicted_round_time.verify_s, row.predicted_round_time.other_s))
    measured = sum((row.round_time.draft_s, row.round_time.verify_s, row.round_time.other_s))
    assert 0.1 < spent / measured < 10  # both a sequence's share of the batch; tiny models are all noise


@pytest.mark.full
def test_prompts_that_fill_no_batch_are_left_out_and_said(lab, tmp_path):
    stored = sweep(lab, tmp_path, batch_size=5, gammas=(1,))
    assert [skipped.reason for skipped in stored.run.workload.skipped] == ["left over from batches of 5"] * 2
    assert len([t for t in stored.trials if not t.warmup]) == 2 * 3
    assert "skipped-prompts" in [caution.code for caution in summarise(stored).warnings]
    with pytest.raises(WorkloadError, match="12 prompts fill no batch of 13"):
        sweep(lab, tmp_path, batch_size=13)


@pytest.mark.full
def test_an_interrupted_run_of_batches_goes_on(lab, tmp_path, batched):
    drafts = batched.run.config.draft
    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, draft=drafts, batch_size=4, observer=FakeObserver(interrupt_after=11))
    whole = sweep(lab, tmp_path, draft=drafts, batch_size=4)
    keys = [(t.prompt_id, t.arm, t.output_sha256) for t in whole.trials if not t.warmup]
    assert sorted(map(str, keys)) == sorted(
        str((t.prompt_id, t.arm, t.output_sha256)) for t in batched.trials if not t.warmup
    )
    assert {row.replay_rounds == row.rounds for d in summarise(whole).drafts for row in d.gammas} == {True}


@pytest.mark.parametrize("draft", ["skip:layers=1", "cross:{near}", "ngram:n=2+{near}"])
def test_drafts_without_a_form_for_batches_are_refused(lab, tmp_path, draft):
    with pytest.raises(
        ConfigError, match="Batches take a draft model, a draft head that is no DFlash and no MTP of several layers"
    ):
        sweep(lab, tmp_path, draft=[draft.format(near=lab.near)], batch_size=2)


@pytest.mark.full
def test_every_kind_of_draft_in_one_run(lab, tmp_path):
    near = lab.near
    drafts = [
        str(near),
        f"{near},cutoff=0.05",
        "ngram:n=2,max=2",
        f"ngram:n=2+{near}",
        "skip:layers=1",
        "skip:auto",
        f"cross:{near}",
    ]
    stored = sweep(lab, tmp_path, draft=drafts, gammas=(1, 3), limit=6)
    summary = summarise(stored)
    assert [draft.draft for draft in summary.drafts] == list(drafts)
    for draft in summary.drafts:
        for row in draft.gammas:
            assert row.identical_prompts == row.prompts == 6
            assert row.replay_rounds == row.rounds, draft.draft
    assert stored.run.drafts["skip:auto"].layers == 1  # of two layers
    readers = {point.model for point in stored.run.probe}
    assert readers == {None, str(near), "skip:layers=1", f"cross:{near}"}
    by_name = {draft.draft: draft for draft in summary.drafts}
    assert all(row.predicted_speedup is not None for draft in summary.drafts for row in draft.gammas)
    # the same layers found two ways
    assert by_name["skip:auto"].gammas[1].accepted == by_name["skip:layers=1"].gammas[1].accepted
    # a look-up before the model accepts at least what is there to look up
    assert by_name[f"ngram:n=2+{near}"].gammas[1].rounds <= by_name["ngram:n=2,max=2"].gammas[1].rounds


@pytest.mark.full
def test_the_layers_of_a_skip_draft_are_kept_when_a_run_goes_on(lab, tmp_path, monkeypatch):
    from specbench.backends.local import local

    with pytest.raises(KeyboardInterrupt):
        sweep(lab, tmp_path, draft=["skip:auto"], limit=4, observer=FakeObserver(interrupt_after=5))
    monkeypatch.setattr(local, "choose_layers", lambda *_: pytest.fail("chosen again"))
    stored = sweep(lab, tmp_path, draft=["skip:auto"], limit=4)
    assert stored.status == "finished"
    assert read_run(stored.folder).run.drafts["skip:auto"].layers == 1
