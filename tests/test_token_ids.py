"""Texts as token ids: what servers answer when they are asked to write, to tokenize, and to judge a text."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import CANARY
from fake_scorer import PROMPT_IDS, FakeScorer
from fake_server import FakeServer
from test_adapters import capture, scored_ids
from test_scoring import TEXT, scored

from specbench.acceptance.positions import read_positions
from specbench.acceptance.scores import greedy_scores, match_blocks
from specbench.backends.server import asking
from specbench.backends.server.adapter import Ask
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.scoring import score_output
from specbench.backends.server.vllm import VLLM
from specbench.config import load_config
from specbench.drafters.lookup import RecentLookUp
from specbench.errors import ConfigError, EngineError
from specbench.records import Message, Round, Sampling
from specbench.store import read_run

ASK = Ask((Message("user", "Name three rivers."),), 160, Sampling(), 1)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)


class Posted:
    """A server that gives the planted answers by path, and keeps what it was asked."""

    def __init__(self, **answers):
        self.answers = {f"/{path.replace('__', '/')}": answer for path, answer in answers.items()}
        self.asked = []

    async def post(self, path, body):
        self.asked.append((path, body))
        answer = self.answers[path]
        return answer(body) if callable(answer) else answer


def whole(**changes):
    """vLLM's answer in one piece, with the ids of a kept one."""
    ids = scored_ids()
    choice = {"token_ids": ids[44:], "finish_reason": "stop"} | changes.pop("choice", {})
    return {"prompt_token_ids": ids[:44], "choices": [choice], "usage": {"completion_tokens": len(ids) - 44}} | changes


def test_vllm_writes_with_its_token_ids():
    server = Posted(v1__chat__completions=whole())
    written = asyncio.run(VLLM().write(server.post, ASK, "m"))
    assert (written.prompt, written.output, written.finish) == (
        tuple(scored_ids()[:44]),
        tuple(scored_ids()[44:]),
        "eos",
    )
    assert len(written.output) == 14
    ((_, body),) = server.asked
    assert (body["stream"], body["return_token_ids"], body["temperature"], body["model"]) == (False, True, 0.0, "m")
    assert "stream_options" not in body  # an error where nothing is streamed


@pytest.mark.parametrize(
    "answer",
    [
        whole(prompt_token_ids=None),
        whole(choice={"token_ids": None}),
        whole(choice={"token_ids": [1, 2]}),
        whole(choice={"finish_reason": "abort"}),
        whole(choices=[]),
    ],
)
def test_vllm_that_does_not_tell_all_ids_is_no_writer(answer):
    with pytest.raises(ValueError, match=r"token ids|finish_reason"):
        asyncio.run(VLLM().write(Posted(v1__chat__completions=answer).post, ASK, "m"))


def test_an_output_is_judged_in_one_request_where_prompts_are():
    ids = scored_ids()
    server = Posted(v1__completions=json.loads(capture("vllm_prompt_logprobs.json")))
    found = asyncio.run(score_output(VLLM(), server.post, ids[:44], ids[44:], "m"))
    assert len(server.asked) == 1
    # The model judges the text that it wrote itself: every token but the first of the output, in its place.
    assert [top.token for top in found.tops] == ids[45:]
    assert [top.top for top in found.tops] == ids[45:]


def stepping(read_again=0):
    def answer(body):
        last = body["prompt"][-1]
        place = {"top_logprobs": [{"id": last + 1, "logprob": -1.0}]}
        timings = {"prompt_n": 1 + read_again if len(body["prompt"]) > 4 else 3}
        return {"tokens_evaluated": len(body["prompt"]), "completion_probabilities": [place], "timings": timings}

    return answer


def test_an_output_is_judged_token_by_token_where_prompts_are_not():
    server = Posted(completion=stepping())
    found = asyncio.run(score_output(LlamaCpp(), server.post, [7, 8, 9], [10, 11, 5, 6], None))
    assert [(top.token, top.top) for top in found.tops] == [(11, 11), (5, 12), (6, 6)]
    assert [body["prompt"] for _, body in server.asked] == [[7, 8, 9, 10], [7, 8, 9, 10, 11], [7, 8, 9, 10, 11, 5]]
    assert all(body["cache_prompt"] and body["n_predict"] == 1 for _, body in server.asked)
    assert found.read_again == 0
    again = asyncio.run(score_output(LlamaCpp(), Posted(completion=stepping(5)).post, [7, 8, 9], [10, 11, 5, 6], None))
    assert again.read_again == 2 * 5


@pytest.mark.parametrize(
    "answer",
    [
        {"tokens_evaluated": 9, "completion_probabilities": [{"top_logprobs": [{"id": 1, "logprob": -1.0}]}]},
        {"tokens_evaluated": 4, "completion_probabilities": []},
        {"tokens_evaluated": 4, "completion_probabilities": [{"top_logprobs": []}]},
    ],
)
def test_an_answer_about_another_text_is_refused(answer):
    with pytest.raises(ValueError, match=r"about 9 tokens|no completion_probabilities"):
        asyncio.run(score_output(LlamaCpp(), Posted(completion=answer).post, [7, 8, 9], [10, 11], None))


def test_one_token_leaves_nothing_to_judge():
    assert asyncio.run(score_output(LlamaCpp(), Posted().post, [7], [10], None)).tops == []
    assert asyncio.run(score_output(VLLM(), Posted().post, [7], [10], None)).tops == []


def test_scores_know_only_what_the_server_told():
    found = greedy_scores([4, 5, 6, 2], [(5, -0.5, 0.7), (9, -1.0, 0.5), (2, -2.0, 0.3)], {2})
    assert found.accept.tolist() == [1, 0, 1]
    assert found.overlap.tolist() == [1, 0, 1]
    assert found.ends.tolist() == [False, False, True]
    assert found.confidence.tolist() == pytest.approx([0.7, 0.5, 0.3])
    assert np.isnan(found.log_p).all()
    assert found.log_q.tolist() == pytest.approx([-0.5, float("nan"), -2.0], nan_ok=True)


def test_a_prompt_that_either_server_refuses_is_left_out_and_listed(lab, tmp_path):
    # The fifth request to the draft is its first judgement, after the texts that show its token ids.
    with FakeScorer(text=TEXT) as target, FakeScorer(text=TEXT, faults={4: 400}) as draft:
        folder = scored(lab, tmp_path, target, draft, draft=["served", "ngram:n=2"])
    (skipped,) = read_run(folder).run.workload.skipped
    assert "the server of served refuses it: HTTP status 400" in skipped.reason
    texts = read_positions(folder)
    assert len(texts) == 2 * 2
    assert skipped.id not in {text.prompt_id for text in texts}
    assert "skipped-prompts" in [warning.code for warning in read_run(folder).run.warnings]


def test_where_every_prompt_is_refused_there_is_nothing_to_show_and_all_is_asked_again(lab, tmp_path):
    faults = dict.fromkeys(range(4, 100), 400)
    with FakeScorer(text=TEXT, faults=faults) as target, FakeScorer(text=TEXT) as draft:
        with pytest.raises(
            EngineError, match="Not a single prompt was measured; the last: the target refuses it: HTTP"
        ):
            scored(lab, tmp_path, target, draft)
        (folder,) = tmp_path.iterdir()
        assert read_run(folder).status == "failed"
        assert read_run(folder).run.workload.skipped == ()
        target.faults.clear()
        assert scored(lab, tmp_path, target, draft) == folder
    assert len(read_positions(folder)) == 3


def test_the_target_must_not_speculate(lab, tmp_path):
    with (
        FakeScorer(text=TEXT, rounds=(Round(2, 1),)) as target,
        FakeScorer(text=TEXT) as draft,
        pytest.raises(ConfigError, match="target alone speculates"),
    ):
        scored(lab, tmp_path, target, draft)


def test_a_look_up_before_the_model_keeps_both(lab, tmp_path):
    text = (11, 12, 13, 14, 11, 12, 13, 14, 11, 12)
    with FakeScorer(text=text) as target, FakeScorer(text=text, slips=frozenset({2})) as draft:
        folder = scored(lab, tmp_path, target, draft, draft=["ngram:n=2", "ngram:n=2+served"])
    blocks = match_blocks(RecentLookUp(2, eos={2}), PROMPT_IDS, text, 64)
    for found in read_positions(folder):
        kept = found if found.draft == "ngram:n=2" else found.blocks
        assert kept.proposed.tolist() == blocks.proposed.tolist()
        assert kept.matched.tolist() == blocks.matched.tolist()
        if found.draft != "ngram:n=2":
            assert found.accept.tolist() == [1, 0, 1, 1, 1, 1, 1, 1, 1]


def test_an_unused_server_of_a_draft_is_refused(lab, tmp_path):
    with FakeScorer(text=TEXT) as target, FakeServer() as draft:
        for drafts, says in ((["ngram:n=3"], "only look-ups"), (["a", "b"], "2 draft models")):
            with pytest.raises(ConfigError, match=says):
                scored(lab, tmp_path, target, draft, draft=drafts)
    with pytest.raises(ConfigError, match="needs one of the target"):
        load_config(None, {"draft_server": "http://localhost:1"})


@pytest.mark.full
def test_nothing_of_a_text_is_kept_and_no_model_library_is_loaded(lab, tmp_path):
    code = (
        "import sys\nfrom specbench.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(end.code, *({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    with FakeScorer(text=TEXT) as target, FakeScorer(text=TEXT) as draft:
        flags = ["sweep", "--replay-only", "--server", target.url, "--draft-server", draft.url, "--quiet"]
        flags += ["--workload", str(lab.workload), "--limit", "2", "--engine", "llamacpp", "--gamma", "1,2"]
        done = subprocess.run(
            [sys.executable, "-c", code, *flags, "--out", str(tmp_path), "--json"], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() in (["0"], ["0", "scipy"]), done.stdout
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()
