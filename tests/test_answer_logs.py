"""Every source of recorded answers, read: what is asked, what is answered, how it ended."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from answer_logs import ANSWER, JOINED, QUESTION, REFUSED, SAMPLES, SYSTEM, lines

from specbench.errors import WorkloadError
from specbench.workload.answers import AnswerLog
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.replies import is_log
from specbench.workload.sources import exchanges_in

ASK = {"role": "user", "content": "x"}


def read(folder, name, text, answers=None):
    (folder / name).write_text(text)
    if answers is not None:
        (folder / "answers.jsonl").write_text(answers)
    log = AnswerLog(str(folder / name), answers=None if answers is None else str(folder / "answers.jsonl"))
    found, _ = log.survey()
    return found, list(log)


@pytest.mark.parametrize("source", SAMPLES)
def test_every_answer_of_a_source_is_read_with_what_was_asked(tmp_path, source):
    name, text, count = SAMPLES[source]
    found, answers = read(tmp_path, name, text)
    assert (found.answers, len(answers)) == (count, count)
    for one in answers:
        assert one.reply.message.content == ANSWER
        assert one.prompt.messages[-1].content == QUESTION
        assert one.prompt.messages[0].content in (SYSTEM, QUESTION)
    assert len({one.prompt.id for one in answers}) == count


@pytest.mark.parametrize("source", JOINED)
def test_answers_of_another_file_are_joined_by_id(tmp_path, source):
    asked, answered, count = JOINED[source]
    found, answers = read(tmp_path, "asked.jsonl", asked, answered)
    assert found.answers == count
    assert all(one.reply.message.content == ANSWER and one.reply.model == "m-1" for one in answers)
    found, _ = read(tmp_path, "more.jsonl", asked + asked.replace("81", "82").replace("b-1", "b-2"), answered)
    assert found.answers == count
    assert "no answer of another file has its id" in found.skipped[0].reason


def test_what_a_prompt_leaves_empty_does_not_hide_the_answer_of_another_file(tmp_path):
    """As a table of prompts has it that has a column for answers."""
    asked = lines({"id": 1, "prompt": QUESTION, "response": None}, {"id": 2, "prompt": QUESTION})
    _, answers = read(tmp_path, "asked.jsonl", asked, lines({"id": 1, "response": "a"}, {"id": 2, "response": "b"}))
    assert [one.reply.message.content for one in answers] == ["a", "b"]


@pytest.mark.parametrize("what", REFUSED)
def test_what_holds_no_answers_is_refused_by_name_and_without_its_text(tmp_path, what):
    name, text, said = REFUSED[what]
    with pytest.raises(WorkloadError) as error:
        read(tmp_path, name, text)
    assert said in error.value.line()
    assert "canary" not in error.value.line()
    assert "\n" not in error.value.line()


def test_every_turn_has_all_before_it_and_belongs_to_its_conversation(tmp_path):
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"t{i}"} for i in range(6)]
    rows = [
        {"messages": [{"role": "assistant", "content": "Welcome!"}, *turns], "tools": [{"name": "f", "parameters": {}}]}
    ]
    rows += [{"messages": turns[:2]}, {"messages": [{"role": "user", "content": "other"}, turns[1]]}]
    _, answers = read(tmp_path, "a.jsonl", lines(*rows))
    assert [len(one.prompt.messages) for one in answers] == [2, 4, 6, 1, 1]
    assert [one.prompt.id for one in answers] == ["line-1", "line-1.2", "line-1.3", "line-2", "line-3"]
    assert all(one.prompt.tools for one in answers[:3])
    assert len({one.conversation for one in answers[:3]}) == 1
    assert len({one.conversation for one in answers}) == 3


def test_how_an_answer_ended_and_what_it_was_asked_with(tmp_path):
    _, (one,) = read(tmp_path, *SAMPLES["OpenAI log"][:2])
    assert (one.reply.finish, one.limit, one.temperature, one.reply.model) == ("eos", 64, 0.5, "m-1")
    _, (one, streamed) = read(tmp_path, *SAMPLES["aiperf"][:2])
    assert (one.reply.finish, streamed.reply.finish) == ("eos", "length")
    assert one.conversation == streamed.conversation
    _, (one,) = read(tmp_path, *SAMPLES["OpenAI completions"][:2])
    assert (one.form, one.reply.finish) == ("text", "length")
    stopped = {"choices": [{"message": {"content": ANSWER}, "finish_reason": "stop", "stop_reason": "###"}]}
    _, (one,) = read(
        tmp_path, "b.jsonl", lines({"request": {"messages": [{"role": "user", "content": "x"}]}, "response": stopped})
    )
    assert one.reply.finish == "length"  # no end of sequence was written


@pytest.mark.parametrize(
    "said",
    [
        '{"text": "hi", "n": 1}',
        '["a", "b"]',
        '{"content": "hello", "tags": []}',
        '{"name": "x"}',
        "{}",
        "[1, 2]",
        '{"choices": [{"text": "Leeds"}, {"text": "York"}]}',
        '{"error": "none"}',
    ],
)
def test_an_answer_that_is_json_stays_as_it_was_written(said):
    message = {"role": "assistant", "content": said}
    for row in (
        {"instruction": "x", "output": said},
        {"request": {"messages": [ASK]}, "response": said},
        {"traceId": "t", "input": "x", "output": said},
        {"run_type": "llm", "inputs": {"messages": [ASK]}, "outputs": {"generations": [[{"text": said}]]}},
        {"traceId": "t", "input": "x", "output": json.dumps(message)},
        {"messages": [ASK], "response": json.dumps({"choices": [{"message": message}]})},
        {"messages": [ASK], "response": json.dumps([message])},
    ):
        (one,) = exchanges_in(row)[1]
        assert one.reply.message.content == said


TALK = [ASK, {"role": "assistant", "content": "y"}, ASK]


@pytest.mark.parametrize("key", ["response", "completion", "output", "answer"])
@pytest.mark.parametrize(
    "asked",
    [{"messages": TALK}, {"request": {"messages": TALK}}, {"conversations": json.dumps(TALK)}, {"body": TALK}],
)
def test_a_text_beside_a_conversation_is_its_reply(tmp_path, asked, key):
    (one,) = exchanges_in({"system": "s", **asked, key: "final"})[1]
    assert (one.reply.message.content, len(one.asked.messages)) == ("final", 4 if {*asked} - {"request", "body"} else 3)
    _, (joined,) = read(tmp_path, "a.jsonl", lines({"id": 1, **asked}), lines({"id": 1, key: "final"}))
    assert joined.reply.message.content == "final"
    done = {"messages": TALK[:2], key: "y"}
    assert [each.reply.message.content for each in exchanges_in(done)[1]] == ["y"]


CUT = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK], "response": {"index": 0, "message": CUT, "finish_reason": "length"}},
        {"messages": [ASK], "response": {"text": "x", "finish_reason": "length"}},
        {"messages": [ASK], "response": {"message": CUT, "done_reason": "length"}},
        {"messages": [ASK], "response": {**CUT, "type": "message", "stop_reason": "max_tokens"}},
        {"messages": [ASK], "response": "x", "finish_reason": "length"},
        {"prompt": "x", "completion": "x", "finish_reason": "length"},
        {"messages": [ASK, CUT], "finish_reason": "length"},
        {
            "run_type": "llm",
            "inputs": {"messages": [ASK]},
            "outputs": {"generations": [[{"text": "x", "generation_info": {"done_reason": "length"}}]]},
        },
    ],
)
def test_the_end_is_said_beside_the_answer(row):
    (one,) = exchanges_in(row)[1]
    assert one.reply.finish == "length"
    ended = json.dumps(row).replace("length", "stop").replace("max_tokens", "end_turn")
    (one,) = exchanges_in(json.loads(ended))[1]
    assert one.reply.finish == "eos"


def test_rows_that_are_called_after_a_log_are_rows(tmp_path):
    for name in ("server.log.jsonl", "server.log.jsonl.gz"):
        assert not is_log(tmp_path / name)
    for name in ("vllm.log", "vllm.LOG", "vllm.log.1", "vllm.log.gz", "vllm.out"):
        assert is_log(tmp_path / name)


def test_what_is_absent_gives_way():
    nan = float("nan")
    for more in ({"input": nan}, {"instruction": nan}, {"messages": nan}, {"messages": []}, {"system": nan}):
        (one,) = exchanges_in({"prompt": "x", "output": "y", **more})[1]
        assert (one.asked.messages[-1].content, one.asked.unused, one.reply.finish) == ("x", (), None)
    (one,) = exchanges_in({"prompt": "x", "instruction": "Say it in French.", "output": "y"})[1]
    assert one.asked.unused == ("instruction",)
    deep = "x"
    for _ in range(600):
        deep = {"message": deep}
    assert [each.reply.message.content for each in exchanges_in({"messages": [ASK], "response": "x"})[1]] == ["x"]
    with suppress(MalformedRowError):
        list(exchanges_in({"messages": [ASK], "response": deep})[1])


def test_token_ids_of_a_log_are_taken(tmp_path):
    _, (whole, streamed) = read(tmp_path, *SAMPLES["vLLM log"][:2])
    assert (whole.reply.ids, whole.reply.prompt_ids, whole.reply.finish) == ((8, 9), (5, 6, 7), "eos")
    assert (whole.form, whole.limit, whole.temperature) == ("rendered", 64, 0.5)
    assert (streamed.reply.ids, streamed.reply.prompt_ids, streamed.reply.finish) == ((8, 9, 3), None, "length")
    assert streamed.form == "text"
    small = SAMPLES["vLLM log"][1].replace("temperature=0.5", "temperature=5e-05")
    assert [one.temperature for one in read(tmp_path, "small.log", small)[1]] == [5e-05] * 2
    entry = {"token": "token_id:8", "logprob": -0.5}
    choice = {"message": {"content": "x"}, "logprobs": {"content": [entry, entry | {"token": "token_id:9"}]}}
    request = {"messages": [{"role": "user", "content": "x"}]}
    _, (one,) = read(tmp_path, "a.jsonl", lines({"request": request, "response": {"choices": [choice]}}))
    assert (one.reply.ids, one.reply.log_probs) == ((8, 9), (-0.5, -0.5))


def test_what_is_left_out_is_counted_and_said(tmp_path):
    found, _ = read(tmp_path, *SAMPLES["chat rows"][:2])
    assert [(one.where, one.reason) for one in found.skipped] == [
        ("line 2", "no turn of an assistant in the conversation")
    ]
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    rows += [
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "y"}]}
    ] * 150
    found, answers = read(tmp_path, "b.jsonl", lines(*rows))
    assert (len(answers), found.left_out, len(found.skipped)) == (1, 150, 100)


def test_the_same_answers_have_the_same_hash_and_another_answer_another(tmp_path):
    name, text, _ = SAMPLES["OpenAI log"]
    first, _ = read(tmp_path, name, text)
    again, _ = read(tmp_path, "copy.jsonl", text)
    other, _ = read(tmp_path, "other.jsonl", text.replace("because", "therefore"))
    assert first.sha256 == again.sha256 != other.sha256


def test_calls_of_tools_and_thoughts_are_part_of_an_answer(tmp_path):
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": json.dumps({"a": 1})}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}
    row = {"messages": [{"role": "user", "content": "x"}], "response": {"choices": [{"message": message}]}}
    _, (one,) = read(tmp_path, "a.jsonl", lines(row))
    assert one.reply.message.fields["reasoning_content"] == "hm"
    assert one.reply.message.fields["tool_calls"][0]["function"]["name"] == "look"


def test_words_of_the_log_in_a_text_do_not_hide_the_answer(tmp_path):
    asked, said = "why was the request slow? Generated response", "the request was long; Received request x: y"
    log = (
        f"Request cmpl-1 details: prompt: {asked!r}, prompt_token_ids: [5, 6]\n"
        f"Generated response cmpl-1: output: {said!r}, output_token_ids: [8], finish_reason: stop\n"
    )
    _, (one,) = read(tmp_path, "vllm.log", log)
    assert (one.prompt.messages[0].content, one.reply.message.content) == (asked, said)


ANYTHING = [None, True, -1, 10**400, "", "[", [], [1], [[]], {}, {"a": 1}, [None], [{}], {"content": 5}, "\ud800"]


def places(value, at=()):
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def planted(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = planted(value[at[0]], at[1:], new)
    return copy


@pytest.mark.parametrize("source", sorted(name for name, one in SAMPLES.items() if one[0].endswith(".jsonl")))
def test_anything_at_any_place_of_a_row_is_read_or_left_out(source):
    for row in map(json.loads, SAMPLES[source][1].splitlines()):
        for at in places(row):
            for new in ANYTHING:
                with suppress(SkipRowError, MalformedRowError):
                    list(exchanges_in(planted(row, at, new))[1])
