"""A row -> the messages of one prompt. Shapes are tried in the order of `SHAPES`; the first one present wins.

A shape reader gets the value under its key and the row. `SkipRowError` leaves the row out and reports it;
`MalformedRowError` stops the run, because a file whose rows are misread measures something else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from specbench.checks.fields import kind_of
from specbench.records import Message, Role
from specbench.workload.naming import list_names

Messages: TypeAlias = tuple[Message, ...]


class SkipRowError(Exception):
    """The row is sound but is no text prompt; the argument is the reason."""


class MalformedRowError(Exception):
    """The row cannot be read: what is wrong and the cure. The caller, who knows the place, makes it a WorkloadError."""

    def __init__(self, what: str, cure: str) -> None:
        self.what = what
        self.cure = cure
        super().__init__(what)


# Keys are what data sets write; values are ours. None: a turn that a plain chat cannot hold.
_ROLES: dict[str, Role | None] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": None,
    "function": None,
    "ipython": None,
}


def messages_of(row: object, column: str | None = None) -> Messages:
    """The conversation up to and including the last user message: what follows is the reply to be generated."""
    if isinstance(row, str):
        if column is not None:
            raise MalformedRowError("the rows are plain text without columns", "Leave out --column.")
        return _text(row)
    if not isinstance(row, dict):
        raise MalformedRowError(f"the row is {kind_of(row)}, not an object", "Give one object or one string a row.")
    if column is not None:
        if column not in row:
            raise MalformedRowError(f"no column {column}; found: {list_names(row)}", "Correct --column NAME.")
        return _present(SHAPES.get(column, _text_or_conversation), row, column)
    for key, read in SHAPES.items():
        # Parquet and data frames fill the shapes a row lacks with null. `body` is a batch line only as an object:
        # elsewhere the word names the text of a mail.
        if row.get(key) is not None and (key != "body" or isinstance(row[key], dict)):
            return read(row[key], key, row)
    if any(key in row for key in SHAPES if key != "body"):
        raise SkipRowError("empty prompt")
    # A body that is there was no batch line, and naming it again would help nobody.
    shapes = ", ".join(key for key in SHAPES if key not in row)
    raise MalformedRowError(
        f"no prompt found in the row; its columns: {list_names(row)}",
        f"Name the prompt's column with --column NAME, or use one of {shapes}.",
    )


Reader: TypeAlias = Callable[[Any, str, Mapping[str, Any]], Messages]


def _present(read: Reader, row: Mapping[str, Any], key: str) -> Messages:
    if row[key] is None:
        raise SkipRowError("empty prompt")
    return read(row[key], key, row)


def _text(text: str) -> Messages:
    if not text.strip():
        raise SkipRowError("empty prompt")
    return (Message("user", text),)


def _text_or_conversation(value: object, key: str, row: Mapping[str, Any]) -> Messages:
    if isinstance(value, str):
        return _text(value)
    return _conversation(value, key, row)


def _conversation(value: object, key: str, row: Mapping[str, Any]) -> Messages:
    """OpenAI's role/content and ShareGPT's from/value, mixed as they come."""
    entries = _as_list(value, key)
    roles = [_role(entry, f"{key}[{index}]") for index, entry in enumerate(entries)]
    if "user" not in roles:
        raise SkipRowError("no user message")
    last = len(roles) - 1 - roles[::-1].index("user")
    return _messages(entries[: last + 1], roles, key)


def _turns(value: object, key: str, row: Mapping[str, Any]) -> Messages:
    """The first user turn: later ones answer the model's replies, which are not recorded here. Where they are
    recorded (role objects with an assistant among them) the history is kept as in `messages`."""
    entries = _as_list(value, key)
    if all(isinstance(entry, str) for entry in entries):
        return _text(entries[0] if entries else "")
    roles = [_role(entry, f"{key}[{index}]") for index, entry in enumerate(entries)]
    if "assistant" in roles or "user" not in roles:
        return _conversation(entries, key, row)
    return _messages(entries[: roles.index("user") + 1], roles, key)


def _batch_body(body: Any, key: str, row: Mapping[str, Any]) -> Messages:
    """A line of OpenAI's batch API: the request is under `body`. Named as a column it may be a mail's text."""
    if not isinstance(body, dict):
        return _text_or_conversation(body, key, row)
    for name, read in (("messages", _conversation), ("prompt", _text_or_conversation)):
        if body.get(name) is not None:
            return read(body[name], f"{key}.{name}", row)
    raise MalformedRowError(
        f"the batch line's body holds neither messages nor prompt; its keys: {list_names(body)}",
        "Use lines for /v1/chat/completions or /v1/completions.",
    )


def _alpaca(value: object, key: str, row: Mapping[str, Any]) -> Messages:
    parts = [_string(value, key)]
    if row.get("input") is not None:
        parts.append(_string(row["input"], "input"))
    return _text("\n\n".join(part for part in parts if part.strip()))


SHAPES: dict[str, Reader] = {
    "messages": _conversation,
    "body": _batch_body,
    "conversations": _conversation,
    "turns": _turns,
    "prompt": _text_or_conversation,
    "instruction": _alpaca,
}


def _as_list(value: object, key: str) -> list[Any]:
    if isinstance(value, str):  # a CSV cell can hold a conversation only as JSON
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise MalformedRowError(
            f"{key} is {kind_of(value)}, not a list of messages", "Correct the row or name --column NAME."
        )
    return value


def _string(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise MalformedRowError(f"{key} is {kind_of(value)}, not text", "Correct the row or name --column NAME.")
    return value


def _role(entry: object, place: str) -> Role | None:
    if not isinstance(entry, dict):
        raise MalformedRowError(f"{place} is {kind_of(entry)}, not a message", "A message has a role and a content.")
    name = entry.get("role", entry.get("from"))
    if not isinstance(name, str) or name.lower() not in _ROLES:
        what = "has no role" if name is None else "has an unknown role"
        raise MalformedRowError(f"{place} {what}", "Use system, user or assistant (or ShareGPT's human and gpt).")
    return _ROLES[name.lower()]


def _messages(entries: list[Any], roles: list[Role | None], key: str) -> Messages:
    """`roles` may be longer than `entries`: what was cut off is not read, so it cannot be wrong."""
    messages: list[Message] = []
    for index, entry in enumerate(entries):
        role = roles[index]
        if role is None:
            raise SkipRowError("a tool's answer in the conversation")
        messages.append(Message(role, _content(entry, f"{key}[{index}]")))
    if not messages[-1].content.strip():
        raise SkipRowError("empty prompt")
    return tuple(messages)


def _content(entry: Mapping[str, Any], place: str) -> str:
    if "content" not in entry and "value" not in entry:
        raise MalformedRowError(
            f"{place} has no content; its keys: {list_names(entry)}", "A message has a role and a content."
        )
    content = entry.get("content")
    if content is None:
        content = entry.get("value")
    if content is None:
        raise SkipRowError("a message without text, such as a tool call")
    if not isinstance(content, list):
        return _string(content, f"{place}.content")
    # vLLM joins the text parts of one message by line breaks where the chat template wants a string.
    return "\n".join(_part(part, f"{place}.content[{index}]") for index, part in enumerate(content))


def _part(part: object, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise MalformedRowError(f"{place} is {kind_of(part)}, not a content part", "A part has a type and a text.")
    kind = part.get("type")
    if kind not in ("text", "input_text"):
        raise SkipRowError(f"not text: a content part of type {list_names([kind])}")
    return _string(part.get("text"), f"{place}.text")
