"""Drafts with another tokenizer: what comes back in the target's tokens, and the same proofs as for every draft."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from tiny import lean, run, save_with_byte_tokenizer, text_of, tiny_llama
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specbench.acceptance.loop import Proposal
from specbench.acceptance.metrics import count
from specbench.acceptance.replay import replay
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.local import LocalEngine
from specbench.config import load_config
from specbench.drafters.cross import CrossDrafter, match_each_block
from specbench.records import Sampling


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


BYTES, WORDS = (lean(tiny_llama(size, seed=seed, sharpness=2.0)) for size, seed in ((257, 3), (262, 4)))


def cross(tokenizers, model=WORDS, eos=(256,), **more):
    target, draft = tokenizers
    ends = {"eos": eos, "end": min(eos, default=256), "draft_eos": {draft.eos_token_id}}
    return CrossDrafter(CachedModel(model, 512), draft, target, **ends, **more)


@examples(25)
@given(text=st.text("abcd ", min_size=1, max_size=20), gamma=st.integers(1, 5), limit=st.integers(2, 40))
def test_a_cross_draft_keeps_the_text_and_replays_exactly(tokenizers, text, gamma, limit):
    prompt = tokenizers[0](text)["input_ids"]
    alone = run(BYTES, None, prompt, eos={256}, max_new_tokens=limit)
    live = run(BYTES, cross(tokenizers), prompt, gamma=gamma, eos={256}, max_new_tokens=limit)
    assert live.tokens == alone.tokens
    found = match_each_block(cross(tokenizers), prompt, alone.tokens, gamma)
    expected = replay([text_of(found, limit)], gamma)
    counts = count(live.rounds, gamma)
    assert (expected.rounds[0], expected.accepted[0]) == (counts.rounds, counts.accepted)
    assert expected.reached[0].tolist() == list(counts.reached)


@pytest.mark.full
def test_a_penalty_counts_in_the_drafts_own_tokens_and_replays_exactly(tokenizers):
    sampling, seen = Sampling(repetition_penalty=1.5), []
    for text in ("ab cd abcd", "a b c d a b c d"):
        prompt = tokenizers[0](text)["input_ids"]
        alone = run(BYTES, None, prompt, eos={256}, max_new_tokens=40, sampling=sampling)
        live = run(
            BYTES,
            cross(tokenizers, repetition_penalty=1.5),
            prompt,
            gamma=3,
            eos={256},
            max_new_tokens=40,
            sampling=sampling,
        )
        assert live.tokens == alone.tokens
        found = match_each_block(cross(tokenizers, repetition_penalty=1.5), prompt, alone.tokens, 3)
        expected = replay([text_of(found, 40)], 3)
        assert (expected.rounds[0], expected.accepted[0]) == tuple(
            getattr(count(live.rounds, 3), name) for name in ("rounds", "accepted")
        )
        draft = cross(tokenizers, repetition_penalty=1e6)
        draft.begin(prompt)
        seen += draft._continue(draft._encoded(prompt), 6)
        assert not set(seen[-6:]) & set(draft._encoded(prompt)) and len(set(seen[-6:])) == 6


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


@pytest.mark.full
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
    again = replay([text_of(found, 36)], 3)
    assert (again.rounds[0], again.accepted[0]) == (len(live.rounds), sum(r.accepted for r in live.rounds))


def test_a_prompt_longer_than_the_draft_can_read_is_not_left_out(lab, tmp_path):
    """And what the draft reads is held against transformers all the same."""
    small = save_with_byte_tokenizer(tiny_llama(257, seed=7, max_position_embeddings=64), tmp_path / "small")
    keys = {"target": str(lab.target), "draft": [f"cross:{small}"], "dtype": "float32", "device": "cpu"}
    engine = LocalEngine(load_config(None, keys), 1)
    assert engine.max_context == 512
    engine.reserve(200)
    checks = engine.check_reference([list(range(3, 153))], 16, padded=False)
    assert [(one.model, one.tokens) for one in checks] == [(str(lab.target), 16), (str(small), 16)]


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
