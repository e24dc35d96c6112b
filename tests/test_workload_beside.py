"""Fields beside a prompt that change it or its answer: used, or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specbench.records import Message
from specbench.workload import Workload, load_workload, profile
from specbench.workload.shapes import asked_in

TRACK = {"name": "track", "description": "Find a parcel.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": TRACK}
SYSTEM = Message("system", "Be terse.")
HI = Message("user", "hi")
CHAT = [{"role": "user", "content": "hi"}]


def loaded(tmp_path: Path, *rows: object, **options: Any) -> Workload:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_workload(str(tmp_path / "a.jsonl"), **options)


def said(workload: Workload) -> dict[str, str]:
    return {caution.code: caution.message for caution in workload.cautions}


SHAPES: list[dict[str, Any]] = [
    {"messages": CHAT},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "no"}]},
    {"prompt": "hi"},
    {"instruction": "hi"},
    {"turns": ["hi", "and then?"]},
    {"body": {"messages": CHAT}},
]


@pytest.mark.parametrize("row", SHAPES, ids=[next(iter(row)) for row in SHAPES])
@pytest.mark.parametrize(
    "key", ["system", "system_prompt", "system_message", "system_instruction", "systemPrompt", "systemInstruction"]
)
def test_a_system_text_beside_any_shape_opens_the_conversation(row: dict[str, Any], key: str) -> None:
    for text in (
        "Be terse.",
        [{"type": "text", "text": "Be terse.", "cache_control": {}}],
        {"parts": [{"text": "Be terse."}]},
    ):
        found = asked_in({**row, key: text})
        assert found.messages == (SYSTEM, HI) and found.unused == ()
        if "body" in row:
            assert asked_in({"body": {**row["body"], key: text}}) == found


def test_a_system_text_that_is_there_already_is_not_told_twice(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "Be terse."}, *CHAT]}
    assert asked_in({**own, "system": "Be terse."}).messages == (SYSTEM, HI)
    assert asked_in({**own, "system": "Be terse."}).unused == ()
    both = loaded(tmp_path, {**own, "system": "Be a pirate."}, own)
    assert both.prompts[0].messages == both.prompts[1].messages == (SYSTEM, HI)
    assert "system (1 row)" in said(both)["fields-not-used"]
    assert asked_in({"prompt": "hi", "system": "Be terse.", "system_prompt": "Be a pirate."}).unused == (
        "system_prompt",
    )
    for empty in ("", " \n", None, []):
        assert asked_in({"prompt": "hi", "system": empty}).messages == (HI,)
    assert asked_in({"prompt": "hi", "system": 3}).unused == ("system",)


def test_a_prompt_beside_a_conversation_that_does_not_hold_it_is_named() -> None:
    assert asked_in({"messages": CHAT, "prompt": "Answer in French."}).unused == ("prompt",)
    assert asked_in({"messages": CHAT, "prompt": "hi"}).unused == ()


def test_the_system_text_of_a_row_goes_before_that_of_the_run(tmp_path: Path) -> None:
    workload = loaded(tmp_path, {"prompt": "hi", "system": "Be terse."}, {"prompt": "hi"}, system_prompt="Be kind.")
    assert [prompt.messages[0].content for prompt in workload.prompts] == ["Be terse.", "Be kind."]


@pytest.mark.parametrize("key", ["prompt", "instruction"])
def test_a_history_goes_before_the_question(key: str) -> None:
    turns = (Message("user", "1"), Message("assistant", "2"))
    for history in (
        [["1", "2"]],
        json.dumps([["1", "2"]]),
        [{"role": "user", "content": "1"}, {"from": "gpt", "value": "2"}],
    ):
        found = asked_in({key: "hi", "history": history, "system": "Be terse."})
        assert found.messages == (SYSTEM, *turns, HI) and found.unused == ()
    assert asked_in({"messages": [*CHAT, *CHAT], "history": [["1", "2"]]}).unused == ("history",)
    assert asked_in({"prompt": "hi", "history": "They met in Leeds."}).unused == ("history",)
    assert asked_in({"prompt": "hi", "history": []}).unused == ()


def test_an_instruction_takes_its_input_by_all_its_names() -> None:
    for name in ("input", "query", "context"):
        assert asked_in({"instruction": "do", name: "this"}).messages == (Message("user", "do\n\nthis"),)
        found = asked_in({"prompt": "do", name: "this"})
        assert found.messages == (Message("user", "do"),) and found.unused == (name,)
        assert asked_in({"prompt": "do this", name: "this"}).unused == ()


def test_an_instruction_beside_the_prompt_is_said() -> None:
    for name in ("instruction", "instructions", "question"):
        assert asked_in({"prompt": "Hello", name: "Translate to French"}).unused == (name,)
        assert asked_in({"prompt": "Translate to French: Hello", name: "Translate to French"}).unused == ()
    gemini = {"systemInstruction": {"parts": [{"text": "Be terse."}]}, "contents": [{"parts": [{"text": "hi"}]}]}
    gemini["contents"][0]["role"] = "user"  # type: ignore[index]
    assert asked_in(gemini, "contents").messages == (SYSTEM, HI)


TOOLS: list[tuple[str, Any]] = [
    ("OpenAI's", [TOOL]),
    ("JSON text", json.dumps([TOOL])),
    ("a list of JSON texts", [json.dumps(TOOL)]),
    ("bare functions", [TRACK]),
    ("one function", TRACK),
    ("no type", [{"function": TRACK}]),
    ("flat", [{"type": "function", **TRACK}]),
    ("Anthropic's", [{"name": "track", "description": "Find a parcel.", "input_schema": TRACK["parameters"]}]),
]


@pytest.mark.parametrize("tools", [case[1] for case in TOOLS], ids=[case[0] for case in TOOLS])
def test_tools_in_every_form_are_those_of_openai(tools: Any) -> None:
    for row in (
        {"prompt": "hi", "tools": tools},
        {"messages": CHAT, "functions": tools},
        {"body": {"messages": CHAT, "tools": tools}},
    ):
        assert asked_in(row).tools == (TOOL,)


@pytest.mark.parametrize("tools", ["hammer, saw", ["hammer"], 3, [[TOOL]], [{"description": "no name"}], '[{"type":'])
def test_tools_that_cannot_be_given_are_named(tools: Any) -> None:
    found = asked_in({"prompt": "hi", "tools": tools})
    assert found.tools == () and found.unused == ("tools",)


def test_what_only_a_server_understands_goes_to_the_request() -> None:
    fields = {"tool_choice": "auto", "response_format": {"type": "json_object"}, "parallel_tool_calls": False}
    fields |= {"stop": ["\n"], "logit_bias": {"5": 1}, "reasoning_effort": "low", "guided_json": {"type": "object"}}
    for row in ({"messages": CHAT, **fields}, {"body": {"messages": CHAT, **fields}}):
        found = asked_in(row)
        assert found.request == fields and found.unused == () and found.sampling == ()
    older = {"functions": [TRACK], "function_call": {"name": "track"}}
    found = asked_in({"body": {"messages": CHAT, **older}})
    assert found.request == {"tool_choice": {"type": "function", "function": {"name": "track"}}}
    assert asked_in({"messages": CHAT, "tool_choice": {"type": "any"}}).request == {"tool_choice": "required"}
    named = asked_in({"messages": CHAT, "tool_choice": {"type": "tool", "name": "track"}}).request
    assert named == found.request


def test_cells_and_columns_are_told_from_fields() -> None:
    cells = {"response_format": '{"type": "json_object"}', "tool_choice": "auto", "enable_thinking": "False"}
    found = asked_in({"prompt": "hi", **cells})
    assert found.request == {"response_format": {"type": "json_object"}, "tool_choice": "auto"}
    assert found.template_kwargs == {"enable_thinking": False}
    column = asked_in({"prompt": "hi", "reasoning": "Because.", "thinking": "Hm.", "regex": "a+"})
    assert column.request == {} and column.unused == ()
    field = {"thinking": {"type": "disabled"}, "reasoning": {"effort": "low"}}
    assert asked_in({"messages": CHAT, **field}).request == field
    assert asked_in({"messages": CHAT, "extra_body": {"guided_regex": "[0]"}}).request == {"guided_regex": "[0]"}


def test_arguments_of_the_template_are_read_wherever_they_stand() -> None:
    kwargs = {"enable_thinking": False}
    body = {"messages": CHAT}
    rows: list[dict[str, Any]] = [
        {"prompt": "hi", "chat_template_kwargs": kwargs},
        {"prompt": "hi", "chat_template_kwargs": json.dumps(kwargs)},
        {"prompt": "hi", **kwargs},
        {"body": {**body, "chat_template_kwargs": kwargs}},
        {"body": {**body, **kwargs}},
        {"body": {**body, "extra_body": {"chat_template_kwargs": kwargs}}},
        {"body": {**body, "extra_body": kwargs}},
    ]
    for row in rows:
        found = asked_in(row)
        assert found.template_kwargs == kwargs and found.unused == () and found.request == {}
    ours = asked_in({"prompt": "hi", "chat_template_kwargs": {"tokenize": False, "date": "today"}})
    assert ours.template_kwargs == {"date": "today"} and ours.unused == ("chat_template_kwargs.tokenize",)
    assert asked_in({"prompt": "hi", "chat_template_kwargs": "yes"}).unused == ("chat_template_kwargs",)


def test_settings_of_a_run_are_counted_and_bookkeeping_is_not(tmp_path: Path) -> None:
    idle = {
        "model": "m",
        "stream": True,
        "user": "u",
        "metadata": {"a": 1},
        "n": 1,
        "presence_penalty": 0,
        "seed": None,
    }
    bodies = [
        {"messages": CHAT, **idle},
        {"messages": CHAT, **idle, "temperature": 0.7, "max_tokens": 9},
        {"messages": CHAT, **idle, "temperature": 0, "n": 2, "chat_template": "{{ 1 }}", "vendor": [1]},
        {"messages": CHAT, "Zanzibar is where?": 1},
    ]
    found = said(
        loaded(
            tmp_path, *({"custom_id": f"r{i}", "method": "POST", "url": "/", "body": b} for i, b in enumerate(bodies))
        )
    )
    assert found["sampling-not-used"].endswith("temperature (2 rows), max_tokens (1 row)")
    assert found["fields-not-used"].endswith(
        "n (1 row), chat_template (1 row), vendor (1 row), 1 not shown because it may be prompt text"
    )
    plain = said(loaded(tmp_path, {"prompt": "hi", "answer": "no", "source": "web", "vendor": 1}))
    assert "fields-not-used" not in plain and "sampling-not-used" not in plain


@pytest.mark.parametrize("key", ["image", "images", "videos", "audio", "chat_template", "suffix"])
def test_what_no_text_prompt_can_hold_is_named(key: str) -> None:
    assert asked_in({"prompt": "hi", key: ["x"]}).unused == (key,)
    assert asked_in({"prompt": "hi", key: []}).unused == ()


def test_the_hash_sees_all_that_is_asked_and_stays_where_nothing_more_is(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}],
    }
    rows: list[dict[str, Any]] = [
        {"prompt": "hi"},
        {"prompt": "hi", "tools": [TOOL]},
        {"prompt": "hi", "enable_thinking": False},
        {"prompt": "hi", "enable_thinking": True},
        {"prompt": "hi", "tool_choice": "auto"},
        {"messages": [*CHAT, call, {"role": "tool", "tool_call_id": "x", "content": "42"}]},
        {"messages": [*CHAT, {"role": "tool", "tool_call_id": "y", "content": "42"}]},
        {"messages": [*CHAT, {"role": "tool", "content": "42"}]},
    ]
    assert len({prompt.sha256 for prompt in loaded(tmp_path, *rows).prompts}) == len(rows)
    assert loaded(tmp_path, rows[0]).prompts[0].id == "p-897be8e1f0"  # of [["user","hi"]]
    one, other = (
        {"prompt": "hi", "stop": "a", "tool_choice": "auto"},
        {"prompt": "hi", "tool_choice": "auto", "stop": "a"},
    )
    assert loaded(tmp_path, one).prompts[0].sha256 == loaded(tmp_path, other).prompts[0].sha256


def test_the_profile_counts_who_has_what(tmp_path: Path) -> None:
    rows = [{"prompt": "hi", "tools": [TOOL]}, {"prompt": "ho", "tools": [TOOL], "enable_thinking": False}]
    rows += [{"prompt": "ha", "tool_choice": "auto"}, {"prompt": "he"}]
    (found,) = profile(loaded(tmp_path, *rows)).categories
    assert (found.tools_share, found.template_kwargs_share, found.request_share) == (0.5, 0.25, 0.25)
