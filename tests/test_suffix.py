"""Look-up by the longest suffix: against brute force, and replay against the loop."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from test_cli import call
from test_run import FakeObserver, config_for
from tiny import GREEDY, run, text_of, tiny_llama

from specbench.acceptance.metrics import count
from specbench.acceptance.replay import replay
from specbench.acceptance.scores import match_blocks
from specbench.analysis.summarise import summarise
from specbench.drafters import parse_draft
from specbench.drafters.around import SuffixDrafter
from specbench.drafters.lookup import LEAST, Corpus
from specbench.errors import ConfigError
from specbench.records import Sampling
from specbench.run.session import run as run_all
from specbench.store import read_run

TARGET = tiny_llama(12, seed=3)
tokens = st.lists(st.integers(0, 3), max_size=30)


def followers(texts: list[list[int]], x: list[int]) -> Counter[int]:
    """What follows `x` in these texts, and how often."""
    n = len(x)
    return Counter(text[at + n] for text in texts for at in range(len(text) - n) if text[at : at + n] == x)


def matched(texts: list[list[int]], x: list[int], *, own: bool) -> int:
    """Length of the longest suffix of `x` in these texts; in its own text it must stand elsewhere than at the end."""
    for n in range(len(x), 0, -1):
        places = sum(text[at : at + n] == x[-n:] for text in texts for at in range(len(text) - n + 1))
        if places > own:
            return n
    return 0


def brute(x: list[int], corpus: list[list[int]], k: int) -> list[int]:
    own, theirs = matched([x], x, own=True), matched(corpus, x, own=False)
    texts, length = (corpus, theirs) if theirs > own else ([x], own)
    seen, found, all_of = x[len(x) - length :], list[int](), 0
    while length and len(found) < min(k, length):
        following = followers(texts, [*seen, *found])
        all_of = all_of or following.total()
        token = min(following, key=lambda one: (-following[one], one), default=None)
        if token is None or following[token] < LEAST * all_of:
            break
        found.append(token)
    return found


@examples(150)
@given(prompt=tokens.filter(bool), rest=tokens, corpus=st.lists(tokens, max_size=4), k=st.integers(1, 6))
def test_proposals_are_those_of_brute_force(prompt, rest, corpus, k):
    drafter = SuffixDrafter(Corpus(corpus) if corpus else None, eos=())
    for _ in range(2):  # a corpus is left as it was by the first text
        drafter.begin(prompt)
        for end in range(len(rest) + 1):
            x = [*prompt, *rest[:end]]
            assert drafter.find(x, k) == brute(x, corpus, k)


def test_a_match_earns_as_many_tokens_as_it_is_long():
    drafter = SuffixDrafter(eos=())
    drafter.begin([7, 8, 9, 1, 2, 3, 4, 5, 0, 8, 9])
    assert drafter.find([7, 8, 9, 1, 2, 3, 4, 5, 0, 8, 9], 8) == [1, 2]
    drafter.begin([7, 8, 9, 1, 2, 3, 4, 5, 0, 7, 8, 9])
    assert drafter.find([7, 8, 9, 1, 2, 3, 4, 5, 0, 7, 8, 9], 8) == [1, 2, 3]


def test_what_followed_most_often_goes_first_and_nothing_past_an_end():
    drafter = SuffixDrafter(Corpus([[5, 6, 1], [5, 6, 2], [5, 6, 2, 9]]), eos={2})
    drafter.begin([5, 6])
    assert drafter.find([5, 6], 4) == [2]


@examples(40)
@given(
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=20),
    corpus=st.lists(st.lists(st.integers(0, 11), max_size=40), max_size=2),
    gamma=st.integers(1, 9),
    limit=st.integers(1, 60),
    eos=st.sets(st.integers(0, 11), max_size=2),
    sampling=st.sampled_from([GREEDY, Sampling(0.7)]),
)
def test_greedy_text_is_kept_and_replay_is_the_loop(prompt, corpus, gamma, limit, eos, sampling):
    drafter = SuffixDrafter(Corpus(corpus), eos=eos)
    live = run(TARGET, drafter, prompt, gamma=gamma, eos=eos, max_new_tokens=limit, sampling=sampling)
    if sampling.greedy:
        assert live.tokens == run(TARGET, None, prompt, eos=eos, max_new_tokens=limit).tokens
    found = match_blocks(SuffixDrafter(Corpus(corpus), eos=eos), prompt, live.tokens, 16)
    replayed = replay([text_of(found, limit)], gamma)
    counts = count(live.rounds, gamma)
    assert replayed.rounds.tolist() == [counts.rounds]
    assert replayed.survived[0].tolist() == list(counts.survived)


def test_a_run_with_a_corpus_of_earlier_answers(lab, tmp_path):
    """Alone, with a corpus, and before a model."""
    corpus = tmp_path / "answers.jsonl"
    corpus.write_text("\n".join(json.dumps({"instruction": "?", "output": chr(97 + i) * 9}) for i in range(26)))
    drafts = ["suffix", f"suffix:corpus={corpus}", f"suffix+{lab.near}"]
    stored = read_run(run_all(config_for(lab, tmp_path, limit=3, draft=drafts), "sweep", (3,), FakeObserver()))
    found = [draft.gammas[0] for draft in summarise(stored).drafts]
    assert [row.replay_rounds for row in found] == [row.rounds for row in found]
    assert {t.identical for t in stored.trials if t.arm.gamma and not t.warmup} == {True}


@pytest.mark.parametrize("content", [None, '{"prompt": "?"}\n'])
def test_a_corpus_that_is_none(lab, tmp_path, content):
    corpus = tmp_path / "log.jsonl"
    if content is not None:
        corpus.write_text(content)
    found = call("measure", *lab.args("--gamma", "2", draft=f"suffix:corpus={corpus}"))
    assert found.exit_code == 2
    assert "log.jsonl" in "".join(found.stderr.split())


@pytest.mark.parametrize("text", ["suffix:n=3", "suffix:corpus=", "suffix+cross:m", "suffix+"])
def test_no_such_look_up(text):
    with pytest.raises(ConfigError):
        parse_draft(text)
