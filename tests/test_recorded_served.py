"""Recorded answers whose draft a server reads: what the same models say in this process, and what no server can say."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from answer_logs import ANSWER, QUESTION, lines
from fake_teacher import FakeTeacher
from test_recorded_runs import over, written_by
from test_run import config_for

from specbench.acceptance.positions import read_positions
from specbench.api import recorded_acceptance
from specbench.backends.server import asking
from specbench.errors import ConfigError, EngineError, VocabularyError
from specbench.models import load_model, load_tokenizer
from specbench.run.task import task_of
from specbench.store import read_run

SAMPLED = {"temperature": 1.0}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE_S", 0.01)


def teacher(folder, **more):
    """A server of the model in a folder, in float32."""
    model = load_model(str(folder), dtype="float32", device="cpu").model

    @torch.inference_mode()
    def logprobs(ids):
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)

    return FakeTeacher(logprobs=logprobs, tokenizer=load_tokenizer(str(folder)), **more)


@pytest.fixture
def asked(lab, tmp_path):
    """A log that the target wrote, scored with the draft on a server, and the same in this process."""
    with ExitStack() as stack:
        up = {name: stack.enter_context(teacher(getattr(lab, name))) for name in ("target", "near")}

        def runs(drafts, alone, *, target=False, **flags):
            config = config_for(lab, tmp_path, draft=drafts, **flags)
            log = written_by(config, tmp_path)
            told = {"draft_server": up["near"].url, "engine": "vllm"} | ({"server": up["target"].url} if target else {})
            none = {"target": "none", "tokenizer": str(lab.target)}
            served = over(log, config, tmp_path / "served", **told, **({} if target else none))
            return served, over(log, config, tmp_path / "here", **({} if alone else none))

        yield up, runs


def arrays(folder, name):
    found = {(text.draft, text.prompt_id): getattr(text, name, None) for text in read_positions(folder)}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("flags", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_that_takes_its_likeliest_token_is_read_by_its_server_alone(asked, lab, flags):
    up, runs = asked
    greedy = f"{lab.near},sample=greedy" if flags else str(lab.near)
    served, here = runs([greedy, "ngram:n=2", f"ngram:n=2+{greedy}"], False, **flags)
    assert up["target"].paths.count("/v1/completions") == 0
    ours, theirs = arrays(served, "accept"), arrays(here, "accept")
    assert ours.keys() == theirs.keys() and len(ours) == 36
    for key, accept in ours.items():
        np.testing.assert_array_equal(accept, theirs[key])
    one, two = (recorded_acceptance(read_run(folder), (1, 3)) for folder in (served, here))
    assert [draft.gammas for draft in one.drafts] == [draft.gammas for draft in two.drafts]
    record = read_run(served).run
    assert record.served.settings[f"{greedy} alone"].version == "0-fake" and record.status == "finished"


def test_a_draft_that_samples_needs_the_log_probabilities_of_the_answers_tokens_alone(asked, lab):
    _, runs = asked
    served, here = runs([str(lab.near)], True, target=True, **SAMPLED)
    ours, theirs = arrays(served, "accept"), arrays(here, "accept")
    assert ours.keys() == theirs.keys()
    for key, accept in ours.items():
        np.testing.assert_allclose(accept, theirs[key], atol=1e-4)
    one, two = (recorded_acceptance(read_run(folder), (1, 4)).drafts[0] for folder in (served, here))
    for mine, own in zip(one.gammas, two.gammas, strict=True):
        assert mine.tokens_per_round.value == pytest.approx(own.tokens_per_round.value, rel=1e-4)
    # alpha in process is of whole distributions, here of the tokens that were drawn: unbiased, and less sharp.
    accepts, overlaps = (np.concatenate([*arrays(folder, "overlap").values()]) for folder in (served, here))
    error = (accepts - overlaps).std() / np.sqrt(len(accepts))
    assert 0 < abs(accepts.mean() - overlaps.mean()) < 4 * error


def test_given_the_text_the_products_are_what_a_round_keeps():
    """Every text of three tokens over p and q: the chance that speculation keeps k drafts is the mean of products."""
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(3), (2, 4))  # rows: after nothing, and after each token
    kept = drawn = wrong = 0.0
    for a in range(3):
        for b in range(3):
            kept += min(p[0, a], q[0, a]) * min(p[a + 1, b], q[a + 1, b])
            ratios = q[0, a] / p[0, a], q[a + 1, b] / p[a + 1, b]
            drawn += p[0, a] * p[a + 1, b] * np.prod(np.minimum(1, ratios))
            wrong += p[0, a] * p[a + 1, b] * min(1, np.prod(ratios))  # the planted fault: one minimum for all
    assert drawn == pytest.approx(kept) and wrong != pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"temperature": 1.0}, "This draft samples, which needs the target's server"),
        ({"temperature": 0.7, "server": "http://a"}, "is asked at temperature 1, without top-p"),
        ({"temperature": 1.0, "top_p": 0.9, "server": "http://a"}, "is asked at temperature 1, without top-p"),
        ({"server": "http://a"}, "A draft that takes its likeliest token needs none"),
        ({"draft_server": None, "server": "http://a"}, "are read by a draft's server, or in this process"),
        ({"repetition_penalty": 1.2}, "before any penalty"),
        ({"draft": ("ngram:n=2",)}, "It holds one draft model"),
        ({"draft": ("skip:layers=1", "a")}, "This draft needs the target"),
    ],
)
def test_what_no_server_can_say_is_refused_before_one_is_asked(lab, tmp_path, flags, said):
    config = config_for(lab, tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(lines({"instruction": QUESTION, "output": ANSWER}))
    base = {"draft_server": "http://127.0.0.1:1", "engine": "vllm", "target": "none", "tokenizer": str(lab.target)}
    with pytest.raises(ConfigError, match=said):
        over(log, config, tmp_path / "runs", **(base | flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"ray": "local"}, "Workers load their models, and ask no server"),
        ({"server": "http://a"}, "The target's tokenizer reads the answers"),
        ({"launch": "a.yaml"}, "No server is started for recorded answers"),
        ({"draft_server": None, "engine": "vllm"}, "No server is started for recorded answers"),
    ],
)
def test_what_is_not_asked_of_a_log_with_servers(flags, said):
    base = {"answers": "recorded", "workload": "log.jsonl", "draft": ["a"], "draft_server": "http://b"}
    keys = base | ({} if "server" in flags else {"target": "none", "tokenizer": "t"}) | flags
    with pytest.raises(ConfigError, match=said):
        task_of("sweep", keys)


def test_servers_that_are_of_no_use_are_named(lab, tmp_path):
    config = config_for(lab, tmp_path)
    log = written_by(config, tmp_path)
    base = {"engine": "vllm", "target": "none", "tokenizer": str(lab.target)}
    with teacher(lab.near, shift=1) as other, pytest.raises(VocabularyError, match="do not share their token ids"):
        over(log, config, tmp_path / "a", draft_server=other.url, **base)
    down = teacher(lab.near, faults=dict.fromkeys(range(4, 99), 500))
    with down, pytest.raises(EngineError, match="in a row"):
        over(log, config, tmp_path / "b", draft_server=down.url, **base)
    # What was there before goes on where it stopped.
    with teacher(lab.near, port=down.port) as again:
        folder = over(log, config, tmp_path / "b", draft_server=again.url, **base)
    assert read_run(folder).status == "finished" and len(read_positions(folder)) == 12
    assert len({*arrays(folder, "accept")}) == 12
