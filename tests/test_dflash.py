"""DFlash heads: against transformers' own generation with them, in loop and in replay."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from conftest import full
from test_heads import loaded
from tiny import GREEDY, lean, run, text_of
from tiny_dflash import BLOCK, assistant, save_dflash
from tiny_heads import VOCAB, markov_llama

from specbench.acceptance.metrics import count
from specbench.acceptance.replay import replay
from specbench.acceptance.score import score_head
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.dflash import BlockReader
from specbench.backends.local.drafts import HeadDraft, load_head
from specbench.backends.local.probing import Prober, _load
from specbench.config import load_config
from specbench.cost.plan import ProbePlan, ProbeRequest
from specbench.drafters import parse_draft
from specbench.drafters.head import HeadDrafter
from specbench.errors import ConfigError, ModelError
from specbench.models.heads import find_head
from specbench.records import Sampling
from specbench.verify.rounds import loop_and_replay
from specbench.verify.setup import Setup

PLAIN = markov_llama(context=0.03, vocab_size=VOCAB)
TARGET = lean(PLAIN)
PROMPT = [3, 1, 4, 1, 5]
STEPS = 150
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q", "ends")


@cache
def trained(window: int | None = None):
    """An assistant that learned a little of what its target writes."""
    model = assistant(PLAIN, window=window).requires_grad_(True)
    x = torch.tensor([run(TARGET, None, [first, 7], max_new_tokens=24).tokens for first in range(VOCAB)])
    with torch.no_grad():
        states = PLAIN(x, output_hidden_states=True).hidden_states
    context = torch.cat([states[one + 1] for one in model.config.target_layer_ids], -1)
    masks = torch.full((len(x), BLOCK - 1), model.config.mask_token_id)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    with torch.enable_grad():
        for step in range(STEPS):
            at = 3 + step % (x.shape[1] - BLOCK - 3)
            block = PLAIN.model.embed_tokens(torch.cat((x[:, at : at + 1], masks), 1))
            found = model(block, context[:, :at], position_ids=torch.arange(at + BLOCK)[None]).last_hidden_state
            logits = PLAIN.lm_head(found[:, 1:]).flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, x[:, at + 1 : at + BLOCK].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.requires_grad_(False)


@cache
def head_of(layout: str = "transformers", window: int | None = None):
    folder = save_dflash(Path(mkdtemp()), trained(window), layout)
    return load_head(find_head(str(folder)), loaded(TARGET))


def drafter_for(head, *, sampling=GREEDY, eos=(), cutoff=0.0, chained=False):
    reader = CachedModel(TARGET, 512).keeping(head.reads)
    drafter = HeadDrafter(
        BlockReader(head, 512),
        reader.states.read,
        vocab_size=VOCAB,
        sampling=sampling,
        eos=eos,
        cutoff=cutoff,
        chained=chained,
    )
    return reader, drafter


def scored(head, text, *, depths=BLOCK - 1, sampling=GREEDY, prompt=PROMPT):
    reader = CachedModel(TARGET, 512).keeping(head.reads)
    found = score_head(
        reader, reader.states.read, BlockReader(head, 512), prompt, text, depths=depths, sampling=sampling, eos=()
    )
    return text_of(found, len(text))


WINDOW = 6  # the block, and little of the text


@pytest.mark.parametrize(
    ("prompt", "window"), [(PROMPT, None), (PROMPT, WINDOW), *full(([7, 2], None), ([11, 3, 3, 8, 20, 1, 6], WINDOW))]
)
def test_rounds_are_those_of_transformers(prompt, window):
    model, passes = trained(window), []
    hook = PLAIN.model.register_forward_hook(lambda *_, **__: passes.append(1))
    theirs = PLAIN.generate(
        torch.tensor([prompt]),
        assistant_model=model,
        speculation_type="dflash",
        do_sample=False,
        max_new_tokens=48,
        eos_token_id=None,
        pad_token_id=0,
    )
    hook.remove()
    reader, drafter = drafter_for(head_of(window=window))
    ours = run(reader, drafter, prompt, gamma=BLOCK - 1, max_new_tokens=48)
    assert theirs[0, len(prompt) :].tolist() == ours.tokens
    assert len(passes) == len(ours.rounds) + 1  # one reads the prompt
    assert 0 < sum(r.accepted for r in ours.rounds) < sum(r.drafted for r in ours.rounds)


@pytest.mark.parametrize(
    ("gamma", "layout", "window"),
    [(1, "transformers", None), (2, "transformers", None), (BLOCK - 1, "transformers", None)]
    + [(BLOCK - 1, layout, WINDOW) for layout in ("transformers", "speculators")],
)
def test_text_is_kept_and_replay_is_the_loop(gamma, layout, window):
    head = head_of(layout, window)
    reader, drafter = drafter_for(head)
    live = run(reader, drafter, PROMPT, gamma=gamma, max_new_tokens=48)
    text = run(TARGET, None, PROMPT, max_new_tokens=48).tokens
    assert live.tokens == text
    counts, found = count(live.rounds, gamma), replay([scored(head, text)], gamma)
    assert found.rounds.tolist() == [counts.rounds]
    assert found.survived[0].tolist() == list(counts.survived)


@pytest.mark.full
def test_sampled_replay_is_within_error():
    sampling, live, expected, rounds = Sampling(1.0), 0, 0.0, 0
    for seed in range(60):
        reader, drafter = drafter_for(head_of(), sampling=sampling)
        out = run(reader, drafter, PROMPT, gamma=3, max_new_tokens=32, sampling=sampling, seed=seed)
        live += sum(r.accepted for r in out.rounds)
        rounds += len(out.rounds)
        expected += float(replay([scored(head_of(), out.tokens, sampling=sampling)], 3).accepted.sum())
    assert live / rounds == pytest.approx(expected / rounds, abs=0.08)


@pytest.mark.parametrize("layout", ["authors", "speculators"])
def test_layouts_are_one_head(layout):
    one, other = head_of(), head_of(layout)
    assert other.reads == one.reads
    assert other.block_size == one.block_size
    text = run(TARGET, None, PROMPT, max_new_tokens=24).tokens
    assert (scored(one, text).accept == scored(other, text).accept).all()


def test_drafts_that_stay_on_the_device_are_the_same():
    texts = []
    for chained in (False, True):
        reader, drafter = drafter_for(head_of(), chained=chained)
        texts.append(run(reader, drafter, PROMPT, gamma=3))
    assert texts[0].rounds == texts[1].rounds


def test_a_block_is_all_that_a_round_drafts(tmp_path):
    head = find_head(str(save_dflash(tmp_path, assistant(PLAIN))))
    assert (head.kind, head.most) == ("dflash", BLOCK - 1)


def test_the_doctor_asks_no_more_than_a_block_of_a_round(tmp_path):
    """Of blocks below its own gamma too."""
    folder = save_dflash(tmp_path, trained(), block_size=3)
    draft = HeadDraft(parse_draft(str(folder)), load_head(find_head(str(folder)), loaded(TARGET)))
    prompts = [PROMPT, PROMPT[::-1]]
    bed = Setup(loaded(TARGET), [draft], prompts, sampling=GREEDY, eos=frozenset(), max_new_tokens=20, dtype="float32")
    found = loop_and_replay(bed, bed.drafts[0])
    assert found.severity == "ok", found.said
    assert max(one.drafted for live, _ in bed.with_draft(bed.drafts[0]) for one in live.rounds) == 2


def test_a_probe_times_it_in_no_batch():
    plan = ProbePlan((20,), (20,), (9,), (9,), (1, 2), (1, 2), 2, 2, 2)
    prober = Prober({None: TARGET}, plan, PROMPT, device="cpu", seed=0, sampling=GREEDY, heads={"d": head_of()})
    assert {(point.model, point.batch) for point in prober.run().points} == {(None, 1), (None, 2), ("d", 1)}


def test_a_probe_of_longer_rounds_is_refused_before_anything_is_loaded(tmp_path):
    folder = save_dflash(tmp_path / "head", assistant(PLAIN))
    config = load_config(None, {"target": str(tmp_path / "none"), "draft": [str(folder)], "gamma": f"1,{BLOCK}"})
    with pytest.raises(ConfigError, match=rf"drafts {BLOCK - 1} tokens in a round.*Use a gamma of up to {BLOCK - 1}"):
        _load(config, ProbeRequest(), "cpu", lambda _: None)


@pytest.mark.parametrize("layout", ["transformers", "speculators"])
@pytest.mark.parametrize("two_way", [False, True])
def test_what_a_window_hides(layout, two_way):
    """Block of 5 after 8 kept states and 2 new ones, against the words of either layout, place by place."""
    head = head_of(layout, WINDOW)
    kept, new, changed = 8, 2, copy.copy(head)
    changed.options = replace(head.options, two_way=two_way)
    length = kept + new + BLOCK
    at = torch.arange(kept, length)[None]
    seen = changed.seen(torch.ones(1, 1, BLOCK, length, dtype=torch.bool), at, WINDOW)[0, 0]
    anchor = kept + new
    for row, own in enumerate(range(anchor, length)):
        for key in range(length):
            sees = abs(own - key) <= WINDOW
            if layout == "speculators":
                sees = (two_way or key <= own) if key >= anchor else key >= anchor - WINDOW
            assert bool(seen[row, key]) == sees, (own, key)


CASES = {
    "no size": (
        {"layer_types": ["sliding_attention"] * 2, "sliding_window": None},
        "has sliding_attention",
    ),
    "no mask": ({"mask_token_id": None}, "does not say which token masks a draft"),
    "no block": ({"block_size": 1}, "has a block of 1 tokens"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_known_is_refused(tmp_path, case):
    changes, words = CASES[case]
    with pytest.raises(ModelError) as error:
        find_head(str(save_dflash(tmp_path, assistant(PLAIN), **changes)))
    assert words in error.value.line()
