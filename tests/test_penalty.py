"""A repetition penalty and min-p: the text is what transformers writes, sampled text follows the target exactly, replay
is the loop, and whoever forgets the penalty at one place is caught."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import examples
from fake_markov import FakeMarkov, text_probabilities
from fake_summary import render_brief
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_drafters import same_rounds, skip_drafter
from test_many import many
from test_replay import cached, scored
from test_run import sweep
from tiny import near_copy, run, tiny_llama
from transformers import GenerationConfig, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from specbench.acceptance import loop, score
from specbench.acceptance.loop import generate
from specbench.acceptance.many import generate_many
from specbench.acceptance.replay import replay
from specbench.acceptance.rules import RepetitionPenalty, distribution, penalised
from specbench.analysis.summarise import summarise
from specbench.backends.local.batch import generate_batch, score_batch
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.ragged import RaggedModel
from specbench.config import load_config
from specbench.drafters import NgramSpec
from specbench.drafters.around import CombinedDrafter, NgramDrafter
from specbench.drafters.model import ManyModelDrafter, ModelDrafter
from specbench.errors import ConfigError
from specbench.records import Round, Sampling
from specbench.report.dialect import PLAIN, sentence_of
from specbench.store import read_run

VOCAB = 24
TARGET = tiny_llama(VOCAB, seed=1)
NEAR = near_copy(TARGET, noise=0.05)
PENALISED = Sampling(repetition_penalty=1.3)
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q", "ends")

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)
penalties = st.sampled_from([0.7, 1.1, 1.3, 3.0])


def drafter_of(kind: str, sampling: Sampling, reader: CachedModel, **options: Any):
    lookup = NgramDrafter(NgramSpec(2), eos=())
    if kind == "ngram":
        return lookup
    if kind == "skip":
        return skip_drafter(reader, TARGET, 1, sampling=sampling, **options)
    rule = {"vocab_size": VOCAB, "sampling": sampling, "eos": ()} | options
    model = ModelDrafter(CachedModel(TARGET if kind == "self" else NEAR, 512), **rule)
    return CombinedDrafter(lookup, model) if kind == "combined" else model


def transformers_text(prompt: list[int], limit: int, penalty: float, **more: Any) -> list[int]:
    config = GenerationConfig(max_new_tokens=limit, do_sample=False, pad_token_id=-1, repetition_penalty=penalty)
    ids = torch.tensor([prompt])
    out = TARGET.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **more)
    return out[0, len(prompt) :].tolist()


@examples(30)
@given(ids=st.lists(st.integers(0, 30), min_size=1, max_size=9), n=st.integers(1, 9), penalty=penalties)
def test_every_row_has_the_penalty_of_what_stands_before_it(ids, n, penalty):
    n = min(n, len(ids))
    logits = torch.randn(n, VOCAB, generator=torch.Generator().manual_seed(len(ids)))
    alone = RepetitionPenaltyLogitsProcessor(penalty)
    for row in range(n):
        before = torch.tensor([ids[: len(ids) - n + 1 + row]])  # ids beyond the logits penalise nothing
        assert penalised(logits, torch.tensor(ids), penalty)[row].equal(alone(before, logits[row : row + 1])[0])


def test_the_penalty_is_transformers_own_and_leaves_the_logits_alone():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    assert penalised(logits, torch.tensor([0, 1, 1]), 2.0).tolist() == [[1.0, -4.0, 1.0]]
    assert logits.tolist() == [[2.0, -2.0, 1.0]]
    assert RepetitionPenalty(Sampling()).apply(logits, [0, 1]) is logits


@examples(40)
@given(
    prompt=prompts,
    gamma=st.integers(1, 6),
    limit=st.integers(1, 40),
    penalty=penalties,
    kind=st.sampled_from(["near", "self", "skip", "ngram", "combined"]),
    chained=st.booleans(),
)
def test_greedy_text_is_that_of_transformers_with_the_penalty(prompt, gamma, limit, penalty, kind, chained):
    sampling = Sampling(repetition_penalty=penalty)
    reader = CachedModel(TARGET, 512)
    drafter = drafter_of(kind, sampling, reader, **({} if kind == "ngram" else {"chained": chained}))
    got = run(reader, drafter, prompt, gamma=gamma, sampling=sampling, max_new_tokens=limit)
    alone = run(TARGET, None, prompt, sampling=sampling, max_new_tokens=limit)
    assert got.tokens == alone.tokens == transformers_text(prompt, limit, penalty)
    if kind == "self":
        assert all(r.accepted == r.drafted for r in got.rounds)


@pytest.mark.full
@examples(15)
@given(
    rows=st.lists(prompts, min_size=1, max_size=4), gamma=st.integers(1, 5), limit=st.integers(1, 30), cut=st.booleans()
)
def test_rows_of_a_batch_are_their_prompts_alone(rows, gamma, limit, cut):
    def batch(chained):
        rule = {"vocab_size": VOCAB, "sampling": PENALISED, "eos": (), "chained": chained}
        rule["cutoff"] = 0.1 if cut and not chained else 0.0
        drafter = ManyModelDrafter(RaggedModel(NEAR, 128, 8), **rule)
        return many(TARGET, drafter, rows, gamma=gamma, sampling=PENALISED, limit=limit)

    plain, chained = batch(False), batch(True)
    for prompt, one, other, bare in zip(
        rows, plain, chained, many(TARGET, None, rows, sampling=PENALISED, limit=limit), strict=True
    ):
        options = {"cutoff": 0.1} if cut else {}
        drafter = drafter_of("near", PENALISED, cached(TARGET), **options)
        alone = run(TARGET, drafter, prompt, gamma=gamma, sampling=PENALISED, max_new_tokens=limit)
        assert (one.tokens, one.rounds) == (alone.tokens, alone.rounds)
        assert other.tokens == bare.tokens == alone.tokens == transformers_text(prompt, limit, 1.3)


@pytest.mark.full
@pytest.mark.parametrize("sampling", [PENALISED, Sampling(0.8, top_p=0.9, min_p=0.1, repetition_penalty=1.2)], ids=str)
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("gamma", [1, 3, 7])
def test_a_model_drafting_for_itself_accepts_everything(sampling, gamma, chained):
    """Which it does only where p and q have the same penalty, at every place of a round."""
    drafter = drafter_of("self", sampling, cached(TARGET), chained=chained)
    for prompt in ([3, 1, 4, 1, 5, 9], [2], [7, 1, 8, 2]):  # one after the other: nothing is left of the text before
        got = run(TARGET, drafter, prompt, gamma=gamma, sampling=sampling, max_new_tokens=1 + 5 * (gamma + 1))
        assert got.rounds == [Round(gamma, gamma)] * 5


def test_a_penalty_on_the_target_alone_costs_acceptance():
    drafter = drafter_of("self", Sampling(), cached(TARGET))
    got = run(TARGET, drafter, [3, 1], gamma=4, sampling=PENALISED, max_new_tokens=60)
    assert got.tokens == run(TARGET, None, [3, 1], sampling=PENALISED, max_new_tokens=60).tokens
    assert sum(r.accepted for r in got.rounds) < 0.8 * sum(r.drafted for r in got.rounds)


# Five tokens, so that prompt, emitted tokens and drafts penalise different ones, and texts that repeat themselves.
CHAIN, OTHER = FakeMarkov.random(5, seed=4), FakeMarkov.random(5, seed=2)
WARM = Sampling(1.1, min_p=0.05, repetition_penalty=2.0)
EOS = {4}


def chain_drafter(sampling: Sampling) -> ModelDrafter:
    return ModelDrafter(OTHER, vocab_size=5, sampling=sampling, eos=EOS)


def chi_square(drafter: Any, sampling: Sampling, trials: int = 2000) -> float:
    """p-value of the observed texts against the exact distribution; rare texts are pooled."""
    exact = text_probabilities(CHAIN, [0], 4, sampling, EOS)
    drawn = [
        run(CHAIN, drafter, [0], gamma=3, sampling=sampling, eos=EOS, max_new_tokens=4, seed=s) for s in range(trials)
    ]
    seen = Counter(tuple(each.tokens) for each in drawn)
    if any(exact[text] == 0 for text in seen):
        return 0.0
    common = [text for text, p in exact.items() if p * trials >= 10]
    observed, expected = [seen[text] for text in common], [exact[text] * trials for text in common]
    rest = trials - sum(observed), trials - sum(expected)
    return stats.chisquare([*observed, rest[0]], [*expected, rest[1]], sum_check=False).pvalue


@pytest.mark.full
def test_sampled_text_follows_the_penalised_target():
    assert chi_square(chain_drafter(WARM), WARM) > 1e-3
    # q is what the drafts were drawn from, penalised or not: that it differs from p is what the rule is for
    assert chi_square(chain_drafter(Sampling(1.1)), WARM) > 1e-3


class NoDrafts(RepetitionPenalty):
    """Wrong: every place of a round has the penalty of its start."""

    def apply(self, logits, x, drafts=()):
        return torch.cat([super(NoDrafts, self).apply(row[None], x) for row in logits])


class Off(RepetitionPenalty):
    def apply(self, logits, x, drafts=()):
        return logits


@pytest.mark.full
@pytest.mark.parametrize("wrong", [NoDrafts, Off])
def test_the_same_test_rejects_a_penalty_that_forgets(wrong, monkeypatch):
    monkeypatch.setattr(loop, "RepetitionPenalty", wrong)
    assert chi_square(chain_drafter(WARM), WARM) < 1e-6


def test_min_p_comes_last_and_keeps_the_likeliest():
    logits = torch.log(torch.tensor([[0.4, 0.3, 0.2, 0.1]]))
    assert distribution(logits, Sampling(1.0, min_p=0.6))[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    # after the temperature: 16, 9, 4, 1 of 30, of which 9 is below 0.6 of 16
    assert distribution(logits, Sampling(0.5, min_p=0.6))[0].tolist() == [1, 0, 0, 0]
    assert distribution(logits, Sampling(1.0, min_p=1.0))[0].tolist() == [1, 0, 0, 0]
    assert distribution(logits, Sampling(min_p=0.6))[0].tolist() == [1, 0, 0, 0]
    theirs = MinPLogitsWarper(0.3)(None, logits).softmax(-1)
    assert distribution(logits, Sampling(1.0, min_p=0.3)).equal(theirs)


@pytest.mark.full
@examples(30)
@given(prompt=prompts, gamma=st.integers(1, 8), limit=st.integers(1, 90), penalty=penalties)
def test_greedy_replay_is_the_loop_round_by_round(prompt, gamma, limit, penalty):
    sampling = Sampling(repetition_penalty=penalty)
    alone = run(TARGET, None, prompt, sampling=sampling, max_new_tokens=limit)
    live = run(
        TARGET,
        drafter_of("near", sampling, cached(TARGET)),
        prompt,
        gamma=gamma,
        sampling=sampling,
        max_new_tokens=limit,
    )
    text = scored(None, cached(NEAR), prompt, alone.tokens, limit=limit, vocab=VOCAB, sampling=sampling)
    same_rounds(replay([text], gamma), live, gamma)


def test_greedy_replay_without_the_penalty_is_not_the_loop(monkeypatch):
    alone = run(TARGET, None, [3, 1], sampling=PENALISED, max_new_tokens=60)
    live = run(
        TARGET, drafter_of("near", PENALISED, cached(TARGET)), [3, 1], gamma=4, sampling=PENALISED, max_new_tokens=60
    )
    monkeypatch.setattr(score, "RepetitionPenalty", Off)
    text = scored(None, cached(NEAR), [3, 1], alone.tokens, limit=60, vocab=VOCAB, sampling=PENALISED)
    assert replay([text], 4).accepted[0] != sum(r.accepted for r in live.rounds)


@pytest.mark.full
@pytest.mark.parametrize("gamma", [1, 3])
def test_sampling_replay_agrees_with_the_loop(gamma):
    drafter, texts, live = chain_drafter(WARM), [], []
    for seed in range(250):
        alone = run(CHAIN, None, [0], sampling=WARM, eos=EOS, max_new_tokens=30, seed=seed)
        texts.append(scored(CHAIN, OTHER, [0], alone.tokens, limit=30, vocab=5, sampling=WARM, eos=EOS))
        rounds = run(
            CHAIN, drafter, [0], gamma=gamma, sampling=WARM, eos=EOS, max_new_tokens=30, seed=1000 + seed
        ).rounds
        live.append((len(rounds), sum(r.accepted for r in rounds)))
    rounds, accepted = np.array(live).sum(0)
    tau = 1 + accepted / rounds
    scatter = np.array([a - r * (tau - 1) for r, a in live]).std() * np.sqrt(len(live)) / rounds
    assert replay(texts, gamma).tokens_per_round == pytest.approx(tau, abs=5 * scatter)
    assert scatter < 0.05


@pytest.mark.parametrize("sampling", [PENALISED, Sampling(0.9, min_p=0.02, repetition_penalty=1.2)], ids=str)
def test_batched_scores_are_those_of_single_texts(sampling):
    given, outputs = [[1, 2, 3], [9], [4] * 50, [5, 6]], [[5, 6, 7, 8], [3], [*range(20), *range(20)], [1] * 35]
    batch = score_batch(TARGET, NEAR, given, outputs, vocab_size=VOCAB, sampling=sampling, eos={11})
    for prompt, output, together in zip(given, outputs, batch, strict=True):
        alone = score.score(cached(TARGET), cached(NEAR), prompt, output, vocab_size=VOCAB, sampling=sampling, eos={11})
        for name in NUMBERS:
            np.testing.assert_allclose(getattr(together, name), getattr(alone, name), atol=1e-4)


def test_batched_texts_are_those_of_the_single_engine():
    given = [[1, 2, 3], [9], [4, 5, 6, 7, 8, 9, 10]]
    # the padding of the short ones is no token that was said
    outputs = generate_batch(TARGET, given, sampling=PENALISED, eos={11}, max_new_tokens=30, seed=0)
    assert outputs == [run(TARGET, None, p, sampling=PENALISED, eos={11}, max_new_tokens=30).tokens for p in given]
    drawn = generate_batch(TARGET, [[1]] * 50, sampling=Sampling(9.0, min_p=1.0), eos={11}, max_new_tokens=1, seed=0)
    assert len({text[0] for text in drawn}) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 1.5},
        {"suppress_tokens": list(range(12))},
        {"forced_eos_token_id": 5},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 3.0, "top_p": 0.5, "min_p": 0.5, "top_k": 3},
    ],
    ids=lambda own: next(iter(own)),
)
@pytest.mark.parametrize("sampling", [Sampling(), PENALISED, Sampling(1.0)], ids=str)
def test_batched_texts_have_nothing_of_the_models_own_settings(own, sampling):
    """Which `generate` fills in where nothing is said."""
    model = copy.deepcopy(TARGET)
    asked = {"sampling": sampling, "eos": {11}, "max_new_tokens": 30, "seed": 0}
    without = generate_batch(model, [[1, 2, 3], [9]], **asked)
    model.generation_config = settings_of_model = GenerationConfig(**own)
    assert generate_batch(model, [[1, 2, 3], [9]], **asked) == without
    assert model.generation_config is settings_of_model


KINDS = ("near", "skip:layers=1", "ngram:n=2", "ngram:n=2+near", "cross:near")


@pytest.mark.full
@pytest.mark.parametrize(("kinds", "batch"), [(KINDS, 1), (("near", "ngram:n=2"), 3)])
def test_every_draft_of_a_run_replays_as_it_ran_and_keeps_the_text(kinds, batch, lab, tmp_path):
    drafts = [kind.replace("near", str(lab.near)) for kind in kinds]
    asked = {"repetition_penalty": 1.3, "dtype": "float32", "max_new_tokens": 24, "batch_size": batch}
    stored = sweep(lab, tmp_path, gammas=(3,), draft=drafts, **asked)
    summary = summarise(stored)
    for draft in summary.drafts:
        (row,) = draft.gammas
        assert row.identical_prompts == row.prompts, draft.draft
        if batch == 1:
            assert row.replay_rounds == row.rounds, draft.draft
    assert {draft.draft for draft in summary.drafts} == set(drafts)
    assert "repetition penalty 1.3" in render_brief(stored, summary)
    assert sum(draft.gammas[0].accepted for draft in summary.drafts) > 50


@pytest.mark.parametrize("function", [generate, generate_many], ids=lambda f: f.__name__)
def test_nothing_is_done_where_the_penalty_is_off(function, monkeypatch):
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("specbench.acceptance.rules.penalised", never)
    drafter = drafter_of("near", Sampling(0.7), cached(TARGET))
    if function is generate:
        assert run(TARGET, drafter, [3, 1], sampling=Sampling(0.7)).tokens
    else:
        assert many(TARGET, None, [[3, 1]], sampling=Sampling(0.7))


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(), "greedy (temperature 0)"),
        (Sampling(min_p=0.1), "greedy (temperature 0)"),
        (Sampling(repetition_penalty=1.1), "greedy (temperature 0), repetition penalty 1.1"),
        (Sampling(0.7, 0.9, 5, 0.1, 1.2), "temperature 0.7, top-p 0.9, top-k 5, min-p 0.1, repetition penalty 1.2"),
    ],
)
def test_a_brief_names_what_is_on(sampling, words):
    assert sentence_of("sampling", PLAIN, sampling) == words


def test_a_stored_configuration_that_does_not_say_has_them_off():
    kept = Path(__file__).parent / "runs" / "example"
    config = json.loads((kept / "run.json").read_text())["config"]
    assert "min_p" not in config and "repetition_penalty" not in config
    assert read_run(kept).run.config.sampling == Sampling()


@pytest.mark.parametrize(
    ("key", "value"), [("repetition_penalty", 0), ("repetition_penalty", -1.1), ("min_p", 1.5), ("min_p", True)]
)
def test_what_no_engine_takes_is_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        load_config(None, {key: value})
