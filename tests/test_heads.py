"""EAGLE-3 heads: read from their config, driven in the loop, and held against transformers' own hidden states."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from families.recipes import model
from gguf import GGUFWriter
from tiny import GREEDY, lean, run
from tiny_heads import HIDDEN, LAYERS, READS, VOCAB, head_config, head_tensors, markov_llama, save_head

from specbench.acceptance.rules import distribution
from specbench.backends.local.cache import RewindableCache
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafts import load_head
from specbench.backends.local.headreader import HeadReader
from specbench.drafters import parse_draft, require_in_process
from specbench.drafters.head import HeadDrafter
from specbench.errors import ConfigError, ModelError
from specbench.models import LoadedModel
from specbench.models.heads import find_head, kind_of, require_fit
from specbench.records import Sampling
from specbench.verify.sampled import chi_square

PLAIN = markov_llama(context=0.06)
TARGET = lean(PLAIN)
MARKOV = lean(markov_llama())
PROMPT = [3, 1, 4, 1, 5]
EVEN = list(range(0, VOCAB, 2))


def loaded(model) -> LoadedModel:
    return LoadedModel("tiny", model, None, None, 0, 0, 512)


def head_of(folder: Path, model=TARGET):
    found = find_head(str(folder))
    assert found is not None
    return load_head(found, loaded(model))


def drafter_for(head, model=TARGET, *, sampling=GREEDY, eos=(), cutoff=0.0, chained=False, reads=None):
    """A target that keeps its states, and the head's drafter on it."""
    reader = CachedModel(model, 512).keeping(reads or head.reads)
    drafter = HeadDrafter(
        HeadReader(head, 512),
        reader.states.read,
        vocab_size=VOCAB,
        sampling=sampling,
        eos=eos,
        cutoff=cutoff,
        chained=chained,
    )
    return reader, drafter


@pytest.mark.parametrize("gamma", [1, 2, 3, 6])
def test_a_perfect_head_is_always_accepted(tmp_path, gamma):
    reader, drafter = drafter_for(head_of(save_head(tmp_path, MARKOV), MARKOV), MARKOV)
    out = run(reader, drafter, PROMPT, gamma=gamma)
    assert out.tokens == run(MARKOV, None, PROMPT).tokens
    assert all(r.drafted == r.accepted for r in out.rounds)


@pytest.mark.parametrize("noise", [0.1, 3.0])
@pytest.mark.parametrize("gamma", [1, 4])
@pytest.mark.parametrize("drafted", [None, EVEN])
def test_text_is_the_targets_own(tmp_path, noise, gamma, drafted):
    reader, drafter = drafter_for(head_of(save_head(tmp_path, PLAIN, noise, drafted)))
    out = run(reader, drafter, PROMPT, gamma=gamma)
    assert out.tokens == run(TARGET, None, PROMPT).tokens


def test_only_its_vocabulary_is_drafted(tmp_path):
    reader, drafter = drafter_for(head_of(save_head(tmp_path, PLAIN, 0.1, EVEN)))
    reader.forward(PROMPT, keep=1)
    drafter.begin(PROMPT)
    drafts = drafter.propose([*PROMPT, 2], 8, torch.Generator()).numbers
    assert len(drafts) == 8
    assert set(drafts) <= set(EVEN)


def naive(head, model, x: list[int], drafts: list[int]) -> torch.Tensor:
    """Logits [V] of what the head drafts after `x` and `drafts`, from transformers' hidden states, in one pass without
    a cache: pairs of the text, then one for each draft beside the head's own output."""
    states = model(torch.tensor([x[:-1]]), output_hidden_states=True).hidden_states
    given = head.fused(torch.cat([states[layer][0] for layer in head.reads], -1))
    ids = x[1:]
    for draft in [*drafts, None]:
        n = len(ids)
        memory = memory_of(head, n)
        own = head.run(torch.tensor([ids]), given[None], torch.arange(n)[None], None, memory)
        if draft is not None:
            ids, given = [*ids, draft], torch.cat((given, own[0, -1:]))
    return head.logits(own[0, -1:])[0]


def memory_of(head, n):
    return RewindableCache(head.config, n)


@pytest.mark.parametrize("norm_output", [False, True])
@pytest.mark.parametrize("target", [PLAIN, TARGET], ids=["transformers' layers", "lean layers"])
def test_logits_are_those_of_one_pass_over_transformers_states(tmp_path, target, norm_output):
    tensors = head_tensors(PLAIN, 0.2, sharp=0.5)
    head = head_of(save_head(tmp_path, PLAIN, tensors=tensors, norm_output=norm_output), target)
    reader, drafter = drafter_for(head, target)
    text = run(TARGET, None, PROMPT, max_new_tokens=12).tokens
    reader.forward(PROMPT, keep=1)
    drafter.begin(PROMPT)
    x = [*PROMPT, text[0]]
    for accepted in (0, 2, 1, 0):  # rounds that keep none, some and all of what they draft
        drafts = drafter.propose(x, 3, torch.Generator()).numbers
        again = [int(naive(head, PLAIN, x, drafts[:depth]).argmax()) for depth in range(3)]
        assert drafts == again
        new = text[len(x) - len(PROMPT) :][: accepted + 1]
        reader.forward([x[-1], *new[:-1], *[0] * (3 - accepted)], keep=1)
        x += new
        reader.rewind(len(x) - 1)


def test_drafts_are_drawn_from_the_q_that_is_reported(tmp_path):
    """And q is the head's own after the settings, nothing of it outside its vocabulary."""
    sampling = Sampling(1.3, top_k=9)
    head = head_of(save_head(tmp_path, PLAIN, 0.5, EVEN))
    reader, drafter = drafter_for(head, sampling=sampling)
    x, generator = [*PROMPT, 2], torch.Generator().manual_seed(0)
    reader.forward(PROMPT, keep=1)
    drafter.begin(PROMPT)
    proposals = [drafter.propose(x, 2, generator) for _ in range(400)]
    first, second = proposals[0].q
    odd = [token for token in range(VOCAB) if token not in EVEN]
    assert float(first[odd].sum() + second[odd].sum()) == 0
    assert torch.allclose(first, distribution(naive(head, PLAIN, x, [])[None], sampling)[0], atol=1e-5)
    own = naive(head, PLAIN, x, proposals[0].numbers[:1])
    assert torch.allclose(second, distribution(own[None], sampling)[0], atol=1e-5)
    assert chi_square([proposal.numbers[0] for proposal in proposals], first) > 1e-6
    assert float(first.max()) < 0.9


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.9)])
def test_drafts_that_stay_on_the_device_are_the_same(tmp_path, sampling):
    head = head_of(save_head(tmp_path, PLAIN, 0.1))
    texts = []
    for chained in (False, True):
        reader, drafter = drafter_for(head, sampling=sampling, chained=chained)
        texts.append(run(reader, drafter, PROMPT, sampling=sampling, max_new_tokens=24))
    assert texts[0].tokens == texts[1].tokens
    assert texts[0].rounds == texts[1].rounds


# --- what a config says


def test_a_model_is_no_head(lab):
    assert find_head(str(lab.near)) is None


def test_the_original_layout(tmp_path):
    """Flat, `midlayer`, named for the class of the target."""
    new, old = save_head(tmp_path / "new", PLAIN, 0.1), tmp_path / "old"
    config = head_config(PLAIN)
    flat = config["transformer_layer_config"] | {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": VOCAB}
    # Their heads have no norm before the residual, and layers are named for the state after them.
    flat["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in READS]}
    tensors = {n.replace("layers.0.", "midlayer."): t for n, t in head_tensors(PLAIN, 0.1).items()}
    save_head(old, PLAIN, tensors=tensors)
    (old / "config.json").write_text(json.dumps(flat))
    one, other = head_of(new), head_of(old)
    assert other.reads == one.reads == READS
    assert not other.head.norm_before_residual
    assert torch.equal(one.parts.fc.weight, other.parts.fc.weight)


def test_without_layer_ids_they_are_those_of_eagle_3(tmp_path):
    found = find_head(str(save_head(tmp_path, PLAIN, eagle_aux_hidden_state_layer_ids=None)))
    assert found.reads(30) == (2, 15, 27)


REFUSED = {
    "hidden size": ({"target_hidden_size": 32}, "states of width 32"),
    "layer beyond": ({"eagle_aux_hidden_state_layer_ids": [1, 2, LAYERS]}, f"before layer {LAYERS}"),
    "layer before": ({"eagle_aux_hidden_state_layer_ids": [-1, 2, 3]}, "before layer -1"),
    "vocabulary": (
        {"transformer_layer_config": head_config(PLAIN)["transformer_layer_config"] | {"vocab_size": 99}},
        "a vocabulary of 99 tokens",
    ),
    "verifier": (
        {"speculators_config": {"verifier": {"name_or_path": "org/q", "architectures": ["Qwen3ForCausalLM"]}}},
        "was trained for org/q (Qwen3ForCausalLM), and tiny is LlamaForCausalLM",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_head_of_another_target_is_refused_by_its_config(tmp_path, case):
    changes, words = REFUSED[case]
    folder = save_head(tmp_path, PLAIN, **changes)
    (folder / "model.safetensors").unlink()
    config = copy.deepcopy(PLAIN.config)
    config.architectures = ["LlamaForCausalLM"]
    with pytest.raises(ModelError) as error:
        require_fit(find_head(str(folder)), "tiny", config)
    assert words in error.value.line()


GEMMA = dict.fromkeys(("speculators_model_type", "draft_vocab_size")) | {
    "model_type": "gemma4_assistant",
    "architectures": ["Gemma4AssistantForCausalLM"],
}

UNKNOWN = {
    "dflash 2": ({"speculators_model_type": "dflash2"}, "of kind DFlash 2"),
    "gemma": (GEMMA, "of kind Gemma 4 assistant"),
    "new": ({"speculators_model_type": "frobnicate"}, "frobnicate"),
    "layers": (
        {"transformer_layer_config": head_config(PLAIN)["transformer_layer_config"] | {"model_type": "mistral"}},
        "made of 'mistral' layers",
    ),
    "no vocabulary": (
        {"transformer_layer_config": head_config(PLAIN)["transformer_layer_config"] | {"vocab_size": None}},
        "does not say how many tokens its target knows",
    ),
    "draft vocabulary": ({"draft_vocab_size": VOCAB + 1}, f"drafts {VOCAB + 1} tokens"),
    "nonsense": ({"transformer_layer_config": [1]}, "is not one of EAGLE-3"),
    **{
        key: (
            {"transformer_layer_config": head_config(PLAIN)["transformer_layer_config"] | {key: value}},
            f"does not take the layers in config.json of PATH: Validation error for field '{key}'",
        )
        for key, value in (
            ("attention_bias", None),
            ("hidden_act", None),
            ("max_position_embeddings", 2048.0),
            ("rms_norm_eps", "1e-6"),
        )
    },
}


@pytest.mark.parametrize("case", UNKNOWN, ids=str)
def test_what_is_not_known_is_refused_by_name(tmp_path, case):
    changes, words = UNKNOWN[case]
    with pytest.raises(ModelError) as error:
        find_head(str(save_head(tmp_path, PLAIN, tensors={}, **changes)))
    assert words.replace("PATH", str(tmp_path)) in error.value.line()


def mapped(**changes):
    return {"drafted": EVEN} | changes


def wrong(name, change):
    tensors = head_tensors(PLAIN, drafted=EVEN)
    tensors[name] = change(tensors[name])
    return tensors


DAMAGED = {
    "sign of d2t": (wrong("d2t", lambda t: -t), "gives 11 tokens the id of another"),
    "absolute d2t": (wrong("d2t", lambda t: t + torch.arange(len(t))), "leads outside the target's 24 tokens"),
    "shifted d2t": (wrong("d2t", lambda t: t + 1), "12 of 12 tokens are not in t2d"),
    "length of t2d": (wrong("t2d", lambda t: t[:-1]), "t2d of"),
    "shape": (wrong("fc.weight", lambda t: t[:, :HIDDEN]), "fc.weight of"),
    "missing": ({n: t for n, t in head_tensors(PLAIN, drafted=EVEN).items() if "hidden_norm" not in n}, "missing"),
    "no map": ({n: t for n, t in head_tensors(PLAIN, drafted=EVEN).items() if n != "d2t"}, "d2t is missing"),
    "strange": (head_tensors(PLAIN, drafted=EVEN) | {"mask_embedding": torch.zeros(4)}, "mask_embedding"),
}


@pytest.mark.parametrize("case", DAMAGED, ids=str)
def test_weights_that_do_not_fit_are_refused(tmp_path, case):
    tensors, words = DAMAGED[case]
    with pytest.raises(ModelError) as error:
        head_of(save_head(tmp_path, PLAIN, tensors=tensors, drafted=EVEN))
    assert words in error.value.line()


def test_baseline_passes_keep_no_states(tmp_path):
    reader = CachedModel(TARGET, 64)
    twin = reader.keeping(READS)
    reader.forward(PROMPT, keep=1)
    assert twin.states._kept is None
    twin.rewind(0)
    twin.forward(PROMPT, keep=1)
    assert twin.states.read(0, len(PROMPT)).shape == (len(PROMPT), len(READS) * HIDDEN)
    assert reader.cache.get_seq_length() == len(PROMPT)


@pytest.mark.parametrize(("family", "layer"), [("gpt2", 1), ("opt", 2)])
def test_a_target_whose_layers_or_norm_are_called_otherwise_is_refused(family, layer):
    reader = CachedModel(model(family), 16)
    with pytest.raises(ModelError, match=rf"\({family}\) has no layers here whose states"):
        reader.keeping((layer,))


def test_a_head_beyond_transformers_own_layers_is_refused(tmp_path, monkeypatch):
    """A lean layer that gives something else than transformers' is found when the head is loaded."""
    from specbench.backends.local import eagle3

    right = eagle3.LeanLayer.run
    monkeypatch.setattr(
        eagle3.LeanLayer, "run", lambda self, x, frame, update, read=None: right(self, x, frame, update, read) * 1.5
    )
    with pytest.raises(ModelError, match="gives other drafts here"):
        head_of(save_head(tmp_path, PLAIN, 0.1))


@pytest.mark.parametrize("text", ["p/head,sample=greedy,cutoff=0.3", "p/head,cutoff=0.3,sample=greedy"])
def test_options_come_in_any_order(text):
    spec = parse_draft(text)
    assert (spec.model, spec.cutoff, spec.greedy) == ("p/head", 0.3, True)
    assert spec.sampling(Sampling(0.8, repetition_penalty=1.1)) == Sampling(repetition_penalty=1.1)


def test_another_way_to_draft_is_refused():
    with pytest.raises(ConfigError, match="'beam' is no way to draft"):
        parse_draft("p/head,sample=beam")


def test_what_only_a_server_drafts_with_is_refused_in_process():
    with pytest.raises(ConfigError, match=r"Only a server drafts like this.*--engine"):
        require_in_process(parse_draft("ngram-map-k:n=3"))
    require_in_process(parse_draft("ngram:n=3"))


def test_a_gguf_file_says_what_it_is(tmp_path):
    for architecture, kind in (("eagle3", "eagle3"), ("dflash", "dflash"), ("llama", None)):
        path = tmp_path / f"{architecture}.gguf"
        writer = GGUFWriter(path, architecture)
        writer.add_vocab_size(4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert kind_of(str(path)) == kind
    path.write_bytes(b"GGUF")
    assert kind_of(str(path)) is None and kind_of(str(tmp_path / "none.gguf")) is None
