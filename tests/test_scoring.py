"""Acceptance without speculation: planted agreement comes back at every gamma. A real server is asked elsewhere."""

from __future__ import annotations

import json

import pytest
from fake_scorer import END, FakeScorer
from test_cli import call
from test_run import FakeObserver

from specbench.acceptance.positions import read_positions
from specbench.acceptance.replay import replay
from specbench.backends.server import asking
from specbench.config import load_config
from specbench.errors import ConfigError, EngineError, VocabularyError
from specbench.run.session import run

TEXT = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)


def scored(lab, out, target, scorer, **flags):
    base = {
        "engine": "llamacpp",
        "target": "served",
        "draft": ["served"],
        "server": target.url,
        "draft_server": scorer.url,
        "workload": str(lab.workload),
        "gamma": "1,2,4",
        "max_new_tokens": 10,
        "limit": 3,
        "out": str(out),
    }
    mode = flags.pop("mode", "auto")
    config = load_config(lab.workload.parent / "lab.yaml", base | flags)
    return run(config, "sweep", config.gamma, FakeObserver(), mode=mode, replay_only=True)


def test_planted_slips_are_the_rejections_of_every_gamma(lab, tmp_path):
    with FakeScorer(text=TEXT) as target, FakeScorer(text=TEXT, slips=frozenset({3, 4})) as draft:
        folder = scored(lab, tmp_path, target, draft)
    texts = read_positions(folder)
    assert len(texts) == 3
    for text in texts:
        assert text.accept.tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 1]
        # Of the two tokens that the server names; of all it would be 0.7788.
        assert text.confidence == pytest.approx(0.8176, abs=1e-3)
    # gamma 2: (1,2 accepted, 3 by the target), (4 rejected), (5, 6, 7), (8, 9): places 1 to 9 of the text.
    assert replay(texts, 2).rounds.tolist() == [4.0] * 3
    assert replay(texts, 2).accepted.tolist() == [5.0] * 3


def test_an_end_of_sequence_ends_the_drafting_too(lab, tmp_path):
    text = (*TEXT[:5], END)
    with FakeScorer(text=text) as target, FakeScorer(text=text) as draft:
        folder = scored(lab, tmp_path, target, draft)
    (first, *_) = read_positions(folder)
    assert first.tokens == 6
    assert first.ends.tolist() == [False] * 4 + [True]


def test_a_look_up_needs_no_server_of_its_own(lab, tmp_path):
    text = (11, 12, 13, 14, 11, 12, 13, 14, 11, 12)
    with FakeScorer(text=text) as target:
        flags = {"draft": ["ngram:n=2"], "draft_server": None, "repetition_penalty": 1.2}  # look-ups are exact with it
        folder = scored(lab, tmp_path, target, target, **flags)
    assert any(body.get("repeat_penalty") == 1.2 for body in target.seen)
    (first, *_) = read_positions(folder)
    assert first.matched.max() >= 3
    result = call("replay", folder, "--gamma", "1..4", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["drafts"][0]["gammas"]
    taus = [row["tokens_per_round"] for row in rows]
    assert taus[3] > taus[1] > taus[0] == 1  # nothing is drafted below a gamma of n


def test_another_vocabulary_is_refused_before_anything_is_written(lab, tmp_path):
    with (
        FakeScorer(text=TEXT) as target,
        FakeScorer(text=TEXT, shift=1) as draft,
        pytest.raises(VocabularyError, match="do not share their token ids: 4 of 4"),
    ):
        scored(lab, tmp_path, target, draft)
    (folder,) = tmp_path.iterdir()
    assert read_positions(folder) == []


def test_what_is_scored_is_kept_and_not_asked_again(lab, tmp_path):
    faults = dict.fromkeys(range(14, 100), 500)
    with FakeScorer(text=TEXT) as target, FakeScorer(text=TEXT, faults=faults) as draft:
        with pytest.raises(EngineError, match="3 requests in a row failed"):
            scored(lab, tmp_path, target, draft, limit=6)
        (folder,) = tmp_path.iterdir()
        before = {text.prompt_id for text in read_positions(folder)}
        assert before
        draft.faults.clear()
        asked = len(draft.seen)
        assert scored(lab, tmp_path, target, draft, limit=6, mode="resume") == folder
    texts = read_positions(folder)
    assert len({text.prompt_id for text in texts}) == len(texts) == 6
    steps = [body for body in draft.seen[asked:] if body.get("n_probs")]
    assert len(steps) == (6 - len(before)) * (len(TEXT) - 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"temperature": 0.7}, "whole distributions"),
        ({"repetition_penalty": 1.1}, "before any repetition penalty"),
        ({"repetition_penalty": 1.1, "draft": ["ngram:n=3+org/model"]}, "before any repetition penalty"),
        ({"draft_server": None}, "The draft has to be asked"),
        ({"engine": "openai"}, "does not tell the token ids"),
        ({"draft": ["skip:layers=2"]}, "No server can be asked"),
        ({"concurrency": "1,2"}, "A load means nothing"),
        ({"spec_server": "http://localhost:1"}, "Nothing speculates in a replay"),
    ],
)
def test_what_no_server_can_answer_is_refused(lab, tmp_path, flags, says):
    with FakeScorer(text=TEXT) as target, FakeScorer(text=TEXT) as draft, pytest.raises(ConfigError, match=says):
        scored(lab, tmp_path, target, draft, **flags)
