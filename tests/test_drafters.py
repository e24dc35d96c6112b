"""Every way to draft through the same proofs: the text is the target's own, replay is the loop, a perfect draft is
always accepted, one that never matches never is."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import GREEDY, lean, near_copy, run, text_of, tiny_llama

from specbench.acceptance.metrics import count
from specbench.acceptance.positions import PositionWriter, read_positions
from specbench.acceptance.replay import replay
from specbench.acceptance.score import score
from specbench.acceptance.scores import BlockScores, Scores, match_blocks
from specbench.backends.local import drafts
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Setting
from specbench.drafters import DraftSpec, NgramSpec, parse_draft
from specbench.drafters.around import CombinedDrafter, NgramDrafter
from specbench.drafters.model import ModelDrafter
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.errors import ConfigError
from specbench.models import LoadedModel
from specbench.records import Sampling

VOCAB = 24
PLAIN = tiny_llama(VOCAB, seed=1)
DEEP = tiny_llama(VOCAB, seed=1, num_hidden_layers=4)
TARGET, NEAR = lean(PLAIN), lean(near_copy(PLAIN, noise=0.05))
# Later layers that change little: then the first ones alone are a good draft.
shallow = tiny_llama(VOCAB, seed=2, num_hidden_layers=4)
for layer in shallow.model.layers[2:]:
    layer.self_attn.o_proj.weight.mul_(0.15)
    layer.mlp.down_proj.weight.mul_(0.15)
SHALLOW = lean(shallow)
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q", "ends")

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)
ends = st.sets(st.integers(0, VOCAB - 1), max_size=2)


def tokenwise(model, prompt, output, eos=frozenset(), *, limit, target=None, sampling=GREEDY, blocks=None):
    found = score(target, CachedModel(model, 512), prompt, output, vocab_size=VOCAB, sampling=sampling, eos=eos)
    return text_of(replace(found, blocks=blocks), limit)


def same_rounds(found, live, gamma):
    counts = count(live.rounds, gamma)
    assert found.rounds.tolist() == [counts.rounds]
    assert found.accepted.tolist() == [counts.accepted]
    assert found.survived[0].tolist() == list(counts.survived)
    assert found.drafted_low[0] <= counts.drafted <= found.drafted[0]


def skip_drafter(target_reader, model, layers, **options):
    cut = target_reader.sharing(first_layers(model, layers))
    return SkipDrafter(cut, vocab_size=VOCAB, sampling=options.pop("sampling", GREEDY), **({"eos": ()} | options))


@examples(20)
@given(prompt=prompts, gamma=st.integers(1, 6), limit=st.integers(2, 60), eos=ends, layers=st.integers(1, 3))
def test_a_skip_draft_keeps_the_text_and_replays_exactly(prompt, gamma, limit, eos, layers):
    alone = run(SHALLOW, None, prompt, eos=eos, max_new_tokens=limit)
    reader = CachedModel(SHALLOW, 512)
    live = run(
        reader, skip_drafter(reader, SHALLOW, layers, eos=eos), prompt, gamma=gamma, eos=eos, max_new_tokens=limit
    )
    assert live.tokens == alone.tokens
    text = tokenwise(first_layers(SHALLOW, layers), prompt, alone.tokens, eos, limit=limit)
    same_rounds(replay([text], gamma), live, gamma)


def test_skipping_layers_that_do_nothing_accepts_everything():
    same = copy.deepcopy(DEEP)
    for layer in same.model.layers[2:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    reader = CachedModel(same, 512)
    live = run(reader, skip_drafter(reader, same, 2), [1, 2, 3], gamma=3, max_new_tokens=41)
    assert {r.accepted for r in live.rounds} == {3}


def test_a_skip_draft_that_leaves_its_drafts_in_the_cache_is_caught(monkeypatch):
    reader = CachedModel(SHALLOW, 512)
    drafter = skip_drafter(reader, SHALLOW, 2)
    monkeypatch.setattr(drafter._model, "rewind", lambda length: None)
    prompt = [1, 2, 3]
    alone = run(SHALLOW, None, prompt, max_new_tokens=40).tokens
    try:
        spoilt = run(reader, drafter, prompt, gamma=3, max_new_tokens=40).tokens
    except (RuntimeError, IndexError):
        return  # the layers no longer agree how long the text is
    assert spoilt != alone


def test_first_layers_share_weights_and_leave_the_target_whole():
    cut = first_layers(DEEP, 2)
    assert len(cut.model.layers) == 2
    assert len(DEEP.model.layers) == DEEP.config.num_hidden_layers == 4
    assert cut.lm_head.weight is DEEP.lm_head.weight
    assert cut.model.layers[0].mlp.up_proj.weight is DEEP.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ConfigError, match="has 4 layers, a draft of 4 would skip none"):
        first_layers(DEEP, 4)


@examples(20)
@given(
    prompt=prompts,
    gamma=st.integers(1, 6),
    limit=st.integers(2, 60),
    eos=ends,
    cutoff=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_a_cut_off_replays_exactly(prompt, gamma, limit, eos, cutoff):
    alone = run(TARGET, None, prompt, eos=eos, max_new_tokens=limit)
    drafter = ModelDrafter(CachedModel(NEAR, 512), vocab_size=VOCAB, sampling=GREEDY, eos=eos, cutoff=cutoff)
    live = run(TARGET, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=limit)
    assert live.tokens == alone.tokens
    found = replay([tokenwise(NEAR, prompt, alone.tokens, eos, limit=limit)], gamma, cutoff)
    same_rounds(found, live, gamma)


class CountedReads:
    """A real draft model that counts its passes by width."""

    def __init__(self, model):
        self.model, self.widths = CachedModel(model, 512), []

    def forward(self, ids, keep):
        self.widths.append(len(ids))
        return self.model.forward(ids, keep)

    def rewind(self, length):
        self.model.rewind(length)


@examples(20)
@given(prompt=prompts, gamma=st.integers(1, 5), limit=st.integers(3, 60), cutoff=st.sampled_from([0.0, 0.1, 0.3]))
def test_draft_steps_are_foretold_cut_offs_and_copies_included(prompt, gamma, limit, cutoff):
    alone = run(TARGET, None, prompt, max_new_tokens=limit)
    for lookup in (None, NgramDrafter(NgramSpec(1), eos=())):
        counted = CountedReads(NEAR)
        drafter = ModelDrafter(counted, vocab_size=VOCAB, sampling=GREEDY, eos=(), cutoff=cutoff)
        whole = drafter if lookup is None else CombinedDrafter(lookup, drafter)
        run(TARGET, whole, prompt, gamma=gamma, max_new_tokens=limit)
        blocks = None
        if lookup is not None:
            blocks = match_blocks(lookup, prompt, alone.tokens, 64)
        expected = replay([tokenwise(NEAR, prompt, alone.tokens, limit=limit, blocks=blocks)], gamma, cutoff)
        steps = expected.drafted - expected.copied + expected.cut_offs
        # after a wrong token the cut-off may stop the draft: it then takes as many steps as tokens, or one less
        live = len(counted.widths) - 1
        assert live <= steps[0]
        if not cutoff:
            assert live == steps[0]
            assert sum(width > 1 for width in counted.widths[1:]) == expected.catch_ups[0]


@examples(20)
@given(prompt=prompts, gamma=st.integers(1, 6), limit=st.integers(2, 60), eos=ends)
def test_look_up_before_a_model_keeps_the_text_and_replays_exactly(prompt, gamma, limit, eos):
    alone = run(TARGET, None, prompt, eos=eos, max_new_tokens=limit)
    lookup = NgramDrafter(NgramSpec(2, 2, 3), eos=eos)
    model = ModelDrafter(CachedModel(NEAR, 512), vocab_size=VOCAB, sampling=GREEDY, eos=eos)
    live = run(TARGET, CombinedDrafter(lookup, model), prompt, gamma=gamma, eos=eos, max_new_tokens=limit)
    assert live.tokens == alone.tokens
    blocks = match_blocks(lookup, prompt, alone.tokens, 64)
    same_rounds(replay([tokenwise(NEAR, prompt, alone.tokens, eos, limit=limit, blocks=blocks)], gamma), live, gamma)


@pytest.mark.full
def test_look_up_before_a_model_replays_sampling_too():
    sampling, gamma, prompt, limit = Sampling(0.7), 3, [1, 2, 1, 2, 1], 30
    lookup = NgramDrafter(NgramSpec(1), eos=())
    drafter = CombinedDrafter(lookup, ModelDrafter(CachedModel(NEAR, 512), vocab_size=VOCAB, sampling=sampling, eos=()))
    texts, live = [], []
    for seed in range(60):
        alone = run(TARGET, None, prompt, sampling=sampling, max_new_tokens=limit, seed=seed)
        blocks = match_blocks(lookup, prompt, alone.tokens, 64)
        reader = CachedModel(TARGET, 512)
        texts.append(
            tokenwise(NEAR, prompt, alone.tokens, limit=limit, target=reader, sampling=sampling, blocks=blocks)
        )
        rounds = run(TARGET, drafter, prompt, gamma=gamma, sampling=sampling, max_new_tokens=limit, seed=seed).rounds
        live.append((len(rounds), sum(r.accepted for r in rounds)))
    expected = replay(texts, gamma)
    rounds, accepted = np.array(live).sum(0)
    tau = 1 + accepted / rounds
    scatter = np.array([a - r * (tau - 1) for r, a in live]).std() * np.sqrt(len(live)) / rounds
    assert expected.tokens_per_round == pytest.approx(tau, abs=4 * scatter)
    assert scatter < 0.1


@st.composite
def block_texts(draw, gamma=4):
    """A few texts of blocks, all of one shape; a model drafts at most what it is asked for."""
    wide, texts = draw(st.booleans()), []
    for name in range(draw(st.integers(1, 4))):
        n = draw(st.integers(0, 12))
        widths = [min(j + 1, gamma) for j in range(gamma)] if wide else [gamma]
        proposed = np.array([[draw(st.integers(0, w)) for w in widths] for _ in range(n)], np.int32).reshape(
            n, len(widths)
        )
        matched = np.minimum(proposed, draw(st.integers(0, gamma))).astype(np.int32)
        shaped = (proposed, matched) if wide else (proposed[:, 0], matched[:, 0])
        texts.append(text_of(BlockScores(*shaped), n + 1 + draw(st.integers(0, 3)), str(name)))
    return texts


@examples(60)
@given(texts=block_texts(), gamma=st.integers(1, 4))
def test_texts_side_by_side_are_walked_as_one_by_one(texts, gamma):
    expected = replay(texts, gamma)
    for row, text in enumerate(texts):
        rounds, i = [], 1
        while i < text.tokens:
            rounds.append(text.at(i, max(0, min(text.limit - i - 1, gamma))))
            i += rounds[-1][1] + 1
        found = (expected.rounds[row], expected.accepted[row], expected.rejections[row], expected.drafted[row])
        assert found == (
            len(rounds),
            sum(kept for _, kept in rounds),
            sum(kept < drafted for drafted, kept in rounds),
            sum(drafted for drafted, _ in rounds),
        )


def test_blocks_of_either_shape_come_back_from_disk(tmp_path):
    numbers = BlockScores(np.array([1, 2], np.int32), np.array([0, 2], np.int32))
    columns = BlockScores(np.array([[1, 2], [1, 1]], np.int32), np.array([[0, 2], [1, 1]], np.int32))
    flat, wide = text_of(numbers, 9, "a"), text_of(columns, 9, "b")
    column = np.array([0.5, 0.25], np.float32)
    both = text_of(Scores(*[column] * 5, ends=np.array([True, False]), blocks=numbers), 9, "c")
    with PositionWriter(tmp_path) as writer:
        for text in (flat, wide, both):
            writer.append(text)
    again = read_positions(tmp_path)
    assert again[1].proposed.tolist() == [[1, 2], [1, 1]]
    assert again[1].at(2, 2) == (1, 1)
    with pytest.raises(ValueError, match="scored up to gamma 2, not 3"):
        again[1].at(1, 3)
    assert again[0].at(2, 1) == (1, 1)
    assert again[2].blocks.matched.tolist() == [0, 2]
    assert again[2].ends.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("demo:draft", DraftSpec("demo:draft", "model", "demo:draft")),
        ("org/model@main", DraftSpec("org/model@main", "model", "org/model@main")),
        ("ngram", DraftSpec("ngram", ngram=NgramSpec(3, 1))),
        ("ngram:n=4,min=2,max=8", DraftSpec("ngram:n=4,min=2,max=8", ngram=NgramSpec(4, 2, 8))),
        ("skip:layers=8", DraftSpec("skip:layers=8", "skip", layers=8)),
        ("skip:auto,cutoff=.4", DraftSpec("skip:auto,cutoff=.4", "skip", cutoff=0.4)),
        ("cross:org/m", DraftSpec("cross:org/m", "cross", "org/m")),
        ("a,b/c,cutoff=0.3", DraftSpec("a,b/c,cutoff=0.3", "model", "a,b/c", cutoff=0.3)),
        ("ngram:n=2+c++/m", DraftSpec("ngram:n=2+c++/m", "model", "c++/m", ngram=NgramSpec(2))),
        ("ngram-model/x", DraftSpec("ngram-model/x", "model", "ngram-model/x")),
    ],
)
def test_specs(text, spec):
    assert parse_draft(text) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ngram:n=0", "'n=0' is no option"),
        ("ngram:size=3", "'size=3' is no option"),
        ("ngram:n=3,n=4", "n is given twice"),
        ("a/b,cutoff=0.3,cutoff=0.4", "cutoff is given twice"),
        ("a/b,cutoff=0.3,sample=greedy,cutoff=0.4", "cutoff is given twice"),
        ("a/b,sample=greedy,sample=greedy", "sample is given twice"),
        ("ngram:n=2,min=3", "min is above n"),
        ("ngram:n=3+", "No model is named"),
        ("skip:8", "'8' is no option of a skip draft"),
        ("skip:layers=0", "is no option of a skip draft"),
        pytest.param(f"skip:layers={'9' * 5000}", "is no option of a skip draft", id="skip:layers=99.."),
        pytest.param(f"ngram:n={'9' * 5000}", "is no option of an n-gram draft", id="ngram:n=99.."),
        ("cross:", "No model is named"),
        ("demo:draft,cutoff=1.5", "'1.5' is no cut-off"),
        ("demo:draft,cutoff=nan", "'nan' is no cut-off"),
        ("cross:m,cutoff=0.2", "A cross draft has no cut-off"),
        ("ngram:n=3+cross:m", "A look-up goes before a draft of the target's tokens"),
    ],
)
def test_bad_specs(text, says):
    with pytest.raises(ConfigError, match=says):
        parse_draft(text)


def test_depths_are_timed_to_their_end(monkeypatch):
    """A device works on behind Python: where nobody waits for it a pass seems to cost what its launch does."""
    waits = []
    monkeypatch.setattr(drafts, "device_sync", lambda device: lambda: waits.append(device))
    target = LoadedModel("t", TARGET, None, None, 0, 0, None)
    setting = Setting(target, CachedModel(TARGET, 64), GREEDY, frozenset(), 2)
    assert drafts.choose_layers(setting, [[1, 2, 3], [4, 5]], (1, 2)) in range(1, TARGET.config.num_hidden_layers)
    # before and after each pass over 1 to 3 tokens, and at least one depth
    assert len(waits) >= 2 * 4 * drafts.PASSES
