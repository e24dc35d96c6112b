"""Every row shape that data sets come in, and what is kept of a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from specbench.records import Message
from specbench.workload.faults import MalformedRowError, SkipRowError
from specbench.workload.shapes import asked_in


def messages_of(row: Any, column: str | None = None) -> tuple[Message, ...]:
    return asked_in(row, column).messages


def said(*turns: str) -> tuple[Message, ...]:
    """ "u:hello" -> a user message."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)  # type: ignore[arg-type]


def chat(*turns: str) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in said(*turns)]


def sharegpt(*turns: str) -> list[dict[str, str]]:
    names = {"s": "system", "u": "human", "a": "gpt"}
    return [{"from": names[turn[0]], "value": turn[2:]} for turn in turns]


SHAPES: list[tuple[str, Any, tuple[Message, ...]]] = [
    ("string", "hi", said("u:hi")),
    ("prompt", {"prompt": " hi \n"}, said("u: hi \n")),
    ("prompt as messages", {"prompt": chat("s:be", "u:hi")}, said("s:be", "u:hi")),
    ("messages", {"messages": chat("u:1", "a:2", "u:3", "a:4")}, said("u:1", "a:2", "u:3")),
    ("developer", {"messages": [{"role": "developer", "content": "d"}, *chat("u:1")]}, said("s:d", "u:1")),
    ("null fields", {"messages": [{"role": "user", "content": "1", "name": None, "tool_calls": None}]}, said("u:1")),
    ("a system turn at the end", {"messages": chat("u:1", "s:2", "a:3")}, said("u:1", "s:2")),
    ("two answers at the end", {"messages": chat("u:1", "a:2", "a:3")}, said("u:1")),
    ("json in a csv cell", {"messages": '[{"role": "user", "content": "hi"}]'}, said("u:hi")),
    ("batch chat", {"custom_id": "r1", "method": "POST", "body": {"messages": chat("u:hi", "a:no")}}, said("u:hi")),
    ("batch completion", {"custom_id": "r1", "body": {"prompt": "hi"}}, said("u:hi")),
    ("sharegpt", {"conversations": sharegpt("s:0", "u:1", "a:2", "u:3", "a:4")}, said("s:0", "u:1", "a:2", "u:3")),
    ("conversations with roles", {"conversations": chat("u:1", "a:2")}, said("u:1")),
    ("turns", {"question_id": 1, "turns": ["first", "second"]}, said("u:first")),
    ("turns with roles", {"turns": chat("s:0", "u:1", "u:2")}, said("s:0", "u:1")),
    ("turns with recorded answers", {"turns": chat("u:1", "a:2", "u:3")}, said("u:1", "a:2", "u:3")),
    ("alpaca", {"instruction": "do", "input": "", "output": "x"}, said("u:do")),
    ("alpaca with input", {"instruction": "do", "input": "this"}, said("u:do\n\nthis")),
]


@pytest.mark.parametrize(("row", "expected"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
def test_shape(row: Any, expected: tuple[Message, ...]) -> None:
    assert messages_of(row) == expected


def test_shapes_are_tried_in_order_and_null_counts_as_absent() -> None:
    row: dict[str, Any] = {
        "instruction": "6",
        "prompt": "5",
        "turns": ["4"],
        "conversations": sharegpt("u:3"),
        "body": {"prompt": "2"},
        "messages": chat("u:1"),
    }
    for expected in "123456":
        assert messages_of(row)[0].content == expected
        row[list(row)[6 - int(expected)]] = None
    with pytest.raises(SkipRowError, match="empty prompt"):
        messages_of(row)


def test_what_data_frames_write_for_absent_is_absent() -> None:
    nan = float("nan")
    for row in (
        {"messages": nan, "prompt": "hi"},
        {"messages": [], "prompt": "hi"},
        {"prompt": "", "instruction": "hi"},
        {"instruction": "hi", "input": nan},
        {"prompt": "hi", "system": nan, "history": nan, "tools": nan, "stop": nan},
    ):
        found = asked_in(row)
        assert (found.messages, found.unused, found.request) == (said("u:hi"), (), {})
    with pytest.raises(SkipRowError, match="empty prompt"):
        asked_in({"q": nan}, "q")


def test_column_wins_over_every_shape_and_takes_text_or_messages() -> None:
    row = {"prompt": "no", "q": "yes", "chat": chat("u:1", "a:2"), "turns": ["a", "b"], "messages": chat("u:no")}
    assert messages_of(row, "q") == said("u:yes")
    assert messages_of(row, "chat") == said("u:1")
    assert messages_of(row, "turns") == said("u:a")


def test_a_mail_with_a_body_is_not_a_batch_line() -> None:
    assert messages_of({"body": "Dear all", "prompt": "hi"}) == said("u:hi")
    assert messages_of({"queue": "refunds", "body": "Dear all"}, "body") == said("u:Dear all")
    with pytest.raises(MalformedRowError) as caught:
        messages_of({"queue": "refunds", "body": "Dear all"})
    assert "its columns: queue, body" in caught.value.what and "one of messages, conv" in caught.value.hint


def test_text_parts_are_joined_and_nulls_of_other_parts_do_not_matter() -> None:
    parts = [{"type": "text", "text": "a", "image_url": None}, {"type": "input_text", "text": "b"}, "c"]
    assert messages_of({"messages": [{"role": "user", "content": parts}]}) == said("u:a\nb\nc")


SKIPPED: list[tuple[Any, str]] = [
    ({"prompt": ""}, "empty prompt"),
    ({"instruction": " ", "input": "\n"}, "empty prompt"),
    ({"turns": []}, "empty prompt"),
    ({"messages": chat("u:1", "a:2", "u: ")}, "empty prompt"),
    ({"messages": []}, "no user message"),
    ({"conversations": sharegpt("a:1")}, "no user message"),
    ({"messages": [*chat("u:1"), {"role": "user", "content": "2", "images": ["x.png"]}]}, "not text: images"),
    ({"messages": [*chat("u:1"), {"role": "assistant", "content": None}, *chat("u:2")]}, "such as a tool call"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "not text: .* input_audio"),
]


@pytest.mark.parametrize(("row", "reason"), SKIPPED)
def test_rows_that_are_skipped(row: Any, reason: str) -> None:
    with pytest.raises(SkipRowError, match=reason):
        messages_of(row)


def test_answers_at_the_end_are_not_read() -> None:
    tail = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "gpt", "content": 42}]
    assert messages_of({"messages": [*chat("u:1"), *tail]}) == said("u:1")


SECRET = "zanzibar password"
MALFORMED: list[tuple[Any, str | None, str]] = [
    (42, None, "the row is a number, not an object"),
    ([SECRET], None, "the row is a list, not an object"),
    ({"prompt": 3}, None, "prompt is a number, not a list of messages"),
    ({"prompt": True}, None, "prompt is true or false"),
    ({"messages": SECRET}, None, "messages is text, not a list of messages"),
    ({"messages": "[" * 100_000}, None, "messages is text, not a list of messages"),
    ({"messages": [SECRET]}, None, r"messages\[0\] is text, not a message"),
    ({"messages": [{"content": SECRET}]}, None, r"messages\[0\] has no role"),
    ({"messages": [{"role": SECRET, "content": SECRET}]}, None, r"messages\[0\] has an unknown role"),
    ({"messages": [{"role": "user", "txt": SECRET}]}, None, r"messages\[0\] has no content; its keys: role, txt"),
    ({"messages": [{"role": "user", "content": 5}]}, None, r"messages\[0\].content is a number, not text"),
    ({"messages": [{"role": "user", "content": [7]}]}, None, r"messages\[0\].content\[0\] is a number"),
    ({"messages": [{"role": "user", "content": json.loads("[" * 600 + "]" * 600)}]}, None, "nested too deeply"),
    ({"body": {"input": SECRET}}, None, "holds neither messages nor prompt; its keys: input"),
    ({"instruction": "do", "input": ["x"]}, None, "input is a list, not text"),
    ({"question": SECRET, "answer": SECRET}, None, "no prompt found in the row; its columns: question, answer"),
    ({SECRET: 1, "b": 2}, None, "its columns: b, 1 not shown because it may be prompt text"),
    ({"prompt": SECRET}, "q", "no column q; found: prompt"),
    (SECRET, "q", "plain text without columns"),
]


@pytest.mark.parametrize(("row", "column", "what"), MALFORMED)
def test_rows_that_cannot_be_read(row: Any, column: str | None, what: str) -> None:
    with pytest.raises(MalformedRowError, match=what) as caught:
        messages_of(row, column)
    assert SECRET not in caught.value.what + caught.value.hint
    assert caught.value.hint.endswith(".")
