"""What a request has beside its texts: tools, arguments of the chat template, wishes that only a server understands."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_openai import FakeOpenAI
from fake_scorer import FakeScorer
from test_adapters import ASK, read, said, stream, usage
from test_scoring import TEXT, scored
from test_servers_as_found import measured
from test_serving import codes, counted
from test_token_ids import Posted

from specbench.acceptance.positions import read_positions
from specbench.backends.server.adapter import Chunk, RefusedError, ask_of
from specbench.backends.server.llamacpp import LlamaCpp
from specbench.backends.server.openai import OpenAI, stream_times, text_of
from specbench.backends.server.preflight import ADAPTERS
from specbench.records import Message, Prompt, Sampling
from specbench.run import session
from specbench.store import read_run

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
AGENT = (
    Message("user", "Is it raining?"),
    Message("assistant", "", {"tool_calls": [CALL]}),
    Message("tool", "Rain", {"tool_call_id": "c1", "name": "weather"}),
)
FULL = Prompt("p", AGENT, "0", None, (TOOL,), {"enable_thinking": False}, {"tool_choice": "auto"})


def asked(prompt, **common):
    config = SimpleNamespace(max_new_tokens=24, sampling=Sampling(), chat_template_kwargs=common or None)
    return ask_of(prompt, config, 7)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_body_has_all_that_a_prompt_has(name):
    body = ADAPTERS[name]().body(asked(FULL), "m")
    assert body["messages"] == [
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "Rain", "tool_call_id": "c1", "name": "weather"},
    ]
    assert body["tools"] == [TOOL]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["tool_choice"] == "auto"
    plain = ADAPTERS[name]().body(ASK, "m")
    assert not {"tools", "tool_choice", "chat_template_kwargs"} & set(plain)


def test_what_a_run_gives_the_template_gives_way_to_the_prompts_own():
    common = {"enable_thinking": True, "date": "today"}
    assert asked(FULL, **common).template_kwargs == {"enable_thinking": False, "date": "today"}
    bare = replace(FULL, template_kwargs={})
    assert asked(bare, **common).template_kwargs == common
    assert asked(bare).template_kwargs == {}


def test_a_wish_of_a_prompt_changes_none_of_our_own_fields():
    body = OpenAI().body(asked(replace(FULL, request={"max_tokens": 1, "stream": False})), "m")
    assert (body["max_tokens"], body["stream"]) == (24, True)


def test_a_greedy_request_has_no_seed():
    assert "seed" not in OpenAI().body(ASK, "m")
    assert OpenAI().body(replace(ASK, sampling=Sampling(0.5)), "m")["seed"] == 7


# Answers.


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def call(name=None, arguments=None, index=0):
    return delta(tool_calls=[{"index": index, "id": "x", "function": {"name": name, "arguments": arguments}}])


def test_calls_of_tools_are_text_and_have_times():
    events = [delta(role="assistant", content=None), call("weather", ""), call(None, '{"a"'), call(None, ": 1}")]
    events += [call("time", "{}", 1), said(None, "tool_calls"), usage(9)]
    got = OpenAI().read(stream(*events))
    assert (got.text, got.finish, got.first_s, got.last_s) == ('weather{"a": 1}time{}', "eos", 2.0, 6.0)
    other = [*events[:3], call(None, ": 2}"), *events[4:]]
    assert text_of(read(*other)) != got.text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"reasoning_content": "Hm. "}, "Hm. "),
        ({"reasoning": "Hm. "}, "Hm. "),
        ({"reasoning_content": "Hm. ", "reasoning": "Hm. "}, "Hm. "),
        ({"reasoning_content": None, "reasoning": "Hm. ", "content": ""}, "Hm. "),
        ({"refusal": "No."}, "No."),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "f{}"),
        ({"tool_calls": None, "content": "a"}, "a"),
    ],
)
def test_whatever_a_model_writes_is_text_and_has_a_time(fields, text):
    events = read(delta(role="assistant"), delta(**fields), said(None, "stop"))
    assert (text_of(events), stream_times(events)) == (text, (2.0, 3.0))


def test_llamacpp_tells_the_first_token_before_its_text():
    """As it did with a JSON schema: nine tokens went by before the first of them was sent."""
    timings = [{"predicted_n": 1}, {"predicted_n": 10}, {"predicted_n": 11}]
    deltas = ({"role": "assistant", "content": None}, {"content": "{"}, {"content": "}"})
    events = [delta(**one) | {"timings": told} for one, told in zip(deltas, timings, strict=True)]
    end = said(None, "length") | {"timings": {"predicted_n": 11}}
    got = LlamaCpp().read([*stream(*events), Chunk(4.0, end), Chunk(4.0, usage(11))])
    assert (got.first_s, got.last_s, got.output_tokens) == (1.0, 4.0, 11)


# Whether a server reads them.


@pytest.fixture
def with_tools(monkeypatch):
    """Prompts of a run have tools and arguments for the template."""
    real = session.prompts_of

    def prompts_of(config):
        workload, chosen = real(config)
        return workload, tuple(replace(p, tools=(TOOL,), template_kwargs={"thinking": False}) for p in chosen)

    monkeypatch.setattr(session, "prompts_of", prompts_of)


class Reading(FakeOpenAI):
    """A server whose prompts are longer by what it reads of `reads`."""

    reads: tuple[str, ...] = ()

    def answer(self, body):
        for event in super().answer(body):
            if "usage" in event:
                event["usage"]["prompt_tokens"] += sum(5 for name in self.reads if body.get(name))
            yield event


@pytest.mark.full
@pytest.mark.parametrize(
    ("reads", "says"),
    [
        ((), "with chat_template_kwargs and tools the first prompt"),
        (("tools",), "with chat_template_kwargs the first prompt"),
        (("tools", "chat_template_kwargs"), None),
    ],
)
def test_a_server_that_does_not_read_them_is_named(lab, tmp_path, with_tools, reads, says):
    with Reading() as alone, Reading() as drafting:
        alone.reads = drafting.reads = reads
        stored = measured(lab, tmp_path, alone, drafting)
    assert len(counted(stored)) == 12
    assert all(body["tools"] == [TOOL] for body in alone.seen[:2])
    said = [warning.message for warning in stored.run.warnings if warning.code == "prompt-not-read"]
    assert [message[: len(says or "")] for message in said] == ([] if says is None else [says])


def test_prompts_without_any_are_not_asked_about(lab, tmp_path):
    with FakeOpenAI() as alone, FakeOpenAI() as drafting:
        stored = measured(lab, tmp_path, alone, drafting)
    assert "prompt-not-read" not in codes(stored)
    assert {body["max_tokens"] for body in alone.seen} == {8, 12}


# Texts as token ids.


def test_llamacpp_writes_after_the_same_prompt():
    answers = {"apply-template": {"prompt": "x"}, "tokenize": {"tokens": [1]}}
    server = Posted(**answers, completion={"tokens": [2], "stop_type": "limit"})
    asyncio.run(LlamaCpp().write(server.post, asked(FULL), None))
    (path, body), *_ = server.asked
    chat = LlamaCpp().body(asked(FULL), None)
    assert path == "/apply-template"
    assert body == {key: chat[key] for key in ("messages", "tools", "chat_template_kwargs", "tool_choice")}


@pytest.mark.parametrize(
    "request_", [{"response_format": {"type": "json_object"}}, {"tool_choice": "required"}, {"grammar": "x"}]
)
def test_llamacpp_tells_no_ids_of_a_text_that_it_holds_to_a_grammar(request_):
    with pytest.raises(RefusedError, match=f"no token ids of texts under {next(iter(request_))}"):
        asyncio.run(LlamaCpp().write(Posted().post, asked(replace(FULL, request=request_)), None))


def test_a_prompt_that_cannot_be_replayed_is_listed_with_the_reason(lab, tmp_path, monkeypatch):
    real = session.prompts_of

    def prompts_of(config):
        workload, chosen = real(config)
        return workload, (replace(chosen[0], request={"response_format": {}}), *chosen[1:])

    monkeypatch.setattr(session, "prompts_of", prompts_of)
    with FakeScorer(text=TEXT) as target, FakeScorer(text=TEXT) as draft:
        folder = scored(lab, tmp_path, target, draft)
    assert len(read_positions(folder)) == 2
    (skipped,) = read_run(folder).run.workload.skipped
    assert skipped.reason == "the target: it tells no token ids of texts under response_format"
