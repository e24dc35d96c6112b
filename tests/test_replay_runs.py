"""Replay in whole runs: stored positions, the agreement that sweep shows, and the batched pass without a clock."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_cli import call
from test_run import FakeObserver, config_for, sweep

from specbench.acceptance.positions import read_positions
from specbench.analysis import frame as views_module
from specbench.analysis.summarise import summarise
from specbench.backends.local.batch import generate_batch, score_batch
from specbench.records import Sampling
from specbench.run.session import run
from specbench.store import read_run

from tiny import GREEDY, near_copy, tiny_llama  # isort: skip
from tiny import run as run_tiny  # isort: skip


@pytest.fixture(scope="module")
def stored(lab, tmp_path_factory):
    return sweep(lab, tmp_path_factory.mktemp("replay"), gammas=(1, 2, 5), all_gammas=True)


def test_replayed_and_live_rounds_are_equal_in_float32(stored):
    for row in summarise(stored).drafts[0].gammas:
        assert row.replay_rounds == row.rounds
        assert row.replay_tokens_per_round == pytest.approx(row.tokens_per_round)
        assert row.accepted > 0


def test_a_replay_that_disagrees_is_a_warning(stored, monkeypatch):
    honest = views_module.replay
    monkeypatch.setattr(views_module, "replay", lambda texts, gamma, cutoff: honest(texts, max(1, gamma - 1)))
    codes = [c.code for c in summarise(stored).warnings]
    assert "replay-disagrees" in codes
    monkeypatch.undo()
    assert "replay-disagrees" not in [c.code for c in summarise(stored).warnings]


@pytest.mark.full
def test_sampled_runs_are_compared_within_sampling_error(lab, tmp_path, monkeypatch):
    sampled = sweep(lab, tmp_path, gammas=(6,), temperature=0.8, max_new_tokens=80, repeats=2)
    assert "replay-disagrees" not in [c.code for c in summarise(sampled).warnings]
    honest = views_module.replay
    monkeypatch.setattr(views_module, "replay", lambda texts, gamma, cutoff: honest(texts, 1))
    assert "replay-disagrees" in [c.code for c in summarise(sampled).warnings]


def test_replay_only_finds_the_acceptance_of_the_live_run(lab, tmp_path, stored):
    folder = run(config_for(lab, tmp_path), "sweep", (1, 2, 5), FakeObserver(), replay_only=True)
    by_prompt = {text.prompt_id: text for text in read_positions(stored.folder)}
    texts = read_positions(folder)
    assert {text.prompt_id for text in texts} == set(by_prompt)
    for text in texts:
        live = by_prompt[text.prompt_id]
        np.testing.assert_array_equal(text.accept, live.accept)
        np.testing.assert_allclose(text.confidence, live.confidence, atol=1e-4)
        np.testing.assert_allclose(text.log_q, live.log_q, atol=1e-3)
        assert (text.category, text.limit, text.draft) == (live.category, live.limit, live.draft)


@pytest.mark.full
def test_a_drafts_own_cut_off_counts_in_its_table(lab, tmp_path):
    own = f"{lab.near},cutoff=0.3"
    flags = ("--replay-only", "--gamma", 5, "--json", "--quiet")
    (cut,) = json.loads(call("sweep", *lab.args("--out", tmp_path / "cut", *flags, draft=own)).stdout)["drafts"]
    (uncut,) = json.loads(call("sweep", *lab.args("--out", tmp_path / "uncut", *flags)).stdout)["drafts"]
    assert (cut["cutoff"], uncut["cutoff"]) == (0.3, 0.0)
    assert cut["gammas"][0]["drafted_high"] < uncut["gammas"][0]["drafted_high"]
    (live,) = json.loads(call("sweep", *lab.args("--out", tmp_path / "live", *flags[1:], draft=own)).stdout)["drafts"]
    row = live["gammas"][0]
    assert (cut["gammas"][0]["rounds"], cut["gammas"][0]["accepted"]) == (row["rounds"], row["accepted"])


def test_replay_answers_new_questions_without_a_model(stored, lab):
    result = call("replay", stored.folder, "--gamma", "1..16", "--cutoff", 0.3, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (draft,) = found["drafts"]
    assert [row["gamma"] for row in draft["gammas"]] == list(range(1, 17))
    uncut = json.loads(call("replay", stored.folder, "--gamma", "5", "--json").stdout)["drafts"][0]["gammas"][0]
    cut = draft["gammas"][4]
    assert cut["drafted_high"] < uncut["drafted_high"]
    assert cut["accepted"] < uncut["accepted"]
    live = summarise(stored).drafts[0].gammas[2]
    assert (uncut["rounds"], uncut["accepted"]) == (live.rounds, live.accepted)
    table = call("replay", stored.folder, "--gamma", "1,2")
    assert "Replayed, not run: 12 texts" in table.stdout


def test_a_replay_only_run_has_no_verdict(lab, tmp_path):
    result = call("sweep", *lab.args("--out", tmp_path, "--replay-only", "--gamma", "1..3", "--json", "--limit", 4))
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["drafts"][0]["gammas"]) == 3
    assert call("brief", "--out", tmp_path).stderr.startswith("specbench: No run yet")
    (folder,) = tmp_path.iterdir()
    result = call("brief", folder)
    assert result.exit_code == 2
    assert "no verdict without a measurement" in result.stderr
    assert call("measure", *lab.args("--out", tmp_path, "--replay-only")).exit_code == 2


@pytest.mark.parametrize("args", [("--gamma", "0"), ("--cutoff", "1.0"), ("--cutoff", "nan")])
def test_bad_replay_questions(stored, args):
    result = call("replay", stored.folder, *args)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_an_interrupted_replay_continues(lab, tmp_path, stored):
    class Impatient(FakeObserver):
        texts = 0

        def advance(self, texts):
            self.texts += texts
            if self.texts == 5:
                raise KeyboardInterrupt

    from specbench.backends.local import session as replaying

    config = config_for(lab, tmp_path)
    before, replaying.REPLAY_BATCH = replaying.REPLAY_BATCH, 5
    try:
        with pytest.raises(KeyboardInterrupt):
            run(config, "sweep", (1,), Impatient(), replay_only=True)
        (folder,) = tmp_path.iterdir()
        assert len(read_positions(folder)) == 5
        torn = folder / "positions-0.arrow"
        torn.write_bytes(torn.read_bytes()[:-40])
        assert run(config, "sweep", (1,), FakeObserver(), replay_only=True) == folder
    finally:
        replaying.REPLAY_BATCH = before
    assert read_run(folder).status == "finished"
    assert len(read_positions(folder)) == 12


def test_batched_texts_are_those_of_the_single_engine():
    target = tiny_llama(64, seed=1)
    prompts = [[1, 2, 3], [9], [4, 5, 6, 7, 8, 9, 10]]
    outputs = generate_batch(target, prompts, sampling=GREEDY, eos={11, 30}, max_new_tokens=20, seed=0)
    assert outputs == [run_tiny(target, None, p, eos={11, 30}, max_new_tokens=20).tokens for p in prompts]


def test_batched_sampling_draws_from_the_warped_distribution():
    target = tiny_llama(64, seed=1)
    sampling = Sampling(1.5, top_k=2)
    seen = set()
    for seed in range(20):
        outputs = generate_batch(target, [[1, 2, 3]] * 8, sampling=sampling, eos={63}, max_new_tokens=2, seed=seed)
        seen |= {output[0] for output in outputs}
    assert len(seen) == 2
    plain = generate_batch(target, [[1, 2, 3]] * 400, sampling=Sampling(5.0), eos={63}, max_new_tokens=1, seed=0)
    assert len({output[0] for output in plain}) > 50  # not cut to transformers' default of 50


def test_batched_scores_are_those_of_single_texts():
    from specbench.acceptance.score import score
    from specbench.backends.local.cached import CachedModel

    target = tiny_llama(64, seed=1)
    draft = near_copy(target, noise=0.1)
    sampling = Sampling(0.9)
    prompts, outputs = [[1, 2, 3], [9], [4] * 50], [[5, 6, 7, 8], [3], list(range(40))]
    batch = score_batch(target, draft, prompts, outputs, vocab_size=64, sampling=sampling, eos={11})
    for prompt, output, together in zip(prompts, outputs, batch, strict=True):
        alone = score(
            CachedModel(target, 128),
            CachedModel(draft, 128),
            prompt,
            output,
            vocab_size=64,
            sampling=sampling,
            eos={11},
        )
        for name in ("accept", "overlap", "confidence", "log_p", "log_q", "ends"):
            np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-4)
