"""Every way to draft through the same proofs: the text is the target's own, replay is the loop, a perfect draft is
always accepted, one that never matches never is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GREEDY, near_copy, run, save_with_byte_tokenizer, tiny_llama
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specbench.acceptance.loop import Proposal
from specbench.acceptance.metrics import count
from specbench.acceptance.replay import Blocks, Positions, replay
from specbench.acceptance.score import match_blocks, match_each_block, score
from specbench.drafters import DraftSpec, NgramSpec, parse_draft
from specbench.drafters.combined import CombinedDrafter
from specbench.drafters.cross import CrossDrafter
from specbench.drafters.model import ModelDrafter
from specbench.drafters.ngram import NgramDrafter
from specbench.drafters.skip import SkipDrafter, first_layers
from specbench.engines.cached import CachedModel
from specbench.errors import ConfigError
from specbench.positions import PositionWriter, read_positions
from specbench.records import Sampling

VOCAB = 24
TARGET = tiny_llama(VOCAB, seed=1, num_hidden_layers=4)
NEAR = near_copy(TARGET, noise=0.05)
# Later layers that change little: then the first ones alone are a good draft.
SHALLOW = tiny_llama(VOCAB, seed=2, num_hidden_layers=4)
for layer in SHALLOW.model.layers[2:]:
    layer.self_attn.o_proj.weight.mul_(0.15)
    layer.mlp.down_proj.weight.mul_(0.15)
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q", "ends")

prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8)
ends = st.sets(st.integers(0, VOCAB - 1), max_size=2)


def tokenwise(model, prompt, output, eos=frozenset(), *, limit, target=None, sampling=GREEDY, blocks=None):
    found = score(target, CachedModel(model, 512), prompt, output, vocab_size=VOCAB, sampling=sampling, eos=eos)
    return Positions("p", None, "d", 0, limit, **{name: getattr(found, name) for name in NUMBERS}, blocks=blocks)


def same_rounds(found, live, gamma):
    counts = count(live.rounds, gamma)
    assert found.rounds.tolist() == [counts.rounds]
    assert found.accepted.tolist() == [counts.accepted]
    assert found.survived[0].tolist() == list(counts.survived)
    assert found.drafted_low[0] <= counts.drafted <= found.drafted[0]


def skip_drafter(target_reader, model, layers, **options):
    cut = target_reader.sharing(first_layers(model, layers))
    return SkipDrafter(cut, vocab_size=VOCAB, sampling=options.pop("sampling", GREEDY), **({"eos": ()} | options))


@settings(max_examples=40, deadline=None)
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
    same = copy.deepcopy(TARGET)
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
    cut = first_layers(TARGET, 2)
    assert len(cut.model.layers) == 2
    assert len(TARGET.model.layers) == TARGET.config.num_hidden_layers == 4
    assert cut.lm_head.weight is TARGET.lm_head.weight
    assert cut.model.layers[0].mlp.up_proj.weight is TARGET.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ConfigError, match="has 4 layers, a draft of 4 would skip none"):
        first_layers(TARGET, 4)


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=40, deadline=None)
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
            found = match_blocks(lookup, prompt, alone.tokens, 64)
            blocks = Blocks("p", None, "d", 0, limit, found.proposed, found.matched)
        expected = replay([tokenwise(NEAR, prompt, alone.tokens, limit=limit, blocks=blocks)], gamma, cutoff)
        steps = expected.drafted - expected.copied + expected.cut_offs
        # after a wrong token the cut-off may stop the draft: it then takes as many steps as tokens, or one less
        live = len(counted.widths) - 1
        assert live <= steps[0]
        if not cutoff:
            assert live == steps[0]
            assert sum(width > 1 for width in counted.widths[1:]) == expected.catch_ups[0]


@settings(max_examples=40, deadline=None)
@given(prompt=prompts, gamma=st.integers(1, 6), limit=st.integers(2, 60), eos=ends)
def test_look_up_before_a_model_keeps_the_text_and_replays_exactly(prompt, gamma, limit, eos):
    alone = run(TARGET, None, prompt, eos=eos, max_new_tokens=limit)
    lookup = NgramDrafter(NgramSpec(2, 2, 3), eos=eos)
    model = ModelDrafter(CachedModel(NEAR, 512), vocab_size=VOCAB, sampling=GREEDY, eos=eos)
    live = run(TARGET, CombinedDrafter(lookup, model), prompt, gamma=gamma, eos=eos, max_new_tokens=limit)
    assert live.tokens == alone.tokens
    found = match_blocks(lookup, prompt, alone.tokens, 64)
    blocks = Blocks("p", None, "d", 0, limit, found.proposed, found.matched)
    same_rounds(replay([tokenwise(NEAR, prompt, alone.tokens, eos, limit=limit, blocks=blocks)], gamma), live, gamma)


def test_look_up_before_a_model_replays_sampling_too():
    sampling, gamma, prompt, limit = Sampling(0.7), 3, [1, 2, 1, 2, 1], 30
    lookup = NgramDrafter(NgramSpec(1), eos=())
    drafter = CombinedDrafter(lookup, ModelDrafter(CachedModel(NEAR, 512), vocab_size=VOCAB, sampling=sampling, eos=()))
    texts, live = [], []
    for seed in range(150):
        alone = run(TARGET, None, prompt, sampling=sampling, max_new_tokens=limit, seed=seed)
        found = match_blocks(lookup, prompt, alone.tokens, 64)
        blocks = Blocks("p", None, "d", 0, limit, found.proposed, found.matched)
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


# --- another tokenizer


def word_tokenizer(folder):
    """Bytes, with some pairs and words of "abcd " merged: other tokens for the same text as the byte tokenizer has."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("c", "d"), ("ab", "c"), ("Ġ", "a"), ("Ġ", "cd")]
    vocabulary = {symbol: index for index, symbol in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>").save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    model = tiny_llama(257, seed=0)
    return PreTrainedTokenizerFast.from_pretrained(save_with_byte_tokenizer(model, folder / "bytes")), word_tokenizer(
        folder / "words"
    )


BYTES, WORDS = tiny_llama(257, seed=3, sharpness=2.0), tiny_llama(262, seed=4, sharpness=2.0)


def cross(tokenizers, model=WORDS, eos=(256,)):
    target, draft = tokenizers
    return CrossDrafter(
        CachedModel(model, 512), draft, target, eos=eos, end=min(eos, default=256), draft_eos={draft.eos_token_id}
    )


@settings(max_examples=25, deadline=None)
@given(text=st.text("abcd ", min_size=1, max_size=20), gamma=st.integers(1, 5), limit=st.integers(2, 40))
def test_a_cross_draft_keeps_the_text_and_replays_exactly(tokenizers, text, gamma, limit):
    prompt = tokenizers[0](text)["input_ids"]
    alone = run(BYTES, None, prompt, eos={256}, max_new_tokens=limit)
    live = run(BYTES, cross(tokenizers), prompt, gamma=gamma, eos={256}, max_new_tokens=limit)
    assert live.tokens == alone.tokens
    found = match_each_block(cross(tokenizers), prompt, alone.tokens, gamma)
    expected = replay([Blocks("p", None, "d", 0, limit, found.proposed, found.matched)], gamma)
    counts = count(live.rounds, gamma)
    assert (expected.rounds[0], expected.accepted[0]) == (counts.rounds, counts.accepted)
    assert expected.reached[0].tolist() == list(counts.reached)


class FakeTypist:
    """A "model" that writes out one string, in its own tokens, from wherever it is."""

    def __init__(self, tokenizer, text):
        self.tokenizer, self.text, self.size = tokenizer, text, len(tokenizer)
        self.read = []

    def forward(self, ids, keep):
        self.read += ids
        after = range(len(self.read) - keep + 1, len(self.read) + 1)
        rest = [self.text[len(self.tokenizer.decode(self.read[:n])) :] or "\n" for n in after]
        following = torch.tensor([self.tokenizer(text)["input_ids"][0] for text in rest])
        return torch.nn.functional.one_hot(following, self.size).float()

    def rewind(self, length):
        del self.read[length:]


def test_what_another_tokenizer_says_comes_back_in_the_targets_tokens(tokenizers):
    target, draft = tokenizers
    text = "abc cd abcd ab cd"
    drafter = CrossDrafter(FakeTypist(draft, text), draft, target, eos=(256,), end=256, draft_eos={draft.eos_token_id})
    x = target("abc cd")["input_ids"]
    drafter.begin(x)
    blocks = drafter.blocks(x, 6)
    rest = target(text)["input_ids"][len(x) :]
    # bytes of the next draft tokens: " a", "b", .. as the merges cut them; never more than the round allows
    assert all(block == rest[: len(block)] for block in blocks)
    assert [len(block) for block in blocks] == [1, 2, 3, 4, 5, 6]
    assert drafter.propose(x, 3) == Proposal(blocks[2])


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_a_right_draft_in_another_tokenizer_is_accepted_and_a_wrong_one_is_not(tokenizers, gamma):
    target, draft = tokenizers
    text = "ab cd abcd dcba abc cd ab abc " * 3
    prompt = target("ab cd")["input_ids"]

    def accepted(says):
        drafter = CrossDrafter(FakeTypist(draft, says), draft, target, eos=(), end=256, draft_eos=(261,))
        live = run(FakeTypist(target, text), drafter, prompt, gamma=gamma, max_new_tokens=50)
        assert target.decode([*prompt, *live.tokens]) == text[: len(prompt) + 50]
        return sum(r.accepted for r in live.rounds) / sum(r.drafted for r in live.rounds)

    assert accepted(text) == 1.0
    assert accepted("ab cd" + "d" * 100) < 0.3


@pytest.mark.parametrize("capacity", [24, 40, 48])
def test_a_text_that_outgrows_the_drafts_memory_is_read_from_its_end(tokenizers, capacity):
    target, draft = tokenizers[1], tokenizers[0]  # the draft reads bytes: several for each token of the target
    prompt = target("abc cd abcd abc cd")["input_ids"]
    alone = run(WORDS, None, prompt, eos=set(), max_new_tokens=36)

    def drafter(room):
        model = CachedModel(BYTES, room)
        return CrossDrafter(model, draft, target, eos=(), end=0, draft_eos={draft.eos_token_id})

    assert len(drafter(512)._encoded([*prompt, *alone.tokens])) > 48
    live = run(WORDS, drafter(capacity), prompt, gamma=3, max_new_tokens=36)
    assert live.tokens == alone.tokens
    found = match_each_block(drafter(capacity), prompt, alone.tokens, 3)
    again = replay([Blocks("p", None, "d", 0, 36, found.proposed, found.matched)], 3)
    assert (again.rounds[0], again.accepted[0]) == (len(live.rounds), sum(r.accepted for r in live.rounds))


def spaced_tokenizer():
    """Like Llama's: a space of its own before every text, bytes for what it does not know."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcd0", "ab", "▁ab", "▁c"]
    merges = [("a", "b"), ("▁", "ab"), ("▁", "c")]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", ["ab c ab abd", "abcd ab", "ab 0 cd"])
def test_a_right_draft_fits_a_target_that_puts_spaces_before_words(tokenizers, text):
    target, draft = spaced_tokenizer(), tokenizers[1]
    ids = target(text)["input_ids"]
    for i in range(2, len(ids)):
        drafter = CrossDrafter(FakeTypist(draft, text), draft, target, eos=(), end=2, draft_eos={261})
        block = drafter.propose(ids[:i], 4).tokens[: len(ids) - i]
        assert block
        assert block == ids[i : i + len(block)]


class FakeScript(FakeTypist):
    """Its n-th token comes after n tokens, also within a character."""

    def forward(self, ids, keep):
        self.read += ids
        script = self.tokenizer(self.text)["input_ids"]
        n = torch.tensor(script[len(self.read) : len(self.read) + 1] * keep)
        return torch.nn.functional.one_hot(n, self.size).float()


def test_half_a_character_is_completed_or_left_alone(tokenizers):
    target, draft = tokenizers  # the target writes bytes

    def says(text):
        return CrossDrafter(FakeScript(draft, text), draft, target, eos=(), end=256, draft_eos={261})

    before, after = target("ab \u00e9")["input_ids"][:-1], target("ab \u00e9 cd")["input_ids"]
    assert says("ab \u00e9 cd").propose(before, 3).tokens == after[len(before) : len(before) + 3]
    assert says("ab cd cd cd ab cd").propose(before, 3).tokens == []
    # its own half characters are left out: what follows them would be cut at another place
    assert says("ab \u00e9 cd").propose(target("ab ")["input_ids"], 1).tokens == []


def test_a_draft_whose_tokenizer_closes_every_text_goes_on_all_the_same(tokenizers):
    target, draft = tokenizers[0], copy.deepcopy(tokenizers[1])
    draft.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", draft.eos_token_id)]
    )
    text = "ab cd abc"
    model = FakeTypist(tokenizers[1], text)
    drafter = CrossDrafter(model, draft, target, eos=(), end=256, draft_eos={draft.eos_token_id})
    x = target("ab cd")["input_ids"]
    assert drafter.propose(x, 4).tokens == target(text)["input_ids"][len(x) : len(x) + 4]


def test_blocks_of_either_shape_come_back_from_disk(tmp_path):
    flat = Blocks("a", "c", "ngram", 0, 9, np.array([1, 2], np.int32), np.array([0, 2], np.int32))
    wide = Blocks("b", None, "x", 0, 9, np.array([[1, 2], [1, 1]], np.int32), np.array([[0, 2], [1, 1]], np.int32))
    column = np.array([0.5, 0.25], np.float32)
    both = Positions("c", "c", "n+m", 0, 9, *[column] * 5, ends=np.array([True, False]), blocks=flat)
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
        ("ngram:n=2,min=3", "min is above n"),
        ("ngram:n=3+", "No model is named"),
        ("skip:8", "'8' is no option of a skip draft"),
        ("skip:layers=0", "is no option of a skip draft"),
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
