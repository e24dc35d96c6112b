"""Planted faults are named as broken, each by its own code; a poor draft is not."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import full
from test_cli import call
from test_docs import PAGES
from tiny import near_copy, save_with_byte_tokenizer, tiny_llama

from specbench.acceptance import loop
from specbench.acceptance.loop import Proposal
from specbench.backends.local.cached import CachedModel
from specbench.backends.local.drafting import Draft
from specbench.drafters.model import ModelDrafter
from specbench.drafters.spec import parse_draft
from specbench.models import LoadedModel, load_model
from specbench.records import Sampling
from specbench.verify import Examination, doctor, machine, sampled, texts
from specbench.verify.doctor import Setups, examine
from specbench.verify.setup import Setup

VOCAB = 257
EOS = frozenset({256})
TARGET = tiny_llama(VOCAB, seed=1)
NEAR = near_copy(TARGET, noise=0.05)
GREEDY, WARM = Sampling(), Sampling(0.7)
PROMPTS = [[7, 21, 40, 99, 3, 250, 18], [90, 91, 5, 5, 17], [200, 1, 2, 3, 150, 77], [60, 61, 62, 63]]


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    """Planted faults are coarse; real ones get more."""
    monkeypatch.setattr(sampled, "DRAWS", 200)
    monkeypatch.setattr(sampled, "TEXTS", 250)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = save_with_byte_tokenizer(tiny_llama(VOCAB, seed=1), tmp_path_factory.mktemp("t"))
    return load_model(str(folder), dtype="float32", device="cpu").tokenizer


def loaded_as(name, model, tokenizer):
    parameters = sum(p.numel() for p in model.parameters())
    return LoadedModel(name, model, tokenizer, None, parameters, 4 * parameters, 512)


def bed_of(tokenizer, draft, *, sampling=GREEDY, spec="near", target=TARGET, tokens=24):
    target = loaded_as("target", target, tokenizer)
    model = None if draft is None else loaded_as("near", draft, tokenizer)
    drafts = [Draft(parse_draft(spec), model)]
    return Setup(target, drafts, PROMPTS, sampling=sampling, eos=EOS, max_new_tokens=tokens, dtype="float32")


def broken(bed, warm=None):
    found = examine(Setups(bed, bed, warm, [[1, 2, 3] * 10]))
    return {finding.code for finding in found if finding.severity == "broken"}


@pytest.mark.parametrize(
    ("draft", "spec"),
    [
        *full(
            (NEAR, "near"),
            (near_copy(TARGET, noise=0.4), "near"),
            (tiny_llama(VOCAB, seed=9), "near"),
            (tiny_llama(VOCAB, seed=5, sharpness=4.0), "near"),
            (near_copy(TARGET, noise=0.1), "near,cutoff=0.2"),
            (NEAR, "ngram:n=2+near"),
        ),
        (None, "ngram:n=3"),
    ],
)
def test_a_sound_set_up_is_not_accused_however_poor_the_draft(tokenizer, draft, spec):
    warm = bed_of(tokenizer, draft, spec=spec, sampling=WARM)
    assert broken(bed_of(tokenizer, draft, spec=spec), warm) == set()


@pytest.mark.full
def test_a_penalty_is_examined_as_it_is_measured(tokenizer):
    sampling = replace(WARM, min_p=0.02, repetition_penalty=1.4)
    greedy = Sampling(repetition_penalty=1.4)
    for spec in ("near", "ngram:n=2+near"):
        beds = [bed_of(tokenizer, NEAR, spec=spec, sampling=one) for one in (greedy, sampling)]
        assert broken(*beds) == set()
    warm = bed_of(tokenizer, NEAR, sampling=sampling)
    warm.drafts[0].drafter = drafter_with(CachedModel(NEAR, warm.capacity), sampling=WARM)  # forgets the penalty
    assert "draft-temperature" in broken(bed_of(tokenizer, NEAR, sampling=greedy), warm)


@pytest.mark.full
def test_many_strangers_are_not_accused(tokenizer):
    for seed in range(20, 24):
        draft = near_copy(TARGET, noise=0.3, seed=seed) if seed % 2 else tiny_llama(VOCAB, seed=seed)
        assert broken(bed_of(tokenizer, draft)) == set(), seed


class LateRewind(CachedModel):
    """Keeps one token too many of what it takes back."""

    def rewind(self, length):
        super().rewind(min(length + 1, self.length) if length else 0)


class EarlyRewind(CachedModel):
    """Loses one token too many."""

    def rewind(self, length):
        super().rewind(max(0, length - 1))


class NoRewind(CachedModel):
    """Forgets nothing within a text."""

    def rewind(self, length):
        if length == 0:
            super().rewind(0)


@pytest.mark.parametrize("kind", [LateRewind, EarlyRewind, NoRewind])
def test_a_wrong_rollback_of_the_target_is_named(tokenizer, kind):
    bed = bed_of(tokenizer, near_copy(TARGET, noise=0.2))
    bed.reader = kind(TARGET, bed.capacity)
    assert broken(bed) == {"target-cache"}


def with_drafter(bed, drafter):
    bed.drafts[0].drafter = drafter
    return bed


def drafter_with(reader, *, kind=ModelDrafter, sampling=GREEDY):
    return kind(reader, vocab_size=VOCAB, sampling=sampling, eos=EOS)


@pytest.mark.parametrize("kind", [NoRewind, *full(LateRewind, EarlyRewind)])
def test_a_wrong_rollback_of_the_draft_is_named(tokenizer, kind):
    draft = near_copy(TARGET, noise=0.2)
    bed = bed_of(tokenizer, draft)
    found = broken(with_drafter(bed, drafter_with(kind(draft, bed.capacity))))
    assert "draft-history" in found
    assert "target-cache" not in found and "same-text" not in found


class Forgetful(ModelDrafter):
    """Never reads its own drafts: what it says of the later tokens is not of this text."""

    def propose(self, x, k, generator):
        first = super().propose(x, 1, generator).tokens[0]
        self._read = self._read[: len(x)]
        return Proposal([first, *((first + 1 + j) % 256 for j in range(k - 1))])


class OneStepBehind(ModelDrafter):
    """Positions off by one: drafts the token that has just been read."""

    def propose(self, x, k, generator):
        return Proposal([x[-1], *super().propose(x, k, generator).tokens][:k])


def test_a_survival_cliff_is_named(tokenizer):
    bed = bed_of(tokenizer, NEAR)
    found = broken(with_drafter(bed, drafter_with(CachedModel(NEAR, bed.capacity), kind=Forgetful)))
    assert "survival-cliff" in found


@pytest.mark.full
def test_a_tau_of_exactly_one_is_named_where_the_replay_expects_more(tokenizer):
    bed = bed_of(tokenizer, NEAR)

    class Wrong(ModelDrafter):
        def propose(self, x, k, generator):
            return Proposal([(token + 1) % 256 for token in super().propose(x, k, generator).tokens])

    found = broken(with_drafter(bed, drafter_with(CachedModel(NEAR, bed.capacity), kind=Wrong)))
    assert "nothing-accepted" in found and "self-draft" not in found


@pytest.mark.full
def test_positions_off_by_one_are_named(tokenizer):
    bed = bed_of(tokenizer, NEAR)
    found = broken(with_drafter(bed, drafter_with(CachedModel(NEAR, bed.capacity), kind=OneStepBehind)))
    assert found & {"nothing-accepted", "loop-replay"}


def test_a_lossy_rule_is_named_greedy_and_sampling(tokenizer, monkeypatch):
    def lenient(logits, drafts):
        return len(drafts), int(logits[-1].argmax())

    bed = bed_of(tokenizer, near_copy(TARGET, noise=0.2))
    monkeypatch.setattr(loop, "accept_greedy", lenient)
    assert "same-text" in broken(bed)
    monkeypatch.undo()

    def by_equality(p, q, drafts, generator):
        return loop.accept_greedy(p.log(), drafts)

    for rule in (by_equality, lambda p, q, drafts, generator: (len(drafts), int(p[-1].argmax()))):
        monkeypatch.setattr(loop, "accept_sampled", rule)
        assert sampled.accept_rule(bed_of(tokenizer, NEAR, sampling=WARM)).severity == "broken"


class Cold(ModelDrafter):
    """Claims q and proposes its most likely token."""

    def propose(self, x, k, generator):
        found = super().propose(x, 1, generator)
        return Proposal([int(found.q[0].argmax())], found.q)


class Hot(ModelDrafter):
    """Reports a far flatter q than it draws from."""

    def propose(self, x, k, generator):
        found = super().propose(x, 1, generator)
        q = found.q.pow(0.2)
        return Proposal(found.tokens, q / q.sum())


@pytest.mark.full
@pytest.mark.parametrize("kind", [Cold, Hot])
def test_proposals_that_do_not_follow_q_are_named(tokenizer, kind):
    warm = bed_of(tokenizer, NEAR, sampling=WARM)
    with_drafter(warm, drafter_with(CachedModel(NEAR, warm.capacity), kind=kind, sampling=WARM))
    assert "draft-sampling" in broken(bed_of(tokenizer, NEAR), warm)


@pytest.mark.full
def test_a_draft_at_another_temperature_is_named_and_a_greedy_one_noted(tokenizer):
    warm = bed_of(tokenizer, NEAR, sampling=WARM)
    with_drafter(warm, drafter_with(CachedModel(NEAR, warm.capacity), sampling=Sampling(1.4)))
    assert broken(bed_of(tokenizer, NEAR), warm) == {"draft-temperature"}
    with_drafter(warm, drafter_with(CachedModel(NEAR, warm.capacity)))
    assert sampled.draws_follow_q(warm, warm.drafts[0]).severity == "note"
    assert broken(bed_of(tokenizer, NEAR), warm) == set()


def test_logits_that_are_no_numbers_are_named(tokenizer):
    sick = copy.deepcopy(NEAR)
    sick.lm_head.weight[3].fill_(float("nan"))
    assert broken(bed_of(tokenizer, sick)) == {"finite-logits"}
    alone = bed_of(tokenizer, NEAR)
    alone.drafts = []
    assert "every logit of 1 model is a number" in texts.finite_logits(alone).said


def test_a_target_that_ends_at_once_is_named(tokenizer):
    bed = bed_of(tokenizer, NEAR)
    bed.eos = frozenset(text[0] for text in bed.alone)
    del bed.alone
    assert texts.ends_at_once(bed).severity == "broken"


def test_memory_that_is_not_there_is_named(tokenizer):
    bed = bed_of(tokenizer, NEAR)
    assert machine.memory(bed.loaded, bed.drafts, 100, free=1000).severity == "broken"
    assert machine.memory(bed.loaded, bed.drafts, 100).severity == "ok"
    assert machine.thread_count(10_000, "cpu").severity == "note"


def test_a_part_that_fails_is_a_finding_without_its_message(tokenizer):
    bed = bed_of(tokenizer, NEAR)

    class Failing(ModelDrafter):
        def propose(self, x, k, generator):
            raise RuntimeError("secret prompt")

    found = examine(Setups(with_drafter(bed, drafter_with(CachedModel(NEAR, 99), kind=Failing)), bed, None, []))
    assert any(f.code == "draft-history" and f.severity == "broken" for f in found)
    assert "secret" not in str(found)


def test_the_command_says_the_same_in_json_and_in_words(lab):
    args = ("doctor", *lab.args("--quiet", "--limit", "2", "--max-new-tokens", "10"))
    result = call(*args, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert set(found) == {field.name for field in fields(Examination)}
    assert found["broken"] == 0 and {f["severity"] for f in found["findings"]} <= {"ok", "note", "not checked"}
    words = call(*args).stdout
    assert "Nothing is broken" in words and "xylophone" not in words


def test_a_model_that_is_not_there_is_broken_and_the_exit_code_says_so(lab, tmp_path):
    result = call("doctor", *lab.args("--quiet", "--json", draft=tmp_path / "nowhere"))
    assert result.exit_code == 1
    found = {f["code"] for f in json.loads(result.stdout)["findings"] if f["severity"] == "broken"}
    assert found == {"models-load"}


def test_the_contract_lists_every_code_and_key():
    contract = PAGES["contract.md"]
    source = Path(doctor.__file__).read_text()
    codes = set(re.findall(r'\(\s*"([a-z]+(?:-[a-z]+)*)", ', source)) | set(texts._SOUND)
    assert {"memory", "finite-logits", "same-text", "draft-sampling", "two-begins"} <= codes
    listed = set(re.findall(r"`([\w-]+)`", contract.partition("### Doctor: codes")[2].partition("\n## ")[0]))
    assert codes <= listed


@pytest.mark.full
@pytest.mark.slow
def test_on_real_language_a_shuffled_draft_and_wrong_templates_are_named():
    target, draft = (load_model(name, dtype="bfloat16", device="cpu") for name in ("demo:target", "demo:draft"))
    text = "The bakery on the corner sells bread, and in winter it also sells soup. It opens at six in the morning."
    sample = target.tokenizer(text)["input_ids"]

    def meaning(model):
        drafts = [Draft(parse_draft("d"), replace(draft, model=model))]
        bed = Setup(target, drafts, [sample], sampling=GREEDY, eos=frozenset({2}), max_new_tokens=8, dtype="bfloat16")
        return bed, texts.vocabulary_meaning(bed, bed.drafts[0], [sample])

    bed, sane = meaning(draft.model)
    assert sane.severity != "broken"
    shuffled = copy.deepcopy(draft.model)
    table = shuffled.get_input_embeddings().weight
    table.copy_(table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))].clone())
    assert meaning(shuffled)[1].severity == "broken"
    assert texts.chat_template(bed).severity == "ok"
    own = target.tokenizer.chat_template
    headless = own.replace("add_generation_prompt", "false")
    for wrong in (None, "{% for m in messages %}### {{ m['content'] }}{% endfor %}", headless):
        tokenizer = copy.deepcopy(target.tokenizer)
        tokenizer.chat_template = wrong
        bed.loaded = replace(target, tokenizer=tokenizer)
        assert texts.chat_template(bed).severity == "broken", wrong
