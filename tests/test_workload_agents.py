"""Conversations of agents and of their libraries: every form of a turn is the one that OpenAI has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specbench.records import Message
from specbench.workload import load_workload
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.shapes import asked_in

ASKED = Message("user", "Where?")
USER = {"role": "user", "content": "Where?"}


def call(own: str, arguments: str = '{"number": "7"}') -> dict[str, Any]:
    return {"id": own, "type": "function", "function": {"name": "track", "arguments": arguments}}


def called(own: str = "x", content: str = "") -> Message:
    return Message("assistant", content, {"tool_calls": [call(own)]})


def answered(own: str = "x", content: str = "Leeds") -> Message:
    return Message("tool", content, {"tool_call_id": own})


def turns(*entries: Any) -> tuple[Message, ...]:
    return asked_in({"messages": list(entries)}).messages


OBJECT = {"number": "7"}
CALLS: list[tuple[str, Any]] = [
    ("OpenAI", {"role": "assistant", "content": None, "tool_calls": [call("x")]}),
    ("without content", {"role": "assistant", "tool_calls": [call("x")]}),
    ("as JSON text", {"role": "assistant", "content": None, "tool_calls": json.dumps([call("x")])}),
    (
        "an object of arguments",
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "x", "function": {"name": "track", "arguments": OBJECT}}],
        },
    ),
    ("bare", {"role": "assistant", "content": "", "tool_calls": [{"id": "x", "name": "track", "arguments": OBJECT}]}),
    ("LangChain", {"type": "ai", "content": "", "tool_calls": [{"id": "x", "name": "track", "args": OBJECT}]}),
    (
        "LangChain's data",
        {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "track", "args": OBJECT, "id": "x"}]}},
    ),
    (
        "LangChain's constructor",
        {
            "lc": 1,
            "type": "constructor",
            "id": ["langchain", "schema", "messages", "AIMessage"],
            "kwargs": {"content": "", "additional_kwargs": {"tool_calls": [call("x")]}},
        },
    ),
    (
        "Anthropic",
        {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "track", "input": OBJECT}]},
    ),
    (
        "Responses",
        {"type": "function_call", "id": "fc", "call_id": "x", "name": "track", "arguments": '{"number": "7"}'},
    ),
]
ANSWERS: list[tuple[str, Any]] = [
    ("OpenAI", {"role": "tool", "tool_call_id": "x", "content": "Leeds"}),
    ("parts", {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "Leeds"}]}),
    ("LangChain", {"type": "tool", "tool_call_id": "x", "content": "Leeds"}),
    ("ToolMessage", {"type": "ToolMessage", "tool_call_id": "x", "content": "Leeds"}),
    (
        "Anthropic",
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "Leeds"}]}],
        },
    ),
    ("Responses", {"type": "function_call_output", "call_id": "x", "output": "Leeds"}),
    ("observation", {"from": "observation", "value": "Leeds"}),
]


@pytest.mark.parametrize("entry", [case[1] for case in CALLS], ids=[case[0] for case in CALLS])
def test_calls_of_tools(entry: Any) -> None:
    assert turns(USER, entry, ANSWERS[0][1]) == (ASKED, called(), answered())


@pytest.mark.parametrize("entry", [case[1] for case in ANSWERS], ids=[case[0] for case in ANSWERS])
def test_answers_of_tools_are_where_the_next_answer_is_asked_for(entry: Any) -> None:
    done = {"role": "assistant", "content": "In Leeds."}
    assert turns(USER, CALLS[0][1], entry, done) == (ASKED, called(), answered())


def test_sharegpt_turns_of_agents_get_ids() -> None:
    entries = [
        {"from": "human", "value": "Where?"},
        {"from": "function_call", "value": '{"name": "track", "arguments": {"number": "7"}}'},
        {"from": "observation", "value": "{}"},
        {"from": "gpt", "value": "York."},
    ]
    expected = (ASKED, called("call00001"), answered("call00001", "{}"))
    assert asked_in({"conversations": entries}).messages == expected
    assert asked_in({"conversations": entries[:2]}).messages == (ASKED,)
    several = {"from": "tool_call", "value": json.dumps([json.loads(entries[1]["value"])] * 2)}
    found = turns(entries[0], several, entries[2], entries[2])
    assert [c["id"] for c in found[1].fields["tool_calls"]] == ["call00001", "call00002"]
    assert [m.fields["tool_call_id"] for m in found[2:]] == ["call00001", "call00002"]
    text = turns(entries[0], {"from": "function_call", "value": "track(7)"}, entries[2])
    assert text[1:] == (Message("assistant", "track(7)"), Message("tool", "{}"))


def test_a_legacy_function_call_and_its_answer() -> None:
    legacy = {"name": "track", "arguments": '{"number": "7"}'}
    for entry in (
        {"role": "assistant", "content": None, "function_call": legacy},
        {"role": "assistant", "content": "", "function_call": json.dumps(legacy)},
    ):
        found = turns(USER, entry, {"role": "function", "name": "track", "content": "Leeds"})
        answer = Message("tool", "Leeds", {"tool_call_id": "call00001", "name": "track"})
        assert found[1:] == (called("call00001"), answer)


ROLES = [
    ("system", "system system_ developer SystemMessage SYSTEM"),
    ("user", "user User human Human HumanMessage prompter"),
    ("assistant", "assistant gpt chatgpt model bot ai AI AIMessage AIMessageChunk"),
    ("tool", "tool function ipython observation tool_response tool-result toolResult environment ToolMessage"),
]


@pytest.mark.parametrize(("role", "names"), ROLES, ids=[case[0] for case in ROLES])
@pytest.mark.parametrize("key", ["role", "from", "speaker", "type"])
def test_names_of_roles(role: str, names: str, key: str) -> None:
    for name in names.split():
        found = turns({key: name, "content": "a"}, USER)
        assert [message.role for message in found] == [role, "user"], name


def test_contents() -> None:
    nested = [{"type": "input_text", "text": "a"}, None, ["b", {"type": "output_text", "text": "c"}], {"text": "d"}]
    for content in (nested, {"parts": nested}):
        assert turns({"role": "user", "content": content}) == (Message("user", "a\nb\nc\nd"),)
    assert turns({"role": "user", "parts": [{"text": "a"}]}) == (Message("user", "a"),)
    assert turns({"role": "user", "content": {"type": "text", "text": "a"}}) == (Message("user", "a"),)
    value = {"type": "text", "text": {"value": "a", "annotations": []}}
    assert turns({"role": "user", "content": [value]}) == (Message("user", "a"),)
    for refused in ({"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}):
        assert turns(USER, {"role": "assistant", **refused}, USER)[1] == Message("assistant", "No.")
    thought = Message("assistant", "Leeds.", {"reasoning_content": "Hm."})
    for said in (
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Leeds."}]},
        {"content": [{"type": "reasoning", "text": "Hm."}, "Leeds."]},
        {"content": "Leeds.", "reasoning_content": "Hm."},
        {"content": "Leeds.", "reasoning": "Hm."},
    ):
        assert turns(USER, {"role": "assistant", **said}, USER)[1] == thought
    assert turns(USER, CALLS[0][1], {"role": "tool", "content": None})[-1] == Message("tool", "", {"tool_call_id": "x"})


@pytest.mark.parametrize(
    "data",
    [{"seen": "Leeds"}, [{"title": "A", "text": "B"}], [{"id": 1}], [{"text": "a"}, 7], [1.5], 42, True, [None, 1]],
)
def test_what_a_tool_gave_and_nobody_made_a_text_is_json(data: Any) -> None:
    for answer in (
        {"role": "tool", "content": data},
        {"role": "user", "content": [{"type": "tool_result", "content": data}]},
    ):
        assert turns(USER, CALLS[0][1], answer)[-1].content == json.dumps(data)
    parts = [{"text": "a"}, {"type": "text", "text": "b"}, "c"]
    assert turns(USER, CALLS[0][1], {"role": "tool", "content": parts})[-1].content == "a\nb\nc"


def test_what_the_user_says_beside_the_answer_of_a_tool_comes_after_it() -> None:
    both = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "x", "content": "Leeds"}, {"type": "text", "text": "And?"}],
    }
    assert turns(USER, CALLS[0][1], both) == (ASKED, called(), answered(), Message("user", "And?"))


def test_a_name_is_kept() -> None:
    assert turns({**USER, "name": "Ann"}) == (Message("user", "Where?", {"name": "Ann"}),)


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "redacted_thinking", "file", None])
def test_parts_that_are_no_text_leave_the_row_out(kind: str | None) -> None:
    with pytest.raises(SkipRowError, match="not text"):
        turns({"role": "user", "content": ["a", {"type": kind, "data": "x"}]})


BROKEN: list[Any] = [
    {"role": "alien", "content": "a"},
    {"role": "assistant", "content": "", "tool_calls": 3},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": "{}"}}]},
    {"role": "assistant", "content": 3},
    {"role": "assistant", "content": "", "function_call": "track"},
    {"role": "user"},
    "Where?",
    None,
]


@pytest.mark.parametrize("entry", BROKEN)
def test_a_broken_turn_costs_its_row_and_no_other(entry: Any, tmp_path: Path) -> None:
    with pytest.raises(MalformedRowError):
        turns(USER, entry, USER)
    rows = [{"prompt": f"What is {n}?"} for n in range(3)]
    rows.insert(1, {"id": "odd", "messages": [USER, entry, USER]})  # type: ignore[dict-item]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    workload = load_workload(str(tmp_path / "a.jsonl"))
    assert len(workload.prompts) == 3 and [skipped.name for skipped in workload.skipped] == ["line 2 (odd)"]
    assert [caution.code for caution in workload.cautions] == ["few-prompts"]


def test_more_than_half_left_out_is_said_loudly(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "good"}, {"messages": [{"role": "alien", "content": "a"}]}]
    for bad, codes in ((1, ["few-prompts"]), (2, ["rows-left-out", "few-prompts"])):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [rows[0], *[rows[1]] * bad])))
        assert [caution.code for caution in load_workload(str(tmp_path / "a.jsonl")).cautions] == codes


TURNS = [{"role": "system", "content": "Be terse."}, USER, CALLS[0][1], ANSWERS[0][1]]


@pytest.mark.parametrize("key", ["prompt", "instruction", "messages", "conversations", "turns", "question", "body"])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_in_a_cell_is_the_same_conversation_under_any_name(key: str, indent: int | None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TURNS}))
    (tmp_path / "b.jsonl").write_text(json.dumps({key: json.dumps(TURNS, indent=indent)}))
    column = key if key in ("question", "body") else None
    found = load_workload(str(tmp_path / "b.jsonl"), column=column)
    assert found.sha256 == load_workload(str(tmp_path / "a.jsonl")).sha256


@pytest.mark.parametrize("value", [{"messages": TURNS, "tools": []}, json.dumps({"messages": TURNS})])
def test_a_whole_request_in_a_cell_is_read(value: Any) -> None:
    assert asked_in({"prompt": value}).messages == asked_in({"messages": TURNS}).messages
    assert asked_in({"input": value}, "input").messages == asked_in({"messages": TURNS}).messages


TEXTS = [
    "[1] What is meant by this?",
    "[INST] hi [/INST]",
    '["a", "b"]',
    "[]",
    "[" * 100_000,
    '[{"name": "Ann", "age": 7}]',
    '[{"role": "admin", "content": "secret"}]',
    '[{"role": "user", "content": "hi"}] What is wrong with this JSON?',
    '{"role": "user"}',
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("key", ["prompt", "instruction"])
def test_a_text_that_merely_begins_like_json_is_text(key: str, text: str) -> None:
    assert asked_in({key: text}).messages == (Message("user", text),)


def test_a_line_of_plain_text_is_text(tmp_path: Path) -> None:
    line = json.dumps([USER])
    (tmp_path / "a.txt").write_text(line)
    assert load_workload(str(tmp_path / "a.txt")).prompts[0].messages == (Message("user", line),)


@pytest.mark.parametrize("text", ['[{"role": "user", "content": "Wh', "[{'role': 'user', 'content': 'Where?'}]"])
def test_a_conversation_cut_short_or_printed_by_python_is_warned_of(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": text}))
    workload = load_workload(str(tmp_path / "a.jsonl"))
    assert workload.prompts[0].messages == (Message("user", text),)
    assert [caution.code for caution in workload.cautions] == ["turns-as-text", "few-prompts"]
