"""A target's own multi-token-prediction layer: against transformers' `use_mtp`, in loop and in replay."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from conftest import full
from tiny import GREEDY, run, text_of
from tiny_mtp import VOCAB, configured, save_own, save_written, without
from transformers import AutoModelForCausalLM

from specbench.acceptance.metrics import count
from specbench.acceptance.replay import replay
from specbench.acceptance.score import score_head
from specbench.backends.local import probing
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafts import load_head, reader_of
from specbench.backends.local.headreader import ManyHeadReader
from specbench.backends.local.mtp import load_mtp
from specbench.backends.local.ragged import RaggedModel
from specbench.config import load_config
from specbench.cost.plan import ProbeRequest
from specbench.drafters.head import HeadDrafter, ManyHeadDrafter
from specbench.errors import ConfigError, ModelError
from specbench.models import LoadedModel
from specbench.models.heads import find_head, require_fit
from specbench.records import Sampling

PROMPT = [3, 1, 4, 1, 5]
KINDS = ["deepseek_v3", *full("glm4_moe"), "qwen3_next", *full("qwen3_5_text")]
ROWS = ["deepseek_v3*3", *full("glm4_moe*2")]
NUMBERS = ("accept", "overlap", "confidence", "log_p", "log_q", "ends")


@cache
def target_of(kind: str, noise: float = 0.2) -> LoadedModel:
    """`kind` is a type of model, with the number of its layers where these are several: deepseek_v3*3."""
    kind, _, count = kind.partition("*")
    folder = save_own(Path(mkdtemp()), kind, noise, count=int(count or 1))
    model = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    return LoadedModel(str(folder), model, None, "content:1", 0, 0, 512)


@cache
def head_of(kind: str):
    return load_mtp(target_of(kind))


def drafter_for(kind: str, *, sampling=GREEDY, cutoff=0.0):
    head = head_of(kind)
    reader = CachedModel(target_of(kind).model, 512).keeping(head.reads)
    memory = reader_of(head, 512)
    return reader, HeadDrafter(memory, reader.states.read, vocab_size=VOCAB, sampling=sampling, eos=(), cutoff=cutoff)


def alone(kind: str, prompt=PROMPT, n=48):
    return run(CachedModel(target_of(kind).model, 512), None, prompt, max_new_tokens=n).tokens


@pytest.mark.parametrize(("kind", "gamma"), [*((k, g) for k in ROWS[:1] for g in (2, 3)), *full(("glm4_moe*3", 3))])
def test_text_of_several_layers_is_the_targets_own(kind, gamma):
    test_text_is_the_targets_own_and_some_drafts_are_kept(kind, gamma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1, 3])
def test_text_is_the_targets_own_and_some_drafts_are_kept(kind, gamma):
    reader, drafter = drafter_for(kind)
    out = run(reader, drafter, PROMPT, gamma=gamma, max_new_tokens=48)
    assert out.tokens == alone(kind)
    accepted, drafted = (sum(getattr(r, name) for r in out.rounds) for name in ("accepted", "drafted"))
    assert 0 < accepted < drafted


LONGER = [11, 3, 3, 8, 20, 1, 6]


# A prompt shorter than the layers are many is too short for transformers.
@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        *(("deepseek_v3", PROMPT), ("deepseek_v3", [7, 2]), ("deepseek_v3*3", LONGER)),
        *full(("deepseek_v3", LONGER), ("glm4_moe", PROMPT), ("glm4_moe", [7, 2]), ("deepseek_v3*3", PROMPT)),
        *full(("deepseek_v3*2", PROMPT), ("glm4_moe*3", PROMPT), ("glm4_moe*3", LONGER)),
    ],
)
def test_rounds_are_those_of_transformers(kind, prompt):
    """`generate(use_mtp=True)` drafts one token a layer in every round: as many passes of the target."""
    model, passes, layers = target_of(kind).model, [], int(kind.partition("*")[2] or 1)
    # By itself it looks for the layer after the 61st of DeepSeek-V3, or the 46th and 92nd of GLM-4.5.
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[234]\."]
    hook = model.model.register_forward_hook(lambda *_, **__: passes.append(1))
    theirs = model.generate(
        torch.tensor([prompt]), use_mtp=True, do_sample=False, max_new_tokens=48, eos_token_id=None, pad_token_id=0
    )
    hook.remove()
    reader, drafter = drafter_for(kind)
    ours = run(reader, drafter, prompt, gamma=layers, max_new_tokens=48)
    assert theirs[0, len(prompt) :].tolist() == ours.tokens
    assert len(passes) == len(ours.rounds) + 1  # one reads the prompt
    assert 0 < sum(r.accepted for r in ours.rounds) < sum(r.drafted for r in ours.rounds)


def naive(kind: str, x: list[int], drafts: list[int]) -> torch.Tensor:
    """Logits of what is drafted after `x` and `drafts`, in one pass without a cache over transformers' states."""
    head, model = head_of(kind), target_of(kind).model
    given = model(torch.tensor([x[:-1]]), output_hidden_states=True).hidden_states[-1]
    ids = x[1:]
    for layer, draft in enumerate([*drafts, None]):
        if head.count > 1:  # each layer over all places, beside the tokens one further on
            own = head.run(torch.tensor([ids]), given, torch.arange(len(ids))[None], None, None, layer)
            ids, given = [*ids[1:], draft], own
            continue
        own = head.run(torch.tensor([ids]), given, torch.arange(len(ids))[None], None, None)
        if draft is not None:
            ids, given = [*ids, draft], torch.cat((given, own[:, -1:]), 1)
    return head.logits(own[0, -1:])[0]


@pytest.mark.parametrize("kind", [*KINDS, *ROWS])
def test_logits_are_those_of_one_pass_over_transformers_states(kind):
    reader, drafter = drafter_for(kind)
    text = alone(kind, n=12)
    reader.rewind(0)
    reader.forward(PROMPT, keep=1)
    drafter.begin(PROMPT)
    x = [*PROMPT, text[0]]
    for accepted in (0, 2, 1, 0):  # rounds that keep none, some and all of what they draft
        drafts = drafter.propose(x, head_of(kind).head.most or 3, torch.Generator()).numbers
        assert drafts == [int(naive(kind, x, drafts[:depth]).argmax()) for depth in range(len(drafts))]
        new = text[len(x) - len(PROMPT) :][: accepted + 1]
        reader.forward([x[-1], *drafts], keep=1)
        reader.rewind(len(x))
        if new[:-1]:
            reader.forward(new[:-1], keep=1)
        x += new


@pytest.mark.parametrize("kind", [*KINDS, *ROWS])
def test_replay_is_the_loop(kind):
    text = alone(kind)
    head = head_of(kind)
    reader = CachedModel(target_of(kind).model, 512).keeping(head.reads)
    found = score_head(
        reader,
        reader.states.read,
        reader_of(head, 512),
        PROMPT,
        text,
        depths=head.head.most or 5,
        sampling=GREEDY,
        eos=(),
    )
    scored = text_of(found, 48)
    for gamma in (1, 2, min(5, head.head.most or 5)):
        reader, drafter = drafter_for(kind)
        live = run(reader, drafter, PROMPT, gamma=gamma, max_new_tokens=48)
        counts, ours = count(live.rounds, gamma), replay([scored], gamma)
        assert ours.rounds.tolist() == [counts.rounds]
        assert ours.survived[0].tolist() == list(counts.survived)


@pytest.mark.full
def test_sampled_replay_is_within_error():
    sampling = Sampling(1.0)
    head = head_of("deepseek_v3")
    live, expected, rounds = 0, 0.0, 0
    for seed in range(60):
        reader, drafter = drafter_for("deepseek_v3", sampling=sampling)
        out = run(reader, drafter, PROMPT, gamma=2, max_new_tokens=32, sampling=sampling, seed=seed)
        live += sum(r.accepted for r in out.rounds)
        rounds += len(out.rounds)
        reader = CachedModel(target_of("deepseek_v3").model, 512).keeping(head.reads)
        found = score_head(
            reader, reader.states.read, reader_of(head, 512), PROMPT, out.tokens, depths=2, sampling=sampling, eos=()
        )
        scored = text_of(found, 32)
        expected += float(replay([scored], 2).accepted.sum())
    assert live / rounds == pytest.approx(expected / rounds, abs=0.08)


def test_batches_are_the_same_texts():
    from specbench.acceptance.many import generate_many
    from specbench.clock import Stopwatch

    head, prompts = head_of("deepseek_v3"), [PROMPT, [7, 2], [9, 9, 1]]
    many = RaggedModel(target_of("deepseek_v3").model, 128, 3).keeping(head.reads)
    drafter = ManyHeadDrafter(ManyHeadReader(head, many.states, 128), vocab_size=VOCAB, sampling=GREEDY, eos=())
    found = generate_many(
        many,
        drafter,
        prompts,
        gamma=3,
        sampling=GREEDY,
        eos=(),
        max_new_tokens=24,
        generators=[torch.Generator() for _ in prompts],
        clock=Stopwatch(),
    )
    for prompt, out in zip(prompts, found, strict=True):
        reader, single = drafter_for("deepseek_v3")
        one = run(reader, single, prompt, gamma=3, max_new_tokens=24)
        assert (out.tokens, out.rounds) == (one.tokens, one.rounds)


def test_its_target_is_left_as_it_was():
    target = target_of("qwen3_next")
    before = target.model.config.to_dict()
    load_mtp(target)
    assert target.model.config.to_dict() == before


def test_a_probe_of_longer_rounds_is_refused(monkeypatch):
    monkeypatch.setattr(probing, "load_model", lambda *_, **__: target_of("deepseek_v3*3"))
    monkeypatch.setattr(probing, "load_drafts", None)
    with pytest.raises(ConfigError, match=r"mtp drafts 3 tokens in a round, and gamma goes up to 4"):
        probing._load(load_config(None, {"draft": ["mtp"], "gamma": "4"}), ProbeRequest(), "cpu", lambda _: None)


def scores_of(head, target, text):
    reader = CachedModel(target.model, 512).keeping(head.reads)
    return score_head(reader, reader.states.read, reader_of(head, 512), PROMPT, text, depths=3, sampling=GREEDY, eos=())


@pytest.mark.parametrize("kind", ["qwen3_next", *full("qwen3_5_text")])
def test_a_layer_that_speculators_wrote_is_the_targets_own(tmp_path, kind):
    target, text = target_of(kind), alone(kind, n=24)
    head = find_head(str(save_written(tmp_path / "head", Path(target.name))))
    assert (head.kind, head.most) == ("mtp", None)
    written, own = (scores_of(one, target, text) for one in (load_head(head, target), head_of(kind)))
    assert 0 < written.accept[:, 0].mean() < 1
    assert (written.accept == own.accept).all()
    assert written.log_q == pytest.approx(own.log_q, abs=1e-5)


WRONG = {
    "another size": ("qwen3_next", {"num_hidden_layers": 9}, "was made for 9 layers of qwen3_next, and"),
    "two": ("qwen3_next", {}, "has 2 multi-token-prediction layers, not one"),
    "layers of Llama": ("qwen3_next", {"model_type": "llama"}, "is made of 'llama' layers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_written_layer_of_another_target_is_refused(tmp_path, case):
    kind, changes, words = WRONG[case]
    target = target_of(kind)
    layer = json.loads((Path(target.name) / "config.json").read_text()) | changes
    layer |= {"layer_types": ["full_attention"] * layer["num_hidden_layers"]}
    more = {"num_nextn_predict_layers": 2} if case == "two" else {"transformer_layer_config": layer}
    folder = save_written(tmp_path / "head", Path(target.name), **more)
    with pytest.raises(ModelError) as error:
        require_fit(find_head(str(folder)), "tiny", target.model.config)
    assert words in error.value.line()


REFUSED = {
    "no such layers": ("llama", {}, (), "has no multi-token-prediction layers that are known here"),
    "none by its config": ("deepseek_v3", {"num_nextn_predict_layers": 0}, (), "has no multi-token-prediction layer"),
    "three": ("qwen3_next", {"num_nextn_predict_layers": 3}, (), "3 multi-token-prediction layers, not one"),
    "none by its weights": ("qwen3_next", {}, ("mtp.",), "holds no weights of multi-token-prediction layers"),
    "a part": ("deepseek_v3", {}, ("model.layers.2.self_attn.o_proj",), "is missing"),
    "8 bits": ("qwen3_next", {}, (), "runs in 8 bits or fewer here"),
}


@pytest.mark.parametrize(
    "case", ["no such layers", "none by its weights", "8 bits", *full("none by its config", "three", "a part")]
)
def test_refusals_are_one_line(tmp_path, case):
    kind, changes, gone, words = REFUSED[case]
    if kind == "llama":
        from tiny import tiny_llama

        tiny_llama(VOCAB, 1).save_pretrained(tmp_path / "target")
        folder = tmp_path / "target"
    else:
        folder = save_own(tmp_path, kind)
    without(folder, *gone) if gone else None
    configured(folder, **changes)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if case == "8 bits":
        model.lm_head.to(torch.float8_e4m3fn)
    with pytest.raises(ModelError) as error:
        load_mtp(LoadedModel(str(folder), model, None, None, 0, 0, 512))
    assert words in error.value.line()
    assert "\n" not in error.value.line()
