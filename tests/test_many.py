"""A batch is its sequences: every row's text and rounds are those of its prompt alone, whoever its neighbours are."""

from __future__ import annotations

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, lean, near_copy, run, tiny_llama

from specbench.acceptance.many import generate_many
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.ragged import RaggedModel
from specbench.clock import Stopwatch
from specbench.drafters import NgramSpec
from specbench.drafters.around import NgramDrafter, SideBySide
from specbench.drafters.model import ManyModelDrafter, ModelDrafter
from specbench.errors import ModelError
from specbench.records import Sampling

VOCAB = 24
PLAIN = tiny_llama(VOCAB, seed=1)
TARGET, NEAR = lean(PLAIN), lean(near_copy(PLAIN, noise=0.05))

prompt_lists = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=5)


def many(target, drafter, prompts, *, gamma=4, sampling=GREEDY, eos=frozenset(), limit=30, seed=0):
    return generate_many(
        target if isinstance(target, RaggedModel) else RaggedModel(target, 128, 8),
        drafter,
        prompts,
        gamma=gamma,
        sampling=sampling,
        eos=eos,
        max_new_tokens=limit,
        generators=[torch.Generator().manual_seed(seed + row) for row in range(len(prompts))],
        clock=Stopwatch(),
    )


def many_drafter(model=NEAR, *, sampling=GREEDY, **options):
    options = {"eos": frozenset()} | options
    return ManyModelDrafter(RaggedModel(model, 128, 8), vocab_size=VOCAB, sampling=sampling, **options)


def drafter(model=NEAR, *, sampling=GREEDY, eos=frozenset(), cutoff=0.0):
    return ModelDrafter(CachedModel(model, 128), vocab_size=VOCAB, sampling=sampling, eos=eos, cutoff=cutoff)


@examples(20)
@given(
    prompts=prompt_lists,
    gamma=st.integers(1, 6),
    limit=st.integers(1, 40),
    eos=st.sets(st.integers(0, VOCAB - 1), max_size=3),
    cutoff=st.sampled_from([0.0, 0.2]),
)
def test_every_row_is_the_prompt_alone(prompts, gamma, limit, eos, cutoff):
    together = many(TARGET, many_drafter(eos=eos, cutoff=cutoff), prompts, gamma=gamma, eos=eos, limit=limit)
    for prompt, row in zip(prompts, together, strict=True):
        alone = run(TARGET, drafter(eos=eos, cutoff=cutoff), prompt, gamma=gamma, eos=eos, max_new_tokens=limit)
        assert row.tokens == alone.tokens
        assert row.rounds == alone.rounds
        assert row.finish == alone.finish


@examples(20)
@given(prompts=prompt_lists, limit=st.integers(1, 40), eos=st.sets(st.integers(0, VOCAB - 1), max_size=3))
def test_the_baseline_of_a_batch_is_each_target_alone(prompts, limit, eos):
    for prompt, row in zip(prompts, many(TARGET, None, prompts, eos=eos, limit=limit), strict=True):
        assert row.tokens == run(TARGET, None, prompt, eos=eos, max_new_tokens=limit).tokens


@examples(20)
@given(prompts=prompt_lists, gamma=st.integers(1, 5), limit=st.integers(2, 40))
def test_look_up_in_a_batch_is_look_up_alone(prompts, gamma, limit):
    spec = NgramSpec(2)
    together = many(TARGET, SideBySide(lambda: NgramDrafter(spec, eos=())), prompts, gamma=gamma, limit=limit)
    for prompt, row in zip(prompts, together, strict=True):
        alone = run(TARGET, NgramDrafter(spec, eos=()), prompt, gamma=gamma, max_new_tokens=limit)
        assert (row.tokens, row.rounds) == (alone.tokens, alone.rounds)


@examples(20)
@given(
    prompts=prompt_lists,
    gamma=st.integers(1, 6),
    limit=st.integers(1, 40),
    eos=st.sets(st.integers(0, VOCAB - 1), max_size=3),
)
def test_a_chain_of_all_rows_drafts_what_each_would(prompts, gamma, limit, eos):
    """Rows that near their limit or draft an end run on with the others; nothing of that is proposed or remembered."""
    one, other = (
        many(TARGET, many_drafter(eos=eos, chained=chained), prompts, gamma=gamma, eos=eos, limit=limit)
        for chained in (False, True)
    )
    for plain, chained in zip(one, other, strict=True):
        assert (plain.tokens, plain.rounds) == (chained.tokens, chained.rounds)


@pytest.mark.parametrize("fault", ["refused drafts stay", "an end is run past", "rows change places"])
def test_a_planted_fault_of_the_chain_is_seen(fault, monkeypatch):
    prompts, eos = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]], {11, 17}
    # A perfect draft runs into every end; one that errs leaves something to forget.
    model = TARGET if fault == "an end is run past" else NEAR
    plain = many(TARGET, many_drafter(model, eos=eos), prompts, eos=eos)
    drafter = many_drafter(model, eos=eos, chained=True)
    honest = drafter.propose

    def propose(rows, ks, generators):
        found = honest(rows, ks, generators)
        return found[1:] + found[:1] if fault == "rows change places" else found

    if fault == "an end is run past":
        drafter._rule.eos = frozenset()
    if fault == "refused drafts stay":
        monkeypatch.setattr(drafter._model, "rewind", lambda lengths: None)
    monkeypatch.setattr(drafter, "propose", propose)
    rows = many(TARGET, drafter, prompts, eos=eos)
    assert [(row.tokens, row.rounds) for row in rows] != [(row.tokens, row.rounds) for row in plain]


def test_sampled_rows_draw_their_own_numbers():
    sampling, prompts = Sampling(0.8), [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    together = many(TARGET, many_drafter(sampling=sampling), prompts, sampling=sampling, seed=5)
    for number, (prompt, row) in enumerate(zip(prompts, together, strict=True)):
        one = drafter(sampling=sampling)
        alone = run(TARGET, one, prompt, sampling=sampling, max_new_tokens=30, seed=5 + number)
        assert row.tokens == alone.tokens


def test_a_perfect_draft_is_always_accepted_in_every_row():
    rows = many(TARGET, many_drafter(TARGET), [[1, 2], [3, 4, 5, 6], [7]], gamma=3, limit=41)
    assert {r.accepted for row in rows for r in row.rounds} == {3}


@pytest.mark.parametrize("fault", ["rows share one length", "rollback forgotten", "padding is seen"])
def test_a_planted_fault_of_the_batch_is_seen(fault, monkeypatch):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    target = RaggedModel(TARGET, 128, 8)
    if fault == "rows share one length":
        honest = target.rewind
        monkeypatch.setattr(target, "rewind", lambda lengths: honest([max(lengths)] * len(lengths)))
    elif fault == "rollback forgotten":
        monkeypatch.setattr(target, "rewind", lambda lengths: None)
    else:
        honest = target._visible
        monkeypatch.setattr(target, "_visible", lambda at: torch.ones_like(honest(at)))
    try:
        rows = many(target, many_drafter(), prompts)
    except RuntimeError:
        return  # the cache overflows
    assert [row.tokens for row in rows] != [run(TARGET, None, p, max_new_tokens=30).tokens for p in prompts]


@pytest.mark.parametrize(
    ("settings_", "why"),
    [({"alibi": True}, "no positions"), ({"layer_types": ["linear_attention"] * 2}, "of one length")],
)
def test_a_model_that_cannot_be_told_positions_is_refused(settings_, why):
    model = tiny_llama(VOCAB, seed=1)
    for name, value in settings_.items():
        setattr(model.config, name, value)
    with pytest.raises(ModelError, match=why):
        RaggedModel(model, 64, 2)
