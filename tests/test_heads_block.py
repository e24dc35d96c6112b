"""P-EAGLE heads: one pass drafts a round. Held against a head trained with the mask that `speculators` trains with."""

from __future__ import annotations

import json

import pytest
import torch
from test_cli import call
from test_heads import EVEN, PLAIN, PROMPT, TARGET, drafter_for, head_of, memory_of
from test_heads_many import PROMPTS, many_drafter
from test_heads_replay import same_rounds, scored
from test_many import many
from test_run import FakeObserver, config_for
from tiny import GREEDY, run, save_with_byte_tokenizer
from tiny_heads import READS, head_tensors, markov_llama, save_head
from tiny_peagle import DEPTHS, MASK, save_peagle, trained

from specbench.acceptance.replay import replay
from specbench.acceptance.rules import distribution
from specbench.analysis.summarise import summarise
from specbench.cost.model import RoundCosts, predicted_rounds, round_costs
from specbench.errors import ModelError
from specbench.models.heads import find_head
from specbench.records import CostPoint, Sampling
from specbench.run.session import run as session
from specbench.store import read_run
from specbench.verify.sampled import chi_square

LENGTH = 64


@pytest.fixture(scope="module")
def text():
    return run(TARGET, None, PROMPT, max_new_tokens=LENGTH).tokens


@pytest.fixture(scope="module")
def folder(text, tmp_path_factory):
    return save_peagle(tmp_path_factory.mktemp("peagle") / "head", PLAIN, (*PROMPT, *text))


@pytest.fixture(scope="module")
def head(folder):
    return head_of(folder)


def test_it_drafts_what_it_was_trained_to(head, text):
    """At every depth as often as in training: off by one anywhere, and the deeper drafts are chance."""
    right = trained(PLAIN, (*PROMPT, *text))["right"].tolist()
    accept = scored(head, text, depths=DEPTHS).accept[: LENGTH - DEPTHS - 1]
    for depth in range(DEPTHS):
        assert right[depth] > 0.4
        assert accept[:, depth].mean() == pytest.approx(right[depth], abs=0.12)


@pytest.mark.parametrize(("gamma", "eos", "cutoff"), [(1, (), 0.0), (2, (4, 18), 0.0), (3, (), 0.5), (5, (), 0.0)])
@pytest.mark.parametrize("prompt", [PROMPT, [7]])
def test_text_is_the_targets_and_rounds_are_those_of_the_replay(head, prompt, gamma, eos, cutoff):
    alone = run(TARGET, None, prompt, eos=set(eos), max_new_tokens=40).tokens
    reader, drafter = drafter_for(head, eos=eos, cutoff=cutoff)
    live = run(reader, drafter, prompt, gamma=gamma, eos=set(eos), max_new_tokens=40)
    assert live.tokens == alone
    assert eos or sum(r.accepted for r in live.rounds) > 0
    same_rounds(replay([scored(head, alone, prompt=prompt, eos=eos, limit=40)], gamma, cutoff), live, gamma)


def naive(head, x: list[int], k: int) -> torch.Tensor:
    """Logits [k, V] of k drafts after `x`, from transformers' hidden states, in one causal pass without a cache."""
    states = PLAIN(torch.tensor([x[:-1]]), output_hidden_states=True).hidden_states
    states = torch.cat([states[layer][0] for layer in head.reads], -1)
    given = head.fused(torch.cat((states, head.parts.mask_hidden.expand(k - 1, -1))))
    ids = torch.tensor([[*x[1:], *[MASK] * (k - 1)]])
    n = ids.shape[1]
    return head.logits(head.run(ids, given[None], torch.arange(n)[None], None, memory_of(head, n))[0, -k:])


@pytest.mark.parametrize("norms", [{}, {"norm_before_fc": True}, {"fc_norm": True}, {"norm_output": True}], ids=str)
def test_drafts_are_those_of_one_pass_over_transformers_states(tmp_path, folder, text, norms):
    tensors = dict(trained(PLAIN, (*PROMPT, *text))["tensors"])
    if "norm_before_fc" in norms:
        tensors["input_norm.weight"] = torch.rand(len(READS) * PLAIN.config.hidden_size)
    if "fc_norm" in norms:
        tensors |= {f"fc_norm.{i}.weight": torch.rand(PLAIN.config.hidden_size) for i in range(len(READS))}
    head = head_of(save_peagle(tmp_path, PLAIN, (), tensors=tensors, **norms))
    reader, drafter = drafter_for(head)
    reader.forward(PROMPT, keep=1)
    drafter.begin(PROMPT)
    x = [*PROMPT, text[0]]
    for accepted in (0, 2, 1, 3, 0):  # rounds that keep none, some and all of what they draft
        drafts = drafter.propose(x, 3, torch.Generator()).numbers
        assert drafts == naive(head, x, 3).argmax(-1).tolist()
        new = text[len(x) - len(PROMPT) :][: accepted + 1]
        reader.forward([x[-1], *new[:-1], *[0] * (3 - accepted)], keep=1)
        x += new
        reader.rewind(len(x) - 1)


def test_every_entry_is_that_of_a_pass_of_its_own(head):
    """At temperature 0.9, place by place and depth by depth."""
    sampling = Sampling(0.9, top_k=12)
    output = run(TARGET, None, PROMPT, sampling=sampling, max_new_tokens=9).tokens
    found = scored(head, output, sampling=sampling, depths=4).accept
    p = distribution(PLAIN(torch.tensor([[*PROMPT, *output]])).logits[0], sampling)
    for i in range(1, len(output)):
        x = [*PROMPT, *output[:i]]
        q = distribution(naive(head, x, 4), sampling)
        for j in range(min(4, len(output) - i)):
            token = output[i + j]
            expected = min(1.0, float(q[j, token] / p[len(x) + j - 1, token]))
            assert found[i - 1, j] == pytest.approx(expected, abs=2e-5)


@pytest.mark.full
def test_drafts_are_drawn_from_the_q_that_is_reported(head):
    sampling, x, generator = Sampling(1.5), [*PROMPT, 2], torch.Generator().manual_seed(0)
    reader, drafter = drafter_for(head, sampling=sampling)
    reader.forward(PROMPT, keep=1)
    drafter.begin(PROMPT)
    proposals = [drafter.propose(x, 3, generator) for _ in range(400)]
    expected = distribution(naive(head, x, 3), sampling)
    assert torch.allclose(torch.cat([q[None] for q in proposals[0].q]), expected, atol=1e-5)
    for depth in range(3):
        assert chi_square([proposal.numbers[depth] for proposal in proposals], expected[depth]) > 1e-6


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_p=0.9)])
def test_drafts_that_stay_on_the_device_are_the_same(head, sampling):
    texts = []
    for chained in (False, True):
        reader, drafter = drafter_for(head, sampling=sampling, chained=chained)
        texts.append(run(reader, drafter, PROMPT, sampling=sampling, max_new_tokens=24))
    assert (texts[0].tokens, texts[0].rounds) == (texts[1].tokens, texts[1].rounds)


@pytest.mark.parametrize(
    ("gamma", "eos", "cutoff", "sampling", "chained"),
    [
        (1, (), 0.0, GREEDY, False),
        (4, (4, 18), 0.0, GREEDY, False),
        (4, (4, 18), 0.0, GREEDY, True),
        (3, (4,), 0.5, GREEDY, False),
        (3, (4,), 0.0, Sampling(0.8, top_p=0.9), False),
        (2, (), 0.0, Sampling(repetition_penalty=1.3), False),
    ],
)
def test_every_row_of_a_batch_is_the_prompt_alone(head, gamma, eos, cutoff, sampling, chained):
    options = {"sampling": sampling, "eos": eos, "cutoff": cutoff, "chained": chained}
    reader, drafter = many_drafter(head, **options)
    together = many(reader, drafter, PROMPTS, gamma=gamma, sampling=sampling, eos=eos, limit=24)
    for row, (prompt, found) in enumerate(zip(PROMPTS, together, strict=True)):
        one, alone = drafter_for(head, **options)
        single = run(one, alone, prompt, gamma=gamma, sampling=sampling, eos=set(eos), max_new_tokens=24, seed=row)
        assert (found.tokens, found.rounds) == (single.tokens, single.rounds)
    assert sum(r.accepted for found in together for r in found.rounds) > 0


# --- what a config says


def test_the_flat_layout(tmp_path, folder, head, text):
    """As vLLM reads one: `midlayer`, the mask token by vLLM's name, the state in one row."""
    config = json.loads((folder / "config.json").read_text())
    flat = config["transformer_layer_config"] | {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": config["draft_vocab_size"],
        "ptd_token_id": MASK,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in READS]},
    }
    tensors = dict(trained(PLAIN, (*PROMPT, *text))["tensors"])
    tensors["mask_hidden"] = tensors["mask_hidden"][0]
    tensors = {name.replace("layers.0.", "midlayer."): weight for name, weight in tensors.items()}
    save_peagle(tmp_path, PLAIN, (), tensors=tensors)
    (tmp_path / "config.json").write_text(json.dumps(flat))
    other = head_of(tmp_path)
    assert (other.head.kind, other.reads, other.head.mask_token) == ("peagle", READS, MASK)
    assert torch.allclose(other.masked, head.masked, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_token_id": None}, "does not say which token masks a draft"),
        ({"mask_token_id": 24}, "masks drafts with token 24 of a vocabulary of 24"),
        ({"mask_token_id": -1}, "masks drafts with token -1"),
        ({"transformer_layer_config": [1]}, "is not one of P-EAGLE"),
    ],
    ids=str,
)
def test_a_config_amiss_is_refused(tmp_path, changes, words):
    with pytest.raises(ModelError) as error:
        find_head(str(save_peagle(tmp_path, PLAIN, (), tensors={"none": torch.zeros(1)}, **changes)))
    assert words in error.value.line()


def test_weights_of_the_other_kind_are_refused(tmp_path, text):
    with pytest.raises(ModelError, match=r"weights of .* are missing, mask_hidden first"):
        head_of(save_peagle(tmp_path / "a", PLAIN, (), layers=1, tensors=head_tensors(PLAIN, 0.1)))
    tensors = head_tensors(PLAIN, 0.1) | {"mask_hidden": torch.zeros(1, 1, 48)}
    with pytest.raises(ModelError, match="a head of its configuration has not, mask_hidden first"):
        head_of(save_head(tmp_path / "b", PLAIN, tensors=tensors))


def test_a_draft_vocabulary(tmp_path, text):
    tensors = head_tensors(PLAIN, 0.1, EVEN) | {"mask_hidden": torch.randn(1, 1, 48)}
    head = head_of(save_peagle(tmp_path, PLAIN, (), layers=1, tensors=tensors, draft_vocab_size=len(EVEN)))
    reader, drafter = drafter_for(head)
    out = run(reader, drafter, PROMPT, gamma=3, max_new_tokens=20)
    assert out.tokens == text[:20]
    with torch.inference_mode():
        drafts = drafter.propose([*PROMPT, *out.tokens], 4, torch.Generator()).numbers
    assert len(drafts) == 4
    assert set(drafts) <= set(EVEN)


# --- what a round costs


def point(model, tokens, seconds, phase="read"):
    return CostPoint(model, 100, tokens, seconds, seconds, seconds, 9, 1, phase)


def test_a_round_costs_one_pass(head, text):
    points = [point(None, n, 1.0 + 0.1 * n) for n in (1, 2, 3, 4)]
    points += [point("d", n, 1.2 + 0.1 * n, "states") for n in (1, 2, 3, 4)]
    points += [point("d", n, 0.2 + 0.05 * n) for n in (1, 2, 3, 4)]
    points += [point("d", 1, 0.25, "block"), point("d", 3, 0.33, "block")]
    costs = round_costs(points, "d", 100, 0.5)
    assert isinstance(costs, RoundCosts)
    assert costs.block_s == pytest.approx((0.25, 0.29, 0.33))
    assert costs.drafting_s(3) + costs.judge_s[3] + costs.other_s == pytest.approx(0.33 + 1.6 + 0.5)
    found = replay([scored(head, text, limit=LENGTH)], 3)
    spent = predicted_rounds(found, costs)
    rounds, accepted = float(found.started[0]), float(found.accepted[0])
    assert spent.draft_s[0] == pytest.approx(0.33 * rounds + 0.05 * (accepted - accepted / found.rounds[0]))


# --- whole runs, as a user starts them


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A target of bytes, and a head whose first drafts are often right and whose later ones at times."""
    folder, target = tmp_path_factory.mktemp("peagles"), markov_llama(context=0.06, vocab_size=257)
    tensors = head_tensors(target, 0.05) | {"mask_hidden": torch.zeros(1, 1, 48)}
    head = save_peagle(folder / "head", target, (), layers=1, tensors=tensors)
    return {"target": str(save_with_byte_tokenizer(target, folder / "target")), "draft": [str(head)]}


@pytest.fixture(scope="module")
def stored(lab, pair, tmp_path_factory):
    config = config_for(lab, tmp_path_factory.mktemp("runs"), limit=4, probe_batch_sizes="1,2", **pair)
    return read_run(session(config, "sweep", (1, 3), FakeObserver()))


def test_a_run(stored, pair):
    assert {t.identical for t in stored.trials if t.arm.gamma and not t.warmup} == {True}
    (facts,) = stored.run.drafts.values()
    assert (facts.head, facts.layer_ids, facts.reader) == ("peagle", READS, pair["draft"][0])
    mine = {(p.phase, p.tokens, p.batch) for p in stored.run.probe if p.model is not None and p.context}
    widths, drafts = range(1, 5), range(1, 4)
    assert mine == {
        *((phase, n, batch) for phase in ("read", "states") for n in widths for batch in (1, 2)),
        *(("block", n, batch) for n in drafts for batch in (1, 2)),
        *(("draft", n, 1) for n in (1, 3)),
    }
    (draft,) = summarise(stored).drafts
    for row in draft.gammas:
        assert row.replay_rounds == row.rounds
        assert 0 < row.accepted < row.drafted
        assert row.predicted_speedup > 0
    assert draft.head.first_s > 0
    assert [row.batch for row in draft.batches] == [1, 2]


@pytest.mark.full
def test_engines_are_told_of_it(stored, tmp_path):
    assert call("brief", str(stored.folder), "--to", str(tmp_path)).exit_code in (0, 3, 4)
    words = (tmp_path / "brief.md").read_text()
    assert "P-EAGLE" in words or '"parallel_drafting":true' in words
    checked = call("check", str(stored.folder))
    assert "drives no P-EAGLE head" in " ".join(checked.output.split())


@pytest.mark.full
def test_a_batch_and_a_doctor(lab, pair, tmp_path):
    config = config_for(lab, tmp_path, limit=4, batch_size=2, **pair)
    (row,) = summarise(read_run(session(config, "sweep", (3,), FakeObserver()))).drafts[0].gammas
    assert row.replay_rounds == row.rounds
    options = ["--limit", "4", "--max-new-tokens", "24", "--json"]
    found = call("doctor", *lab.args(*options, draft=pair["draft"][0]), "--target", pair["target"])
    findings = {one["code"]: one for one in json.loads(found.stdout)["findings"]}
    assert {"head-agreement", "head-depth", "head-config", "loop-replay"} <= findings.keys()
    assert findings["loop-replay"]["severity"] == "ok"
    assert findings["head-config"]["severity"] == "ok"


def test_a_mask_beyond_the_vocabulary_is_one_line(lab, pair, tmp_path):
    tensors = {"none": torch.zeros(1)}
    head = save_peagle(tmp_path, markov_llama(vocab_size=257), (), tensors=tensors, mask_token_id=257)
    found = call("sweep", *lab.args("--out", str(tmp_path / "out"), draft=str(head)), "--target", pair["target"])
    assert found.exit_code == 2
    assert "masks drafts with token 257" in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr
