"""A head in batches: every row's text and rounds are those of its prompt alone."""

from __future__ import annotations

import pytest
from conftest import full
from test_heads import EVEN, PLAIN, TARGET, drafter_for, head_of
from test_many import many
from tiny import GREEDY, run
from tiny_heads import VOCAB, save_head

from specbench.backends.local.headreader import ManyHeadReader
from specbench.backends.local.ragged import RaggedModel
from specbench.drafters.head import ManyHeadDrafter
from specbench.records import Sampling

PROMPTS = [[3, 1, 4, 1, 5], [7], [2, 9, 9, 4], [11, 0], [5, 5, 5, 5, 5, 5, 1]]


def many_drafter(head, model=TARGET, *, sampling=GREEDY, eos=(), cutoff=0.0, chained=False):
    reader = RaggedModel(model, 160, 8).keeping(head.reads)
    memory = ManyHeadReader(head, reader.states, 160)
    options = {"vocab_size": VOCAB, "sampling": sampling, "eos": eos, "cutoff": cutoff, "chained": chained}
    return reader, ManyHeadDrafter(memory, **options)


@pytest.mark.parametrize("model", [PLAIN, TARGET], ids=["transformers' layers", "lean layers"])
@pytest.mark.parametrize(
    ("gamma", "eos", "cutoff", "sampling"),
    [
        (4, (4, 18), 0.0, GREEDY),
        *full(
            (1, (), 0.0, GREEDY),
            (3, (4,), 0.3, GREEDY),
            (3, (4,), 0.0, Sampling(0.8, top_p=0.9)),
            (2, (), 0.0, Sampling(repetition_penalty=1.3)),
        ),
    ],
)
def test_every_row_is_the_prompt_alone(tmp_path, model, gamma, eos, cutoff, sampling):
    head = head_of(save_head(tmp_path, PLAIN, 0.1, EVEN), model)
    options = {"sampling": sampling, "eos": eos, "cutoff": cutoff}
    reader, drafter = many_drafter(head, model, **options)
    together = many(reader, drafter, PROMPTS, gamma=gamma, sampling=sampling, eos=eos, limit=24)
    drafted = 0
    for row, (prompt, found) in enumerate(zip(PROMPTS, together, strict=True)):
        one, alone = drafter_for(head, model, **options)
        single = run(one, alone, prompt, gamma=gamma, sampling=sampling, eos=set(eos), max_new_tokens=24, seed=row)
        assert found.tokens == single.tokens
        assert found.rounds == single.rounds
        drafted += sum(r.accepted for r in found.rounds)
    assert drafted > 0


def test_drafts_that_stay_on_the_device_are_the_same(tmp_path):
    head = head_of(save_head(tmp_path, PLAIN, 0.1))
    texts = []
    for chained in (False, True):
        reader, drafter = many_drafter(head, eos=(4,), chained=chained)
        texts.append([(g.tokens, g.rounds) for g in many(reader, drafter, PROMPTS, eos=(4,), limit=20)])
    assert texts[0] == texts[1]
